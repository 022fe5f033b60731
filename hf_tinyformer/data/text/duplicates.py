"""Texts that are equal, equal but for form, or nearly equal. Knows texts, not where they lie.

Three sieves, each finer to pass than the one before:

    exact        the same characters
    normalized   the same after NFKC, case folding and one space for any white space
    near         Jaccard similarity of the sets of 7-character shingles of the normalized texts is
                 at or above a threshold

The third never compares all pairs: MinHash signatures (Broder 1997, through `datasketch`) are cut
into bands, and only texts that agree on a whole band are candidates (Leskovec et al. 2020, Mining
of Massive Datasets, section 3.4). The bands are sorted here and not kept in `datasketch`'s index,
which takes some ten kilobytes a document where a sorted column takes half a kilobyte.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.errors import ConfigError

SHINGLE_LENGTH = 7
"""Characters in a shingle: about a word of English and two of Korean, with what stands between."""

NUM_BANDS, ROWS_IN_BAND = 21, 6
NUM_PERMUTATIONS = NUM_BANDS * ROWS_IN_BAND

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
"""128 bits of BLAKE2b: among a billion texts two different ones meet once in 10**20 times."""

_SEED = 1
_SHINGLES_AT_ONCE = 1 << 15
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_PARTNERS_IN_BUCKET = 64
_PAIRS_AT_ONCE = 1 << 16


def digest_text(text: str) -> bytes:
    """Return the 16 bytes that stand for a text's characters."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def normalize_text(text: str) -> str:
    """Forget what does not make a text another: width, case, white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def shingle_text(normalized: str) -> NDArray[np.uint32]:
    """Return the set of a text's shingles as sorted 32-bit hashes.

    Args:
        normalized: From `normalize_text`. One that is shorter than a shingle is one itself.
    """
    points = np.frombuffer(normalized.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    length = min(SHINGLE_LENGTH, len(points))
    if not length:
        return np.empty(0, dtype=np.uint32)
    hashes = np.zeros(len(points) - length + 1, dtype=np.uint64)
    for offset in range(length):
        # A polynomial over the shingle's characters, modulo 2**64.
        hashes *= _MULTIPLIER
        hashes += points[offset : offset + len(hashes)] + np.uint64(1)
    # The low bits of a product know only low bits, so the high ones are folded in first.
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MULTIPLIER
    return np.unique((hashes >> np.uint64(32)).astype(np.uint32))


class Signer:
    """Makes MinHash signatures. All signers make the same ones."""

    def __init__(self) -> None:
        """Draw the permutations.

        Raises:
            ConfigError: If `datasketch` is not installed.
        """
        try:
            from datasketch import MinHash
        except ImportError:
            raise ConfigError(
                "Near duplicates are found by datasketch, but it is not installed. "
                "Run `pip install 'hf-tinyformer[audit]'`, or pass --no-near."
            ) from None
        self._empty: Any = MinHash(
            num_perm=NUM_PERMUTATIONS, seed=_SEED, hashfunc=int, scheme="affine32"
        )

    def sign(self, shingles: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return a set's signature, `(NUM_PERMUTATIONS,)`.

        Args:
            shingles: From `shingle_text`, not empty.
        """
        minhash = self._empty.copy()
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
            minhash.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        signature: NDArray[np.uint32] = minhash.hashvalues
        return signature


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """Return how much of two shingle sets' union both have, from 0 to 1."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(1, len(first) + len(second) - shared)


def chance_of_candidate(similarity: float) -> float:
    """Return how likely two texts of some Jaccard similarity agree on a band: 1 - (1 - s^r)^b."""
    return float(1 - (1 - similarity**ROWS_IN_BAND) ** NUM_BANDS)


def group_equal(digests: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find, for each document, the first one that is equal to it.

    Args:
        digests: `(n,)` of `DIGEST`.
        order: `(n,)`, the documents from first to last.

    Returns:
        `(n,)`: a document's own number if no earlier one is equal.
    """
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    by_digest = np.lexsort((place, digests["low"], digests["high"]))
    ranked = digests[by_digest]
    begins = np.ones(len(ranked), dtype=bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    first = np.empty(len(order), dtype=np.int64)
    first[by_digest] = by_digest[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first


def _bucket_pairs(members: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    for index in range(1, len(members)):
        for partner in members[: min(index, _PARTNERS_IN_BUCKET)]:
            yield int(partner), int(members[index])


def _band_pairs(band: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of documents that have the same numbers in a band: `(k, 2)`, some at a time."""
    keys = np.ascontiguousarray(band).view(f"V{band.shape[1] * band.itemsize}").ravel()
    # Documents with equal keys come to stand side by side, in their own order.
    by_key = np.lexsort(tuple(band.T))
    ranked = keys[by_key]
    edges = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1], True])
    pairs = (
        pair
        for start in np.flatnonzero(np.diff(edges) > 1)
        for pair in _bucket_pairs(by_key[edges[start] : edges[start + 1]])
    )
    while some := list(islice(pairs, _PAIRS_AT_ONCE)):
        yield np.array(some, dtype=np.int64)


def find_candidates(
    signatures: NDArray[np.uint32], *, threshold: float
) -> tuple[NDArray[np.int64], int]:
    """Find pairs of texts that look alike.

    Where more than 64 texts share a band, each is held against the first 64 of them: enough to
    link it to the text that would be kept, and no quadratic number of pairs.

    Args:
        signatures: `(n, NUM_PERMUTATIONS)`, the texts from first to last.
        threshold: Similarity sought. A pair stays if its signatures agree to within 0.1 of it,
            three standard deviations of the estimate.

    Returns:
        Pairs `(k, 2)` of row numbers, the earlier first, sorted; and how many pairs shared a band.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    shared = np.empty(0, dtype=np.uint64)
    for start in range(0, NUM_PERMUTATIONS, ROWS_IN_BAND):
        # A pair comes once in a band, so it is looked for in those of the bands before.
        of_band = [shared]
        for pairs in _band_pairs(signatures[:, start : start + ROWS_IN_BAND]):
            codes = pairs[:, 0].astype(np.uint64) << np.uint64(32) | pairs[:, 1].astype(np.uint64)
            is_new = np.searchsorted(shared, codes) == np.searchsorted(shared, codes, "right")
            new = codes[is_new]
            of_band.append(new)
            first, second = new >> np.uint64(32), new & np.uint64(0xFFFFFFFF)
            agree = np.mean(signatures[first] == signatures[second], axis=1)
            likely = agree >= threshold - 0.1
            found.append(np.stack((first, second), axis=1)[likely].astype(np.int64))
        shared = np.sort(np.concatenate(of_band))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs, len(shared)
