"""One part of the corpus becomes one part of a token store, whole or not at all."""

import hashlib
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import fingerprint, read_manifest, write_folder
from hf_tinyformer.data.store.tokens import SPLITS, STORE_LAYOUT
from hf_tinyformer.data.text.config import Split
from hf_tinyformer.data.text.documents import Document, Skipped
from hf_tinyformer.data.text.parts import Part
from hf_tinyformer.data.tokenization.fast_encoding import DocumentEncoder
from hf_tinyformer.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Read = Callable[[Part, Callable[[Skipped], None]], Iterable[tuple[Split, Document]]]
"""Gives a part's documents, each with its split, in order, and tells of what it skips:
`partial(read_part, config)`."""

SKIPPED_NAME = "skipped.jsonl"
"""What was left out, a line each with `place` and `reason`: of each part, and of the store."""

_BYTES_AT_ONCE = 8 << 20
"""UTF-8 bytes encoded together: enough to keep every core busy."""

_DOCUMENTS_AT_ONCE = 1 << 16

_BATCHES_AHEAD = 2
"""Batches read while one is encoded."""

_LARGEST_DOCUMENT = (1 << 31) - (1 << 24)
"""UTF-8 bytes of one document: Arrow counts a batch's tokens in 32 bits."""

_TOKENS_A_BATCH = 1 << 22
"""Ids in one record batch: large, since opening a file reads the head of each."""

_TOKENS_A_FILE = 1 << 29
"""1 GiB of 16-bit ids; then the next file begins, so that any tool can carry the files."""

_PRIME = (1 << 255) - 19
_STEP = int.from_bytes(hashlib.sha256(b"documents in order").digest(), "big") % _PRIME


@dataclass
class Content:
    """A hash of documents in order that can be joined: how they were divided leaves no trace.

    A polynomial over each document's hash: joining two runs needs only their values and lengths.
    """

    value: int = 0
    documents: int = 0

    def add(self, ids: NDArray[Any], lengths: NDArray[Any], num_bytes: NDArray[Any]) -> None:
        """Take documents: their ids end to end, and how many ids and bytes each has."""
        raw = ids.astype(ids.dtype.newbyteorder("<"), copy=False).tobytes()
        ends = (np.cumsum(lengths) * ids.dtype.itemsize).tolist()
        value, begin = self.value, 0
        for end, size in zip(ends, num_bytes.tolist(), strict=True):
            digest = hashlib.blake2b(raw[begin:end], digest_size=32, salt=size.to_bytes(8, "big"))
            value = (value * _STEP + int.from_bytes(digest.digest(), "big")) % _PRIME
            begin = end
        self.value = value
        self.documents += len(ends)

    def join(self, value: int, documents: int) -> None:
        """Take the documents that another hash has seen, after all of this one's."""
        self.value = (self.value * pow(_STEP, documents, _PRIME) + value) % _PRIME
        self.documents += documents


@dataclass
class Counts:
    """What a split of a part, a source or a store has."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    unknown_tokens: int = 0
    hidden_bytes: int = 0
    empty_documents: int = 0

    def add(self, other: Mapping[str, Any]) -> None:
        """Count what another has too."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + int(other[name]))


def describe_columns(dtype: str) -> dict[str, Any]:
    """Name and type a store's columns as `datasets` does, which takes a second to import."""
    ids = {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "List"}
    return {"input_ids": ids, "num_bytes": {"dtype": "int64", "_type": "Value"}}


def _as_column(numbers: NDArray[Any], kind: Any) -> "pa.Array":
    """Lend an array to Arrow. `pa.array` would import pandas first."""
    import pyarrow as pa

    lent = pa.py_buffer(np.ascontiguousarray(numbers))
    return pa.Array.from_buffers(kind, len(numbers), [None, lent])


