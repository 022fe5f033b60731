"""Documents become a token store, and back: the `tokens/` folder of a run.

A store is two folders, `train/` and `validation/`, each a data set that `datasets.load_from_disk`
reads: one row a document, `input_ids` and `num_bytes` (UTF-8 length of its text). The ids lie
end to end in Arrow files that are mapped into memory, so opening takes milliseconds and reading
costs no more memory than what is read.

Positions count tokens from 0 at the split's first document to `num_tokens`. A document is the run
of positions between two starts, `<s>` and `</s>` included where the tokenizer adds them.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import fingerprint, read_manifest, write_folder
from hf_tinyformer.data.documents import Document
from hf_tinyformer.data.tokenizer import encode_documents, tokenizer_fingerprint
from hf_tinyformer.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")

_BYTES_AT_ONCE = 4 << 20
"""UTF-8 bytes encoded together: enough to keep every core busy."""

_DOCUMENTS_AT_ONCE = 1 << 16

_LARGEST_DOCUMENT = (1 << 31) - (1 << 24)
"""UTF-8 bytes of one document: Arrow counts a batch's tokens in 32 bits."""

_TOKENS_A_BATCH = 1 << 22
"""Ids in one record batch: large, since opening a store reads the head of each."""

_TOKENS_A_FILE = 1 << 29
"""1 GiB of 16-bit ids; then the next file begins, so that any tool can carry the files."""


@dataclass
class _Counts:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    unknown_tokens: int = 0
    empty_documents: int = 0


class _SplitWriter:
    """Appends encoded documents to one split's Arrow files and hashes them on the way."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from datasets import Features, List, Value

        folder.mkdir()
        self._folder = folder
        self._dtype = np.dtype(dtype)
        self._features = Features({"input_ids": List(Value(dtype)), "num_bytes": Value("int64")})
        self._names: list[str] = []
        self._tokens_in_file = 0
        self._writer: Any = None
        self._waiting: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._ids_hash = hashlib.sha256()
        self._rows_hash = hashlib.sha256()

    def append(self, flat: NDArray[Any], lengths: NDArray[Any], num_bytes: NDArray[Any]) -> None:
        """Take some documents: their ids end to end, and how many ids and bytes each has."""
        self._waiting.append((flat, lengths, num_bytes))
        if sum(len(ids) for ids, _, _ in self._waiting) >= _TOKENS_A_BATCH:
            self._write_batch()

    def _write_batch(self) -> None:
        import pyarrow as pa

        flat, lengths, num_bytes = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting.clear()
        if self._writer is None or self._tokens_in_file + len(flat) > _TOKENS_A_FILE:
            self._open_next_file()
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        input_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
        table = pa.table({"input_ids": input_ids, "num_bytes": pa.array(num_bytes)})
        self._writer.write_table(table, writer_batch_size=len(lengths))
        self._tokens_in_file += len(flat)
        # Ids and rows apart, in one byte order: how documents were batched leaves no trace.
        self._ids_hash.update(flat.astype(flat.dtype.newbyteorder("<"), copy=False).data)
        self._rows_hash.update(np.stack((lengths, num_bytes), axis=1).astype("<i8").data)

    def _open_next_file(self) -> None:
        from datasets.arrow_writer import ArrowWriter

        if self._writer is not None:
            self._writer.finalize()
        self._names.append(f"tokens-{len(self._names):05d}.arrow")
        self._tokens_in_file = 0
        self._writer = ArrowWriter(
            features=self._features, path=str(self._folder / self._names[-1])
        )

    def close(self) -> str:
        """Finish the files, add what `load_from_disk` looks for, and return the content's hash."""
        from datasets import DatasetInfo

        if self._waiting:
            self._write_batch()
        if self._writer is None:
            self._open_next_file()
        self._writer.finalize()
        content = self._ids_hash.hexdigest() + self._rows_hash.hexdigest()
        digest = hashlib.sha256(content.encode()).hexdigest()
        DatasetInfo(features=self._features).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in self._names],
            "_fingerprint": digest[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        return digest

    def abandon(self) -> None:
        """Let go of an open file after an error."""
        if self._writer is not None:
            self._writer.close()


def _batched(
    documents: Iterable[Document], counts: _Counts
) -> Iterator[tuple[list[str], list[int]]]:
    """Group texts until they are worth encoding; empty ones are counted and left out."""
    texts: list[str] = []
    sizes: list[int] = []
    total = 0
    for document in documents:
        if not document.text:
            counts.empty_documents += 1
            continue
        texts.append(document.text)
        sizes.append(len(document.text.encode("utf-8")))
        if sizes[-1] > _LARGEST_DOCUMENT:
            raise DataError(
                f"{document.source} is one document of {sizes[-1]:,} bytes, but a document may "
                f"have {_LARGEST_DOCUMENT:,}. Cut it into several files or records."
            )
        total += sizes[-1]
        if total >= _BYTES_AT_ONCE or len(texts) >= _DOCUMENTS_AT_ONCE:
            yield texts, sizes
            texts, sizes, total = [], [], 0
    if texts:
        yield texts, sizes


def _write_split(
    folder: Path,
    tokenizer: "PreTrainedTokenizerFast",
    documents: Iterable[Document],
    on_progress: Callable[[str, int], None] | None,
) -> dict[str, Any]:
    dtype = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    counts = _Counts()
    writer = _SplitWriter(folder, dtype)
    try:
        for texts, sizes in _batched(documents, counts):
            encoded = encode_documents(tokenizer, texts)
            lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
            flat = np.fromiter(
                itertools.chain.from_iterable(encoded), dtype=dtype, count=int(lengths.sum())
            )
            writer.append(flat, lengths, np.array(sizes, dtype=np.int64))
            counts.documents += len(texts)
            counts.tokens += len(flat)
            counts.bytes += sum(sizes)
            counts.unknown_tokens += int(np.count_nonzero(flat == unknown))
            if on_progress is not None:
                on_progress(folder.name, counts.bytes)
    except BaseException:
        writer.abandon()
        raise
    return {**vars(counts), "dtype": dtype, "content": writer.close()}


def write_token_store(
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    documents: Mapping[str, Iterable[Document]],
    facts: Mapping[str, Any],
    on_progress: Callable[[str, int], None] | None = None,
) -> None:
    """Encode both splits and write the tokens folder of a run, whole or not at all.

    The same documents and tokenizer give the same bytes in the same files. Documents with no text
    have no tokens: they are left out and counted as `empty_documents`.

    Args:
        folder: Where the store will stand; an older one is replaced.
        tokenizer: From `train_tokenizer` or `load_tokenizer`.
        documents: For each of `train` and `validation`, its documents, read once.
        facts: JSON values for the manifest: what the corpus was. Added are `tokenizer`
            (`tokenizer_fingerprint`), `vocab_size`, `fingerprint` and `splits`, which counts
            documents, tokens, bytes, unknown_tokens and empty_documents of each split.
        on_progress: Called now and then with the split's name and the bytes of text done in it.

    Raises:
        DataError: If a split has fewer than two tokens, or a document cannot be stored.
    """
    collected: dict[str, Any] = dict(facts)
    with write_folder(folder, kind="tokens", facts=collected) as staging:
        splits = {}
        for name in SPLITS:
            splits[name] = _write_split(staging / name, tokenizer, documents[name], on_progress)
            if splits[name]["tokens"] < 2:
                raise DataError(
                    f"The {name} split has {splits[name]['tokens']} tokens in "
                    f"{splits[name]['documents']} documents, but predicting one needs 2. "
                    "Add text, or change data.validation_fraction or data.validation_files."
                )
        encoding = tokenizer_fingerprint(tokenizer)
        contents = [splits[name]["content"] for name in SPLITS]
        collected |= {
            "tokenizer": encoding,
            "vocab_size": len(tokenizer),
            "splits": splits,
            "fingerprint": fingerprint([encoding, contents]),
        }


def _map_into_memory(folder: Path) -> "datasets.Dataset":
    import datasets
    import pyarrow as pa

    try:
        # keep_in_memory=False even for a small set: datasets would copy it into memory.
        return datasets.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{folder} cannot be read as a data set ({str(error).splitlines()[0]}). "
            "The folder is damaged: delete it and prepare the tokens again."
        ) from error


