from pathlib import Path

import pytest

from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.text.drop_list import DroppedText, read_drop_list, write_drop_list
from hf_tinyformer.data.text.duplicates import digest_text
from hf_tinyformer.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    entries = [
        DroppedText(digest_text("twice"), "train corpus a.txt:1", ("train corpus b.txt:1",)),
        DroppedText(digest_text("gone"), None, ("train wiki c.txt:1", "train wiki d\u2028.txt:1")),
    ]
    write_drop_list(tmp_path / "drop.jsonl", entries)
    return tmp_path / "drop.jsonl"


@pytest.mark.parametrize(
    ("text", "source", "name", "dropped"),
    [
        ("twice", "corpus", "a.txt:1", False),
        ("twice", "corpus", "b.txt:1", True),
        ("gone", "wiki", "c.txt:1", True),
        ("gone", "wiki", "d\u2028.txt:1", True),
        ("another", "corpus", "b.txt:1", False),
    ],
)
def test_only_the_copies_named_are_dropped(
    path: Path, text: str, source: str, name: str, dropped: bool
) -> None:
    drops = read_drop_list(path).drops(Document(text, name), split="train", source=source)

    assert drops is dropped


@pytest.mark.parametrize(
    ("split", "source", "name"),
    [("validation", "corpus", "a.txt:1"), ("train", "wiki", "a.txt:1"), ("train", "corpus", "x:1")],
)
def test_a_known_text_at_an_unknown_place_means_another_corpus(
    path: Path, split: str, source: str, name: str
) -> None:
    with pytest.raises(DataError, match=rf"knows the text of {name} \({split}\).*audit"):
        read_drop_list(path).drops(Document("twice", name), split=split, source=source)


def test_the_same_entries_give_the_same_bytes(path: Path) -> None:
    first = path.read_bytes()
    entries = [
        DroppedText(digest_text("gone"), None, ("train wiki d\u2028.txt:1", "train wiki c.txt:1")),
        DroppedText(digest_text("twice"), "train corpus a.txt:1", ("train corpus b.txt:1",)),
    ]

    write_drop_list(path, entries)

    assert path.read_bytes() == first


def test_a_place_to_keep_and_to_drop_would_leave_no_copy_and_is_refused(tmp_path: Path) -> None:
    entry = DroppedText(digest_text("x"), "train corpus a.json:1", ("train corpus a.json:1",))

    with pytest.raises(DataError, match=r"to keep and to drop train corpus a\.json:1, but two"):
        write_drop_list(tmp_path / "drop.jsonl", [entry])

    assert not (tmp_path / "drop.jsonl").exists()


def test_a_list_that_is_missing_is_named_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl.*tinyformer data audit"):
        read_drop_list(tmp_path / "none.jsonl")


@pytest.mark.parametrize("damage", ["cut", "other", "binary"])
def test_a_list_that_is_not_whole_is_refused(path: Path, damage: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    content = {"cut": b"".join(lines[:-1]), "other": b'{"text": "x"}\n', "binary": b"\xff\x00\n"}
    path.write_bytes(content[damage])

    with pytest.raises(DataError, match=r"no whole list"):
        read_drop_list(path)