@dataclass
class _SplitWriter:
    """Appends one split's documents to a part's Arrow files."""

    folder: Path
    split: str
    dtype: str
    counts: Counts = field(default_factory=Counts)
    content: Content = field(default_factory=Content)
    files: list[list[Any]] = field(default_factory=list)
    writer: Any = None
    waiting: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = field(default_factory=list)
    tokens_waiting: int = 0

    def append(self, flat: NDArray[Any], lengths: NDArray[Any], num_bytes: NDArray[Any]) -> None:
        """Take some documents: their ids end to end, and how many ids and bytes each has."""
        self.content.add(flat, lengths, num_bytes)
        self.counts.documents += len(lengths)
        self.counts.tokens += len(flat)
        self.counts.bytes += int(num_bytes.sum())
        self.waiting.append((flat, lengths, num_bytes))
        self.tokens_waiting += len(flat)
        if self.tokens_waiting >= _TOKENS_A_BATCH:
            self._write_batch()

    def _write_batch(self) -> None:
        import pyarrow as pa

        flat, lengths, num_bytes = map(np.concatenate, zip(*self.waiting, strict=True))
        self.waiting.clear()
        self.tokens_waiting = 0
        if self.writer is None or self.files[-1][1] + len(flat) > _TOKENS_A_FILE:
            self._open_next_file()
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        schema = self._schema()
        ids = _as_column(flat, schema.field("input_ids").type.value_type)
        ends = _as_column(offsets, pa.int32())
        columns = [pa.ListArray.from_arrays(ends, ids), _as_column(num_bytes, pa.int64())]
        self.writer.write_batch(pa.record_batch(columns, schema=schema))
        self.files[-1][1] += len(flat)
        self.files[-1][2] += len(lengths)

    def _schema(self) -> "pa.Schema":
        import pyarrow as pa

        ids = pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)))
        described = json.dumps({"info": {"features": describe_columns(self.dtype)}})
        schema = pa.schema({"input_ids": ids, "num_bytes": pa.int64()})
        return schema.with_metadata({"huggingface": described})

    def _open_next_file(self) -> None:
        import pyarrow as pa

        if self.writer is not None:
            self.writer.close()
        name = f"{self.split}-{len(self.files):05d}.arrow"
        self.files.append([name, 0, 0])
        self.writer = pa.ipc.new_stream(str(self.folder / name), self._schema())

    def close(self) -> dict[str, Any]:
        """Finish the files and say what is in them."""
        if self.waiting:
            self._write_batch()
        if self.writer is not None:
            self.writer.close()
        content = f"{self.content.value:064x}"
        return {**vars(self.counts), "content": content, "files": self.files}

    def abandon(self) -> None:
        """Let go of an open file after an error."""
        if self.writer is not None:
            self.writer.close()


@dataclass
class _Waiting:
    """One split's texts that are not encoded yet."""

    texts: list[str] = field(default_factory=list)
    utf8: list[bytes] = field(default_factory=list)
    num_bytes: int = 0

    def take(self, document: Document) -> bool:
        """Keep a document; tell whether there are enough of them."""
        utf8 = document.text.encode()
        size = len(utf8)
        if size > _LARGEST_DOCUMENT:
            raise DataError(
                f"{document.source} is one document of {size:,} bytes, but a document may have "
                f"{_LARGEST_DOCUMENT:,}. Cut it into several files or records."
            )
        self.texts.append(document.text)
        self.utf8.append(utf8)
        self.num_bytes += size
        return self.num_bytes >= _BYTES_AT_ONCE or len(self.texts) >= _DOCUMENTS_AT_ONCE


def _write_batch(
    batch: _Waiting,
    encoded: Future[tuple[NDArray[Any], NDArray[Any]]],
    strange: list[int],
    writer: _SplitWriter,
    encoder: DocumentEncoder,
) -> int:
    """Write some texts that are encoded and examined; return how many bytes they had."""
    flat, lengths = encoder.correct(*encoded.result(), batch.texts, strange)
    sizes = np.fromiter(map(len, batch.utf8), dtype=np.int64, count=len(batch.utf8))
    # A tokenizer without a frame may give no token for white space.
    filled = lengths > 0
    writer.counts.empty_documents += int(np.count_nonzero(~filled))
    if filled.any():
        writer.append(flat, lengths[filled], sizes[filled])
    unknown = encoder.count_unknown(flat, len(lengths))
    writer.counts.unknown_tokens += unknown
    if unknown:
        writer.counts.hidden_bytes += encoder.count_hidden_bytes(batch.texts)
    return batch.num_bytes


