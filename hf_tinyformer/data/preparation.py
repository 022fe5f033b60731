"""The corpus becomes a token store, part by part.

Each part is encoded and written alone, whole or not at all, under `<store>.partial/parts/`. Parts
that are there already, made from the same text by the same tokenizer, are kept, so a preparation
that was killed goes on where it stopped, and several processes or machines may share the parts
among them. When all are there, the store gets its manifest and its name: nothing is copied. The
result is the same, byte for byte, whoever made the parts, in whatever order and after whatever
kills.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import (
    fingerprint,
    publish_folder,
    read_file_hashes,
    read_manifest,
    write_folder,
)
from hf_tinyformer.data.corpus import Part, Split, summarize_skipped
from hf_tinyformer.data.documents import Document, Skipped
from hf_tinyformer.data.fast_encoding import DocumentEncoder
from hf_tinyformer.data.tokens import SPLITS, STORE_LAYOUT
from hf_tinyformer.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

Read = Callable[[Part, Callable[[Skipped], None]], Iterable[tuple[Split, Document]]]
"""Gives a part's documents, each with its split, in order, and tells of what it skips:
`partial(read_part, config)`."""

SKIPPED_NAME = "skipped.jsonl"
"""What was left out, a line each with `place` and `reason`: of each part, and of the store."""

_BYTES_AT_ONCE = 4 << 20
"""UTF-8 bytes encoded together: enough to keep every core busy."""

_DOCUMENTS_AT_ONCE = 1 << 16

_LARGEST_DOCUMENT = (1 << 31) - (1 << 24)
"""UTF-8 bytes of one document: Arrow counts a batch's tokens in 32 bits."""

_TOKENS_A_BATCH = 1 << 22
"""Ids in one record batch: large, since opening a file reads the head of each."""

_TOKENS_A_FILE = 1 << 29
"""1 GiB of 16-bit ids; then the next file begins, so that any tool can carry the files."""

_PRIME = (1 << 255) - 19
_STEP = int.from_bytes(hashlib.sha256(b"documents in order").digest(), "big") % _PRIME


@dataclass
class _Content:
    """A hash of documents in order that can be joined: how they were divided leaves no trace.

    A polynomial over each document's hash: joining two runs needs only their values and lengths.
    """

    value: int = 0
    documents: int = 0

    def add(self, ids: NDArray[Any], lengths: NDArray[Any], num_bytes: NDArray[Any]) -> None:
        """Take documents: their ids end to end, and how many ids and bytes each has."""
        raw = memoryview(ids.astype(ids.dtype.newbyteorder("<"), copy=False)).cast("B")
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
class _Counts:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    unknown_tokens: int = 0
    hidden_bytes: int = 0
    empty_documents: int = 0

    def add(self, other: Mapping[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + int(other[name]))


def _features(dtype: str) -> Any:
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value(dtype)), "num_bytes": Value("int64")})


@dataclass
class _SplitWriter:
    """Appends one split's documents to a part's Arrow files."""

    folder: Path
    split: str
    dtype: str
    counts: _Counts = field(default_factory=_Counts)
    content: _Content = field(default_factory=_Content)
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
        input_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
        table = pa.table({"input_ids": input_ids, "num_bytes": pa.array(num_bytes)})
        self.writer.write_table(table, writer_batch_size=len(lengths))
        self.files[-1][1] += len(flat)
        self.files[-1][2] += len(lengths)

    def _open_next_file(self) -> None:
        from datasets.arrow_writer import ArrowWriter

        if self.writer is not None:
            self.writer.finalize()
        name = f"{self.split}-{len(self.files):05d}.arrow"
        self.files.append([name, 0, 0])
        self.writer = ArrowWriter(features=_features(self.dtype), path=str(self.folder / name))

    def close(self) -> dict[str, Any]:
        """Finish the files and say what is in them."""
        if self.waiting:
            self._write_batch()
        if self.writer is not None:
            self.writer.finalize()
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
    sizes: list[int] = field(default_factory=list)
    bytes: int = 0

    def take(self, document: Document) -> bool:
        """Keep a document; tell whether there are enough of them."""
        size = len(document.text.encode("utf-8"))
        if size > _LARGEST_DOCUMENT:
            raise DataError(
                f"{document.source} is one document of {size:,} bytes, but a document may have "
                f"{_LARGEST_DOCUMENT:,}. Cut it into several files or records."
            )
        self.texts.append(document.text)
        self.sizes.append(size)
        self.bytes += size
        return self.bytes >= _BYTES_AT_ONCE or len(self.texts) >= _DOCUMENTS_AT_ONCE