class TokenStore:
    """One split, mapped into memory. Positions run from 0 to `num_tokens`."""

    def __init__(self, folder: Path, counts: Mapping[str, Any]) -> None:
        """Map a split's files.

        Args:
            folder: A split's folder inside a token store.
            counts: What the manifest says about the split.
        """
        dataset = _map_into_memory(folder)
        batches = dataset.data.column("input_ids").chunks
        # Views into the mapped files, one for each record batch. A batch may begin inside its
        # buffer, so its first offset need not be 0.
        self._ids = [batch.values.to_numpy(zero_copy_only=True) for batch in batches]
        self._offsets = [batch.offsets.to_numpy(zero_copy_only=True) for batch in batches]
        sizes = [int(offsets[-1] - offsets[0]) for offsets in self._offsets]
        self._bases = [0, *itertools.accumulate(sizes)]
        self.num_tokens = self._bases[-1]
        self.num_documents = len(dataset)
        self.num_bytes = int(counts["bytes"])
        if (self.num_tokens, self.num_documents) != (counts["tokens"], counts["documents"]):
            raise ArtifactError(
                f"{folder} holds {self.num_tokens} tokens in {self.num_documents} documents, but "
                f"the manifest says {counts['tokens']} in {counts['documents']}. "
                "The folder is damaged: delete it and prepare the tokens again."
            )

    def _batches_between(self, start: int, stop: int) -> range:
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        first = bisect.bisect_right(self._bases, start) - 1
        return range(first, bisect.bisect_left(self._bases, stop, lo=first))

    def _read_into(self, out: NDArray[np.int64], start: int, stop: int) -> None:
        for index in self._batches_between(start, stop):
            base, end = self._bases[index], self._bases[index + 1]
            low, high = max(start, base), min(stop, end)
            shift = int(self._offsets[index][0]) - base
            out[low - start : high - start] = self._ids[index][low + shift : high + shift]

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
        for index in self._batches_between(start, stop):
            offsets = self._offsets[index]
            shift = int(offsets[0]) - self._bases[index]
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
    """The manifest's facts (see `write_token_store`)."""


def open_token_store(folder: Path, *, check_hashes: bool = False) -> TokenStores:
    """Open the folder that `write_token_store` wrote.

    Args:
        folder: A run's tokens folder.
        check_hashes: Read every file and compare its SHA-256. Sizes are always compared.

    Raises:
        ArtifactError: If the folder is missing, damaged, or not a token store.
    """
    facts = read_manifest(folder, kind="tokens", check_hashes=check_hashes)
    train, validation = (TokenStore(folder / name, facts["splits"][name]) for name in SPLITS)
    return TokenStores(
        train=train, validation=validation, fingerprint=facts["fingerprint"], facts=facts
    )