def _write_part(
    staging: Path,
    documents: Iterable[tuple[Split, Document]],
    encoder: DocumentEncoder,
    on_bytes: Callable[[int], None] | None,
) -> dict[str, Any]:
    writers = {split: _SplitWriter(staging, split, encoder.dtype) for split in SPLITS}
    waiting = {split: _Waiting() for split in SPLITS}
    # Documents without text; the other thread counts those without tokens.
    num_empty: Counter[str] = Counter()
    running: deque[Future[int]] = deque()

    def collect(most: int) -> None:
        while len(running) > most:
            num_bytes = running.popleft().result()
            if on_bytes is not None:
                on_bytes(num_bytes)

    # One thread reads and examines, one encodes and writes: encoding needs no interpreter.
    with ThreadPoolExecutor(1) as pool:

        def encode(split: str) -> None:
            batch, waiting[split] = waiting[split], _Waiting()
            encoded = pool.submit(encoder.encode, batch.texts, batch.utf8)
            strange = encoder.examine(batch.texts)
            written = pool.submit(_write_batch, batch, encoded, strange, writers[split], encoder)
            running.append(written)
            collect(_BATCHES_AHEAD)

        try:
            for split, document in documents:
                if not document.text:
                    num_empty[split] += 1
                elif waiting[split].take(document):
                    encode(split)
            for name in SPLITS:
                if waiting[name].texts:
                    encode(name)
            collect(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for writer in writers.values():
                writer.abandon()
            raise
    for name in SPLITS:
        writers[name].counts.empty_documents += num_empty[name]
    return {split: writer.close() for split, writer in writers.items()}


@dataclass
class _SkipList:
    """Writes down what reading a part leaves out."""

    path: Path
    count: int = 0

    def add(self, skipped: Skipped) -> None:
        """Append one."""
        self.count += 1
        # A file's name that is not UTF-8 has lone surrogates; JSON spells them as Python does.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(json.dumps(skipped._asdict(), ensure_ascii=False) + "\n")


def partial_folder(folder: Path) -> Path:
    """Return where a store's parts lie until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


def _holds_part(path: Path, inputs: str, encoder: DocumentEncoder) -> bool:
    """Tell whether a part is there, made from just these inputs and by a library to be trusted."""
    if not path.exists():
        return False
    try:
        facts = read_manifest(path, kind="tokens part")
    except ArtifactError as error:
        logger.warning("%s It is made again.", error)
        return False
    if facts["inputs"] != inputs:
        return False
    if facts["distrusts"] is not None:
        encoder.distrust(facts["distrusts"])
    return facts["encoder"] not in encoder.distrusted


def encode_part(
    folder: Path,
    part: Part,
    *,
    encoder: DocumentEncoder,
    read: Read,
    rules: Any = None,
    on_bytes: Callable[[int], None] | None = None,
) -> bool:
    """Encode one part of a store that is not whole yet, unless it is there already.

    Any process may do it, on any machine that sees the folder; no two the same part at a time.

    Args:
        folder: Where the whole store will stand. The part goes to `<folder>.partial`.
        part: Which one, from `plan_parts`.
        encoder: Made once from the run's tokenizer.
        read: Gives the part's documents.
        rules: JSON values that its documents and their split depend on, besides its description.
        on_bytes: Called now and then with the bytes of text encoded since the last call.

    Returns:
        Whether it was made now; otherwise it was there.

    Raises:
        DataError: If a document cannot be read or stored.
    """
    path = partial_folder(folder) / "parts" / part.name
    described = [part.source, part.description, rules]
    inputs = fingerprint([STORE_LAYOUT, described, encoder.tokenizer])
    if _holds_part(path, inputs, encoder):
        return False
    facts: dict[str, Any] = {"inputs": inputs, "source": part.source, "vocab": encoder.vocab_size}
    while True:
        name = encoder.name
        with write_folder(path, kind="tokens part", facts=facts) as staging:
            skipped = _SkipList(staging / SKIPPED_NAME)
            documents = read(part, skipped.add)
            facts["splits"] = _write_part(staging, documents, encoder, on_bytes)
            facts["skipped"] = skipped.count
            # By its name from before: whoever finds this part, should we be killed now, must see
            # that a library made it which this part itself distrusts.
            facts |= {"dtype": encoder.dtype, "encoder": name}
            facts["distrusts"] = next(iter(sorted(encoder.distrusted)), None)
        if encoder.name == name:
            return True
        # The fast library differed somewhere in this part: what it gave before is made again.
