import random

import numpy as np
import pytest

from hf_tinyformer.data.text import duplicates
from hf_tinyformer.data.text.duplicates import (
    DIGEST,
    NUM_PERMUTATIONS,
    Signer,
    chance_of_candidate,
    digest_text,
    find_candidates,
    group_equal,
    jaccard,
    normalize_text,
    shingle_text,
)

pytest.importorskip("datasketch", reason="near duplicates need hf-tinyformer[audit]")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A  cat\n sat.", "a cat sat."),
        ("\uff34\uff49\uff4e\uff59 \u2460", "tiny 1"),  # full width, and a 1 in a circle
        ("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),  # composed, and as jamo
        ("STRASSE", "straße"),
        (" x\u00a0y ", "x y"),
    ],
)
def test_texts_that_differ_in_form_only_are_normalized_to_one(first: str, second: str) -> None:
    assert normalize_text(first) == normalize_text(second)


def test_texts_that_differ_in_a_letter_stay_two() -> None:
    assert normalize_text("a cat") != normalize_text("a car")


def test_shingles_are_as_many_as_the_text_has_different_pieces() -> None:
    # 10 letters have 4 pieces of 7; a repeated text has no more than its period.
    assert len(shingle_text("abcdefghij")) == 4
    assert len(shingle_text("abc" * 50)) == 3
    assert len(shingle_text("short")) == 1
    assert len(shingle_text("")) == 0


def test_similarity_worked_by_hand() -> None:
    # Pieces 0-3 and 1-4 of the alphabet: 3 shared of 5.
    assert jaccard(shingle_text("abcdefghij"), shingle_text("bcdefghijk")) == 3 / 5


def test_equal_digests_lead_to_the_earliest_in_the_order_given() -> None:
    digests = np.array([(1, 1), (2, 2), (1, 1), (1, 2), (2, 2)], dtype=DIGEST)

    first = group_equal(digests, np.array([4, 3, 2, 1, 0]))

    assert first.tolist() == [2, 4, 2, 3, 4]


def test_digests_are_those_of_the_text_in_one_order_of_bytes() -> None:
    raw = digest_text("same")

    assert len(raw) == 16
    assert group_equal(np.frombuffer(raw * 2, dtype=DIGEST), np.arange(2)).tolist() == [0, 0]


def test_signatures_agree_as_often_as_the_sets_overlap() -> None:
    signer = Signer()
    numbers = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    for shared in (2000, 1000, 200):
        first, second = numbers[:2000], numbers[2000 - shared : 4000 - shared]
        similarity = jaccard(np.unique(first), np.unique(second))
        agree = np.mean(signer.sign(first) == signer.sign(second))
        # Four standard deviations of 126 draws.
        deviation = (similarity * (1 - similarity) / NUM_PERMUTATIONS) ** 0.5
        assert abs(agree - similarity) <= 4 * deviation


def test_signing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shingles = np.arange(1000, dtype=np.uint32)
    whole = Signer().sign(shingles)
    monkeypatch.setattr("hf_tinyformer.data.text.duplicates._SHINGLES_AT_ONCE", 64)

    assert np.array_equal(Signer().sign(shingles), whole)


def make_signatures(similarities: list[float], seed: int) -> np.ndarray:
    """Row 0 and, for each similarity, a row that agrees with row 0 in about that many places."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, 2**32, NUM_PERMUTATIONS, dtype=np.uint32)
    rows = [first]
    for similarity in similarities:
        row = generator.integers(0, 2**32, NUM_PERMUTATIONS, dtype=np.uint32)
        same = generator.random(NUM_PERMUTATIONS) < similarity
        row[same] = first[same]
        rows.append(row)
    return np.array(rows)


def test_candidates_are_those_that_look_alike_earlier_one_first() -> None:
    pairs, sharing = find_candidates(make_signatures([0.95, 0.1, 0.9], seed=1), threshold=0.8)

    assert [0, 1] in pairs.tolist()
    assert [0, 3] in pairs.tolist()
    assert all(2 not in pair for pair in pairs.tolist())
    assert sharing >= len(pairs)


def test_chance_of_being_found_is_what_happens() -> None:
    found = 0
    for seed in range(300):
        pairs, _ = find_candidates(make_signatures([0.6], seed), threshold=0.5)
        found += len(pairs)

    # 1 - (1 - 0.6^6)^21 = 0.63; the estimate refuses hardly any at 0.2 below.
    assert chance_of_candidate(0.6) == pytest.approx(0.633, abs=0.001)
    assert abs(found / 300 - 0.633) < 4 * (0.633 * 0.367 / 300) ** 0.5


def test_many_alike_are_linked_to_the_first_without_a_quadratic_number_of_pairs() -> None:
    same = np.tile(make_signatures([], seed=2), (1000, 1))

    pairs, _ = find_candidates(same, threshold=0.8)

    assert len(pairs) < 64 * 1000
    assert {second for first, second in pairs.tolist() if first == 0} == set(range(1, 1000))


def test_one_large_bucket_is_taken_in_pieces_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same = np.tile(make_signatures([], seed=2), (100, 1))
    signatures = np.concatenate([same, make_signatures([0.9] * 30, seed=3)])
    whole = find_candidates(signatures, threshold=0.8)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 50)

    pieces = [len(pairs) for pairs in duplicates._band_pairs(same[:, :6])]
    again = find_candidates(signatures, threshold=0.8)

    # Documents 1 to 63 have as many before them as their number, the other 36 have 64 partners.
    assert sum(pieces) == 63 * 64 // 2 + 36 * 64
    assert max(pieces) == 50
    assert np.array_equal(again[0], whole[0])
    assert again[1] == whole[1]


def test_a_random_text_has_no_near_duplicate_among_others() -> None:
    signer = Signer()
    drawn = random.Random(0)
    texts = ["".join(drawn.choices("abcdefgh ", k=400)) for _ in range(200)]
    signatures = np.array([signer.sign(shingle_text(text)) for text in texts])

    pairs, _ = find_candidates(signatures, threshold=0.8)

    assert len(pairs) == 0
