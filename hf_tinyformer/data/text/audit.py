"""Find duplicates in a corpus: within train, within validation, and between the two.

Of equal documents the first one stays, those of validation counting as earlier than those of train:
what the model is judged by stays, and what would give it away leaves training. Of near duplicates a
document leaves if it is similar to an earlier one that stays.

The corpus is read once for fingerprints (`corpus_scan`) and, if anything was found, once more, to
compare candidates in full and to say where they stand.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import plan_parts
from hf_tinyformer.data.text.corpus_scan import TRAIN, VALIDATION, Scan, read_numbered, scan_corpus
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.text.drop_list import DroppedText
from hf_tinyformer.data.text.duplicates import (
    NUM_BANDS,
    ROWS_IN_BAND,
    SHINGLE_LENGTH,
    Signer,
    chance_of_candidate,
    digest_text,
    find_candidates,
    jaccard,
    normalize_text,
    shingle_text,
)
from hf_tinyformer.errors import ConfigError

_EXCERPT = 80

Similar = Mapping[tuple[int, int], float]
"""Pairs of document numbers, the earlier first, and their similarity."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Two documents that are duplicates."""

    kind: str
    """`exact`, `normalized` or `near`."""

    first: str
    """Place of the earlier one: split, source, `path:line`."""

    second: str
    """Place of the later one."""

    similarity: float
    """Jaccard similarity of their shingles; 1 for the other kinds."""

    excerpt: str
    """How one of them begins."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    report: dict[str, Any]
    """JSON values: documents, duplicates by kind, how near ones were sought, examples, time."""

    dropped: list[DroppedText]
    """What to leave out so that no duplicate is left."""


def _excerpt(document: Document) -> str:
    return " ".join(document.text[: 4 * _EXCERPT].split())[:_EXCERPT]


class _Comparison:
    """The second reading: where documents stand, and which candidates are similar in full."""

    def __init__(self, pairs: NDArray[np.int64], *, threshold: float, excerpts: set[int]) -> None:
        self.places: dict[int, str] = {}
        self.digests: dict[int, bytes] = {}
        self.excerpts: dict[int, str] = {}
        self.similar: dict[tuple[int, int], float] = {}
        self._threshold = threshold
        self._wanted_excerpts = excerpts
        self._pairs = {(first, second) for first, second in pairs.tolist()}
        self._partners: dict[int, list[int]] = defaultdict(list)
        for first, second in sorted(self._pairs):
            self._partners[first].append(second)
            self._partners[second].append(first)
        # A document's shingles stay in memory from its turn to that of its last partner.
        self._open: dict[int, NDArray[np.uint32]] = {}
        self._waiting = {number: len(others) for number, others in self._partners.items()}

    def take(self, number: int, place: str, document: Document) -> None:
        """Look at the next document."""
        self.places[number] = place
        self.digests[number] = digest_text(document.text)
        if number in self._wanted_excerpts:
            self.excerpts[number] = _excerpt(document)
        if number in self._partners:
            self._open[number] = shingle_text(normalize_text(document.text) or " ")
            for partner in self._partners[number]:
                if partner in self._open:
                    self._compare(number, partner, document)

    def _compare(self, number: int, partner: int, document: Document) -> None:
        similarity = jaccard(self._open[number], self._open[partner])
        if similarity >= self._threshold:
            pair = (number, partner) if (number, partner) in self._pairs else (partner, number)
            self.similar[pair] = similarity
            self.excerpts.setdefault(number, _excerpt(document))
        for member in (number, partner):
            self._waiting[member] -= 1
            if not self._waiting[member]:
                del self._open[member]


def _count_equal(first: NDArray[np.int64], splits: NDArray[np.uint8]) -> dict[str, int]:
    """Count copies within each split, and documents of each that the other one has too."""
    train, validation = first[splits == TRAIN], first[splits == VALIDATION]
    return {
        "copies_within_train": len(train) - len(np.unique(train)),
        "copies_within_validation": len(validation) - len(np.unique(validation)),
        "train_also_in_validation": int(np.isin(train, validation).sum()),
        "validation_also_in_train": int(np.isin(validation, train).sum()),
    }


def _count_near(similar: Similar, splits: NDArray[np.uint8]) -> dict[str, int]:
    within: list[set[int]] = [set(), set()]
    across: list[set[int]] = [set(), set()]
    for pair in similar:
        first, second = pair
        if splits[first] == splits[second]:
            within[splits[second]].add(second)
        else:
            for number in pair:
                across[splits[number]].add(number)
    return {
        "copies_within_train": len(within[TRAIN]),
        "copies_within_validation": len(within[VALIDATION]),
        "train_also_in_validation": len(across[TRAIN]),
        "validation_also_in_train": len(across[VALIDATION]),
    }


def _drop_near(similar: Similar, order: NDArray[np.int64]) -> set[int]:
    """Choose who leaves: whoever is similar to an earlier one that stays."""
    earlier = defaultdict(list)
    for first, second in similar:
        earlier[second].append(first)
    gone: set[int] = set()
    if earlier:
        for number in order.tolist():
            if any(partner not in gone for partner in earlier.get(number, ())):
                gone.add(number)
    return gone


def _drop(scan: Scan, comparison: _Comparison) -> tuple[NDArray[np.bool_], list[DroppedText]]:
    numbers = np.arange(len(scan.splits))
    near = _drop_near(comparison.similar, scan.order)
    gone = (scan.first_normalized != numbers) | np.isin(scan.first_normalized, sorted(near))
    copies: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(gone).tolist():
        copies[int(scan.first_exact[number])].append(number)
    dropped = [
        DroppedText(
            text=comparison.digests[first],
            keep=None if gone[first] else comparison.places[first],
            drop=tuple(sorted(comparison.places[number] for number in members)),
        )
        for first, members in copies.items()
    ]
    return gone, dropped


def _pick(scan: Scan, count: int) -> dict[str, list[tuple[int, int]]]:
    """Choose examples of the kinds that need no comparison: number of the first and of the copy."""
    numbers = np.arange(len(scan.splits))
    is_copy = scan.first_exact != numbers
    is_other_form = ~is_copy & (scan.first_normalized != numbers)
    return {
        kind: [(int(first[number]), int(number)) for number in np.flatnonzero(chosen)[:count]]
        for kind, first, chosen in (
            ("exact", scan.first_exact, is_copy),
            ("normalized", scan.first_normalized, is_other_form),
        )
    }


def _list_examples(
    shown: Mapping[str, list[tuple[int, int]]], comparison: _Comparison, count: int
) -> list[Example]:
    # The least similar ones first: whether the threshold is right shows there.
    near = sorted(comparison.similar, key=lambda pair: (comparison.similar[pair], pair))[:count]
    excerpts = comparison.excerpts
    return [
        Example(
            kind=kind,
            first=comparison.places[first],
            second=comparison.places[second],
            similarity=round(comparison.similar[first, second], 4) if kind == "near" else 1.0,
            excerpt=excerpts[second if second in excerpts else first],
        )
        for kind, pairs in {**shown, "near": near}.items()
        for first, second in pairs
    ]


def _by_split(splits: NDArray[np.uint8]) -> dict[str, int]:
    return {"train": int((splits == TRAIN).sum()), "validation": int((splits == VALIDATION).sum())}


def _seek_near(scan: Scan, threshold: float) -> tuple[NDArray[np.int64], int]:
    """Find candidates among the texts that no earlier one equals, as pairs of document numbers."""
    is_first = scan.first_normalized == np.arange(len(scan.splits))
    texts = scan.order[is_first[scan.order]]
    rows, sharing = find_candidates(scan.signatures[texts], threshold=threshold)
    return texts[rows], sharing


def _count(
    scan: Scan, gone: NDArray[np.bool_], comparison: _Comparison, *, near: bool
) -> dict[str, Any]:
    exact = _count_equal(scan.first_exact, scan.splits)
    normalized = _count_equal(scan.first_normalized, scan.splits)
    return {
        "documents": _by_split(scan.splits),
        "bytes": scan.num_bytes,
        "exact": exact,
        "normalized": {name: normalized[name] - exact[name] for name in exact},
        "near": _count_near(comparison.similar, scan.splits) if near else None,
        "would_drop": _by_split(scan.splits[gone]),
    }


def _describe_search(
    threshold: float, sharing: int, compared: int, comparison: _Comparison
) -> dict[str, Any]:
    """Say how near duplicates were sought, and how often the search was wrong."""
    return {
        "threshold": threshold,
        "shingle_characters": SHINGLE_LENGTH,
        "bands": NUM_BANDS,
        "rows_in_band": ROWS_IN_BAND,
        "chance_of_finding_at_threshold": round(chance_of_candidate(threshold), 4),
        "pairs_sharing_a_band": sharing,
        "pairs_compared_in_full": compared,
        "pairs_confirmed": len(comparison.similar),
        "pairs_refused": compared - len(comparison.similar),
    }


def audit_corpus(
    config: DataConfig,
    *,
    near: bool = True,
    threshold: float = 0.8,
    examples: int = 10,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Audit:
    """Find a corpus's duplicates.

    Args:
        config: The corpus. Its `drop` is applied: a corpus can be audited after dropping.
        near: Seek near duplicates too.
        threshold: Jaccard similarity from which two texts are near duplicates.
        examples: How many of each kind to list.
        workers: Processes that read. The result does not depend on it.
        on_progress: Told how many more bytes of text were read.

    Returns:
        Counts, examples, and what to drop.

    Raises:
        ConfigError: If the settings name no text, the threshold is out of range, or `datasketch`
            is missing.
        DataError: If something cannot be read.
    """
    if not config.is_named():
        raise ConfigError(
            f"data.prepared is {config.prepared}, but an audit reads the text itself, and none is "
            "named. Set data.files, data.dataset, data.builtin or data.sources too."
        )
    if not 0.5 <= threshold <= 1:
        raise ConfigError(
            f"--threshold is {threshold}, but it must lie between 0.5 and 1: texts that share "
            "less are no duplicates. Take 0.8."
        )
    if near:
        Signer()  # Before any text is read, since datasketch may be missing.
    started = time.monotonic()
    parts = plan_parts(config)
    scan = scan_corpus(config, parts, near=near, workers=workers, on_progress=on_progress)
    pairs, sharing = _seek_near(scan, threshold) if near else (np.empty((0, 2), np.int64), 0)
    shown = _pick(scan, examples)
    excerpts = {second for listed in shown.values() for _, second in listed}
    comparison = _Comparison(pairs, threshold=threshold, excerpts=excerpts)
    copies = np.flatnonzero(scan.first_normalized != np.arange(len(scan.splits)))
    firsts = np.r_[scan.first_normalized[copies], scan.first_exact[copies]]
    for found in read_numbered(config, parts, np.r_[copies, firsts, pairs.ravel()]):
        comparison.take(*found)
    gone, dropped = _drop(scan, comparison)
    search = _describe_search(threshold, sharing, len(pairs), comparison) if near else None
    report = {
        **_count(scan, gone, comparison, near=near),
        "search": search,
        "examples": [asdict(e) for e in _list_examples(shown, comparison, examples)],
        "seconds": round(time.monotonic() - started, 3),
    }
    return Audit(report, dropped)