def _write_part(
    staging: Path,
    documents: Iterable[tuple[Split, Document]],
    encoder: DocumentEncoder,
    on_bytes: Callable[[int], None] | None,
) -> dict[str, Any]:
    writers = {split: _SplitWriter(staging, split, encoder.dtype) for split in SPLITS}
    waiting = {split: _Waiting() for split in SPLITS}

    def encode(split: str) -> None:
        batch, writer = waiting[split], writers[split]
        waiting[split] = _Waiting()
        flat, lengths = encoder.encode(batch.texts)
        writer.append(flat, lengths, np.array(batch.sizes, dtype=np.int64))
        unknown = encoder.count_unknown(flat)
        writer.counts.unknown_tokens += unknown
        if unknown:
            writer.counts.hidden_bytes += encoder.count_hidden_bytes(batch.texts)
        if on_bytes is not None:
            on_bytes(batch.bytes)

    try:
        for split, document in documents:
            if not document.text:
                writers[split].counts.empty_documents += 1
            elif waiting[split].take(document):
                encode(split)
        for split in SPLITS:
            if waiting[split].texts:
                encode(split)
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return {split: writer.close() for split, writer in writers.items()}


@dataclass
class _SkipList:
    """Writes down what reading a part leaves out."""

    path: Path
    count: int = 0

    def add(self, skipped: Skipped) -> None:
        """Append one."""
        self.count += 1
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(skipped._asdict(), ensure_ascii=False) + "\n")


def _partial(folder: Path) -> Path:
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
    if facts["distrusts"] is not None:
        encoder.distrust(facts["distrusts"])
    return bool(facts["inputs"] == inputs) and facts["encoder"] not in encoder.distrusted


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
    path = _partial(folder) / "parts" / part.name
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
            facts |= {"dtype": encoder.dtype, "encoder": encoder.name}
            facts["distrusts"] = next(iter(sorted(encoder.distrusted)), None)
        if encoder.name == name:
            return True
        # The fast library differed somewhere in this part: what it gave before is made again.


