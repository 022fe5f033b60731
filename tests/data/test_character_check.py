import pytest

from hf_tinyformer.data import character_check
from hf_tinyformer.data.character_check import CharacterCheck


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 16])
def test_the_texts_with_a_character_that_differs_are_found_wherever_blocks_end(monkeypatch, block):
    monkeypatch.setattr(character_check, "_BLOCK", block)
    check = CharacterCheck(lambda texts: ["ǂ" not in text for text in texts])
    texts = ["a", "나ǂ", "", "ab나", "ǂ", "👩👩👩ǂ", "나"]

    assert check.find_strange(texts) == [1, 4, 5]
    assert check.find_strange(texts[::-1]) == [1, 2, 5]


def test_a_letter_of_ascii_may_differ_too():
    check = CharacterCheck(lambda texts: ["~" not in text for text in texts])

    assert check.find_strange(["a", "a~", "나", "나~"]) == [1, 3]


def test_a_character_is_put_to_the_libraries_once():
    seen = []
    check = CharacterCheck(lambda texts: (seen.extend(texts), [True] * len(texts))[1])
    seen.clear()

    for _ in range(2):
        assert check.find_strange(["나는", "느"]) == []

    assert len(seen) == 1
    assert set("나는느") <= set(seen[0])
