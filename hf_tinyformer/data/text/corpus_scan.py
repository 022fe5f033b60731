"""The corpus read for its fingerprints: what an audit keeps of each document.

16 bytes for the text, 16 for its normalized form, and 504 for its MinHash signature: 0.55 KB a
document, whatever its length. Documents with no text are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import read_part
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.text.drop_list import name_place
from hf_tinyformer.data.text.duplicates import (
    DIGEST,
    NUM_PERMUTATIONS,
    Signer,
    digest_text,
    group_equal,
    normalize_text,
    shingle_text,
)
from hf_tinyformer.data.text.parts import Part

VALIDATION, TRAIN = 0, 1
"""Numbers of the splits: the lower one counts as earlier."""

_SPLIT_NUMBERS = {"validation": VALIDATION, "train": TRAIN}


@dataclass(frozen=True)
class Scan:
    """Fingerprints of a corpus's documents, numbered from 0 as they are read."""

    splits: NDArray[np.uint8]
    """`VALIDATION` or `TRAIN`, `(n,)`."""

    order: NDArray[np.int64]
    """Numbers from the earliest document to the latest, validation before train."""

    first_exact: NDArray[np.int64]
    """For each document the earliest that is equal to it: its own number if it is the first."""

    first_normalized: NDArray[np.int64]
    """The same for normalized texts."""

    signatures: NDArray[np.uint32]
    """`(n, NUM_PERMUTATIONS)`, or `(n, 0)` if near duplicates are not sought."""

    num_bytes: int
    """UTF-8 bytes of text read."""


@dataclass(frozen=True)
class _Columns:
    splits: NDArray[np.uint8]
    exact: NDArray[Any]
    normalized: NDArray[Any]
    signatures: NDArray[np.uint32]
    num_bytes: int


def _scan_part(config: DataConfig, near: bool, part: Part) -> _Columns:
    signer = Signer() if near else None
    splits, exact, normalized = bytearray(), bytearray(), bytearray()
    signatures = bytearray()
    num_bytes = 0
    for split, document in read_part(config, part):
        if not document.text:
            continue
        plain = normalize_text(document.text)
        splits.append(_SPLIT_NUMBERS[split])
        exact += digest_text(document.text)
        normalized += digest_text(plain)
        num_bytes += len(document.text.encode("utf-8"))
        if signer is not None:
            # White space alone has no shingle; its normalized form has found its equals.
            signatures += signer.sign(shingle_text(plain or " ")).tobytes()
    width = NUM_PERMUTATIONS if near else 0
    return _Columns(
        splits=np.frombuffer(splits, dtype=np.uint8),
        exact=np.frombuffer(exact, dtype=DIGEST),
        normalized=np.frombuffer(normalized, dtype=DIGEST),
        signatures=np.frombuffer(signatures, dtype=np.uint32).reshape(len(splits), width),
        num_bytes=num_bytes,
    )


def _join(columns: Sequence[_Columns]) -> Scan:
    splits = np.concatenate([part.splits for part in columns])
    order = np.argsort(splits, kind="stable").astype(np.int64)
    return Scan(
        splits=splits,
        order=order,
        first_exact=group_equal(np.concatenate([part.exact for part in columns]), order),
        first_normalized=group_equal(np.concatenate([part.normalized for part in columns]), order),
        signatures=np.concatenate([part.signatures for part in columns]),
        num_bytes=sum(part.num_bytes for part in columns),
    )


def scan_corpus(
    config: DataConfig,
    parts: Sequence[Part],
    *,
    near: bool,
    workers: int,
    on_progress: Callable[[int], None] | None = None,
) -> Scan:
    """Read a corpus and keep its documents' fingerprints.

    Args:
        config: The corpus.
        parts: From `plan_parts`.
        near: Make signatures too.
        workers: Processes that read. The result does not depend on it.
        on_progress: Told after each part how many more bytes of text were read.
    """
    scan = partial(_scan_part, config, near)
    found = []
    with ExitStack() as stack:
        results: Iterator[_Columns] = map(scan, parts)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            results = stack.enter_context(pool).map(scan, parts)
        for columns in results:
            found.append(columns)
            if on_progress is not None:
                on_progress(columns.num_bytes)
    return _join(found)


def read_numbered(
    config: DataConfig, parts: Sequence[Part], numbers: NDArray[np.int64]
) -> Iterator[tuple[int, str, Document]]:
    """Read the corpus again for some of its documents.

    Args:
        config: The corpus.
        parts: From `plan_parts`.
        numbers: Which documents, numbered as in a `Scan`.

    Yields:
        Number, place (see `name_place`) and document, in the order of the numbers.
    """
    wanted = set(numbers.tolist())
    number = -1
    for part in parts if wanted else ():
        for split, document in read_part(config, part):
            number += bool(document.text)
            if document.text and number in wanted:
                yield number, name_place(split, part.source, document.source), document