def _add_sources(
    parts: Sequence[Part], found: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Add up the parts: counts and files of each split and each source, and the content's hash."""
    totals = {split: _Counts() for split in SPLITS}
    contents = {split: _Content() for split in SPLITS}
    files: dict[str, list[list[Any]]] = {split: [] for split in SPLITS}
    sources: dict[str, dict[str, dict[str, int]]] = {}
    for part, facts in zip(parts, found, strict=True):
        for split in SPLITS:
            counted = facts["splits"][split]
            source = sources.setdefault(part.source, {}).setdefault(
                split,
                {"documents": 0, "tokens": 0, "bytes": 0, "start": totals[split].tokens},
            )
            for name in ("documents", "tokens", "bytes"):
                source[name] += counted[name]
            totals[split].add(counted)
            source["stop"] = totals[split].tokens
            contents[split].join(int(counted["content"], 16), counted["documents"])
            files[split] += [
                [f"parts/{part.name}/{name}", tokens, documents]
                for name, tokens, documents in counted["files"]
            ]
    splits = {
        split: {
            **vars(totals[split]),
            "content": f"{contents[split].value:064x}",
            "files": files[split],
        }
        for split in SPLITS
    }
    return splits, sources, [splits[split]["content"] for split in SPLITS]


def _describe_split(folder: Path, split: Mapping[str, Any], dtype: str) -> None:
    """Write what `datasets.load_from_disk` looks for."""
    from datasets import DatasetInfo

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    DatasetInfo(features=_features(dtype)).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": f"../{name}"} for name, _, _ in split["files"]],
        "_fingerprint": split["content"][:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _remove_strangers(partial: Path, parts: Sequence[Part]) -> None:
    """Remove parts of another plan and what killed writers left, so that only the store remains."""
    wanted = {partial / "parts" / part.name for part in parts}
    above = {parent for path in wanted for parent in path.parents}

    def clean(folder: Path) -> None:
        for entry in folder.iterdir():
            if entry in wanted:
                continue
            if entry in above:
                clean(entry)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    clean(partial)


def _list_skipped(partial: Path, parts: Sequence[Part], found: Sequence[Mapping[str, Any]]) -> int:
    """Join the parts' lists into the store's, and return how many were skipped."""
    num_skipped = sum(int(facts["skipped"]) for facts in found)
    if not num_skipped:
        return 0
    first = ""
    with (partial / SKIPPED_NAME).open("wb") as stream:
        for part, facts in zip(parts, found, strict=True):
            if facts["skipped"]:
                content = (partial / "parts" / part.name / SKIPPED_NAME).read_bytes()
                first = first or str(json.loads(content.splitlines()[0])["reason"])
                stream.write(content)
    logger.warning("%s All are in %s.", summarize_skipped(num_skipped, first), SKIPPED_NAME)
    return num_skipped


def _check_splits(splits: Mapping[str, Any]) -> None:
    for name, split in splits.items():
        if split["tokens"] < 2:
            raise DataError(
                f"The {name} split has {split['tokens']} tokens in "
                f"{split['documents']} documents, but predicting one needs 2. "
                "Add text, or change data.validation_fraction or data.validation_files."
            )


def _seal(
    folder: Path, parts: Sequence[Part], encoder: DocumentEncoder, facts: Mapping[str, Any]
) -> None:
    partial = _partial(folder)
    _remove_strangers(partial, parts)
    found, known = [], {}
    for part in parts:
        path = partial / "parts" / part.name
        found.append(read_manifest(path, kind="tokens part"))
        for name, hashes in read_file_hashes(path).items():
            known[f"parts/{part.name}/{name}"] = hashes
    splits, sources, contents = _add_sources(parts, found)
    _check_splits(splits)
    for split in SPLITS:
        _describe_split(partial / split, splits[split], encoder.dtype)
    collected = {
        **facts,
        "layout": STORE_LAYOUT,
        "tokenizer": encoder.tokenizer,
        "vocab_size": encoder.vocab_size,
        "dtype": encoder.dtype,
        "splits": splits,
        "sources": sources,
        "skipped": _list_skipped(partial, parts, found),
        "fingerprint": fingerprint([encoder.tokenizer, contents]),
    }
    publish_folder(partial, folder, kind="tokens", facts=collected, known=known)


def prepare_token_store(
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    parts: Sequence[Part],
    read: Read,
    facts: Mapping[str, Any],
    rules: Any = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> None:
    """Encode every part that is not there yet, and make a store of them, whole or not at all.

    After a kill, the same call goes on: at most one part is encoded twice. The same documents and
    tokenizer give the same fingerprint, and the same parts the same bytes in the same files.
    Documents with no text have no tokens: they are left out and counted as `empty_documents`.

    Args:
        folder: Where the store will stand; an older one is replaced when this one is whole.
        tokenizer: From `train_tokenizer` or `load_tokenizer`.
        parts: From `plan_parts`, those of one source together.
        read: Gives a part's documents.
        facts: JSON values for the manifest: what the corpus was. Added are `tokenizer`
            (`tokenizer_fingerprint`), `vocab_size`, `fingerprint`, `splits`, which counts
            documents, tokens, bytes, unknown_tokens, hidden_bytes and empty_documents of each
            split and lists its files, and `sources`, which counts them for each source and says
            which positions (`start` to `stop - 1`) its tokens have, and `skipped`, the number of
            lines in `skipped.jsonl`.
        rules: JSON values that documents and their split depend on, besides parts' descriptions.
        on_progress: Called now and then with the parts done, all parts, and the bytes of text
            encoded by this call.

    Raises:
        DataError: If a split has fewer than two tokens, or a document cannot be read or stored.
    """
    encoder = DocumentEncoder(tokenizer)
    num_bytes = 0

    def encode_all() -> None:
        for number, part in enumerate(parts):

            def report(more: int, number: int = number) -> None:
                nonlocal num_bytes
                num_bytes += more
                if on_progress is not None:
                    on_progress(number, len(parts), num_bytes)

            encode_part(folder, part, encoder=encoder, read=read, rules=rules, on_bytes=report)

    trusted = None
    while trusted != encoder.name:
        # Once more if the fast library fell out of trust: its parts are made again.
        trusted = encoder.name
        encode_all()
    _seal(folder, parts, encoder, facts)


def write_token_store(
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    documents: Mapping[Split, Iterable[Document]],
    facts: Mapping[str, Any],
) -> None:
    """Make a store of documents at hand, in one part.

    Args:
        folder: Where the store will stand; an older one is replaced.
        tokenizer: From `train_tokenizer` or `load_tokenizer`.
        documents: For each of `train` and `validation`, its documents, read once.
        facts: JSON values for the manifest, see `prepare_token_store`.

    Raises:
        DataError: If a split has fewer than two tokens, or a document cannot be stored.
    """

    def read(_part: Part, _on_skip: Callable[[Skipped], None]) -> Iterator[tuple[Split, Document]]:
        for split, texts in documents.items():
            for document in texts:
                yield split, document

    shutil.rmtree(_partial(folder), ignore_errors=True)
    part = Part("corpus/00000", "corpus", {})
    try:
        prepare_token_store(folder, tokenizer=tokenizer, parts=[part], read=read, facts=facts)
    except BaseException:
        shutil.rmtree(_partial(folder), ignore_errors=True)  # nobody could go on from it
        raise
