"""The token store: the `tokens/` folder of a run, read where it lies.

`preparation.py` writes it. A store is a folder of Arrow files, `parts/<part>/<split>-NNNNN.arrow`,
one row a document: `input_ids` and `num_bytes` (UTF-8 length of its text). `train/` and
`validation/` list them, so that `datasets.load_from_disk` reads each split too. The ids lie end to
end in files that are mapped into memory when they are first read, so opening takes milliseconds and
reading costs no more memory than what is read.

Positions count tokens from 0 at the split's first document to `num_tokens`. A document is the run
of positions between two starts, `<s>` and `</s>` included where the tokenizer adds them.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation")

STORE_LAYOUT = 3
"""Raised whenever older code could not read a store, or would read something else in it."""


@dataclass(frozen=True)
class _MappedFile:
    """One Arrow file, as views into memory that the kernel fills when they are touched."""

    bases: list[int]
    """Position in the file at which each record batch begins, and the end of the last."""

    ids: list[NDArray[Any]]
    """Token ids of each record batch."""

    offsets: list[NDArray[np.int32]]
    """Starts of its documents in them. A batch may begin inside its buffer, so the first offset
    need not be 0."""

    num_documents: int


def _view(column: "pa.Array", dtype: str) -> NDArray[Any]:
    """Show an Arrow column of numbers where it lies. `to_numpy` would import pandas first."""
    width = np.dtype(dtype).itemsize
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * width)


def _map_into_memory(file: Path) -> _MappedFile:
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            batches = [batch for batch in stream if batch.num_rows]
        lists = [batch.column("input_ids") for batch in batches]
        ids = [_view(column.values, str(column.type.value_type)) for column in lists]
        offsets = [_view(column.offsets, "int32") for column in lists]
    except (OSError, KeyError, AttributeError, TypeError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{file} cannot be read as Arrow ({str(error).splitlines()[0]}). "
            "The store is damaged: delete it and prepare the tokens again."
        ) from error
    sizes = [int(starts[-1] - starts[0]) for starts in offsets]
    num_documents = sum(batch.num_rows for batch in batches)
    return _MappedFile([0, *itertools.accumulate(sizes)], ids, offsets, num_documents)


class TokenStore:
    """One split, mapped into memory. Positions run from 0 to `num_tokens`."""

    def __init__(self, folder: Path, files: Sequence[Sequence[Any]], num_bytes: int) -> None:
        """Remember where a split lies; its files are opened when they are read.

        Args:
            folder: The token store.
            files: Name in the folder, tokens and documents of each of the split's files, in order.
            num_bytes: UTF-8 bytes of the split's texts.
        """
        self._files = [folder / name for name, _, _ in files]
        self._documents = [int(documents) for _, _, documents in files]
        self._bases = [0, *itertools.accumulate(int(tokens) for _, tokens, _ in files)]
        self._mapped: dict[int, _MappedFile] = {}
        self.num_tokens = self._bases[-1]
        self.num_documents = sum(self._documents)
        self.num_bytes = num_bytes

    def _open(self, index: int) -> _MappedFile:
        if (mapped := self._mapped.get(index)) is not None:
            return mapped
        mapped = _map_into_memory(self._files[index])
        found = (mapped.bases[-1], mapped.num_documents)
        expected = (self._bases[index + 1] - self._bases[index], self._documents[index])
        if found != expected:
            raise ArtifactError(
                f"{self._files[index]} holds {found[0]} tokens in {found[1]} documents, but the "
                f"manifest says {expected[0]} in {expected[1]}. "
                "The store is damaged: delete it and prepare the tokens again."
            )
        self._mapped[index] = mapped
        return mapped

    def _pieces(
        self, start: int, stop: int
    ) -> Iterator[tuple[int, int, NDArray[Any], NDArray[np.int32]]]:
        """Yield the record batches between two positions: begin, end, ids and offsets of each."""
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        index = bisect.bisect_right(self._bases, start) - 1
        while index < len(self._files) and self._bases[index] < stop:
            mapped, base = self._open(index), self._bases[index]
            inner = bisect.bisect_right(mapped.bases, max(start - base, 0)) - 1
            while inner < len(mapped.ids) and base + mapped.bases[inner] < stop:
                begin, end = base + mapped.bases[inner], base + mapped.bases[inner + 1]
                yield begin, end, mapped.ids[inner], mapped.offsets[inner]
                inner += 1
            index += 1

    def _read_into(self, out: NDArray[np.int64], start: int, stop: int) -> None:
        for begin, end, ids, offsets in self._pieces(start, stop):
            low, high = max(start, begin), min(stop, end)
            shift = int(offsets[0]) - begin
            out[low - start : high - start] = ids[low + shift : high + shift]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Copy out the tokens of positions `start` to `stop - 1`, shape `(stop - start,)`."""
        out = np.empty(stop - start, dtype=np.int64)
        self._read_into(out, start, stop)
        return out

    def read_rows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Copy out one row of `length` tokens for each start, shape `(len(starts), length)`."""
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            self._read_into(row, start, start + length)
        return out

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions from `start` to `stop - 1` at which a document begins, in order."""
        found = []
        for begin, _, _, offsets in self._pieces(start, stop):
            shift = int(offsets[0]) - begin
            # Bounds in the offsets' own type: any other makes searchsorted copy all of them.
            bounds = np.array(
                [max(start + shift, 0), min(stop + shift, int(offsets[-1]))], dtype=offsets.dtype
            )
            low, high = offsets[:-1].searchsorted(bounds)
            found.append(offsets[low:high].astype(np.int64) - shift)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class TokenStores:
    """Both splits of a prepared corpus."""

    train: TokenStore
    validation: TokenStore

    fingerprint: str
    """Equal wherever and whenever the same documents were encoded by the same tokenizer."""

    facts: dict[str, Any]
    """The manifest's facts (see `prepare_token_store`)."""

    @property
    def sources(self) -> dict[str, tuple[int, int]]:
        """First position in `train` and position after the last of each source, in order."""
        counted: Mapping[str, Any] = self.facts["sources"]
        return {
            name: (source["train"]["start"], source["train"]["stop"])
            for name, source in counted.items()
            if source["train"]["tokens"]
        }


def open_token_store(folder: Path, *, check_hashes: bool = False) -> TokenStores:
    """Open a store that `prepare_token_store` wrote.

    Args:
        folder: A run's tokens folder.
        check_hashes: Read every file and compare its SHA-256. Sizes are always compared, and
            counts of tokens and documents when a file is first read.

    Raises:
        ArtifactError: If the folder is missing, damaged, or not a token store.
    """
    facts = read_manifest(folder, kind="tokens", check_hashes=check_hashes)
    if facts.get("layout") != STORE_LAYOUT:
        raise ArtifactError(
            f"{folder} has layout {facts.get('layout', 1)}, but this version reads layout "
            f"{STORE_LAYOUT}. Delete the folder and prepare the tokens again."
        )
    train, validation = (
        TokenStore(folder, facts["splits"][name]["files"], int(facts["splits"][name]["bytes"]))
        for name in SPLITS
    )
    return TokenStores(
        train=train, validation=validation, fingerprint=facts["fingerprint"], facts=facts
    )
