from pathlib import Path

import pytest

from hf_tinyformer.data.text import json_stream
from hf_tinyformer.data.text.json_stream import iterate_json
from hf_tinyformer.errors import DataError


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Blocks that a file is read in; what is not asked for stays."""
    blocks: list[bytes] = []

    def read(path: Path):
        while blocks:
            yield blocks.pop(0)

    monkeypatch.setattr(json_stream, "read_blocks", read)
    return blocks


@pytest.mark.parametrize(
    ("begin", "place"),
    [
        (b'[{"a": "x",\n "b" "y", "c": 1}', r"2:6 is not JSON \(Expecting ':' delimiter\)"),
        (b'[{"a": "x" "b": "y", "c": 1}', r"1:12 is not JSON \(Expecting ',' delimiter\)"),
        (b'[{"a": "x\ty, and more of it"', r"1:10 is not JSON \(Invalid control character"),
        (b'[{"a": nothing, "b": "and more"', r"1:8 is not JSON \(Expecting value\)"),
    ],
)
def test_a_fault_that_no_later_block_can_mend_is_named_at_once(
    given: list[bytes], begin: bytes, place: str
):
    given += [begin, *([b"x" * 1000] * 9)]

    with pytest.raises(DataError, match=rf"a\.json:{place}"):
        list(iterate_json(Path("a.json")))

    assert len(given) >= 8


def test_a_record_may_be_cut_between_blocks_anywhere(given: list[bytes]):
    raw = rb'[{"text": "a\u00e9\\b\ud83d\ude00", "n": [-1.5e+3, null, true, -Infinity, {}]} , {}]'
    expected = [
        {"text": "aé\\b😀", "n": [-1500.0, None, True, float("-inf"), {}]},
        {},
    ]
    for cut in range(len(raw)):
        given += [raw[:cut], raw[cut:]]
        assert [value for _, value in iterate_json(Path("a.json"))] == expected, cut
    given += [raw[place : place + 1] for place in range(len(raw))]
    assert [value for _, value in iterate_json(Path("a.json"))] == expected
