import pytest

from hf_tinyformer.data.tokenization import character_check
from hf_tinyformer.data.tokenization.character_check import CharacterCheck


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 16])
def test_the_texts_with_a_character_that_differs_are_found_wherever_blocks_end(monkeypatch, block):
    monkeypatch.setattr(character_check, "_BLOCK", block)
    check = CharacterCheck(lambda texts: ["ȡ" not in text for text in texts])
    texts = ["a", "나ȡ", "", "ab나", "ȡ", "👩👩👩ȡ", "나"]

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
        assert check.find_strange(["éß", "я"]) == []

    assert len(seen) == 1
    assert set("éßя") <= set(seen[0])


def test_letters_that_every_table_has_are_put_to_no_library():
    seen = []
    check = CharacterCheck(lambda texts: (seen.extend(texts), [True] * len(texts))[1])
    seen.clear()

    # Hangul, Han and Arabic; a letter since Unicode 5, and one that has got case since.
    assert check.find_strange(["나漢ش", "ⰰ", "\u10d0"]) == []

    assert len(seen) == 1
    assert set("ⰰ\u10d0") <= set(seen[0])
    assert not set("나漢ش") & set(seen[0])
