"""The corpus becomes a token store, part by part.

Each part is encoded and written alone, whole or not at all, under `<store>.partial/parts/`. Parts
that are there already, made from the same text by the same tokenizer, are kept, so a preparation
that was killed goes on where it stopped, and several processes or machines may share the parts
among them. When all are there, the store gets its manifest and its name: nothing is copied. The
result is the same, byte for byte, whoever made the parts, in whatever order and after whatever
kills.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tinyformer.artifacts import fingerprint, publish_folder, read_file_hashes, read_manifest
from hf_tinyformer.data.store.part_writing import (
    SKIPPED_NAME,
    Content,
    Counts,
    Read,
    describe_columns,
    encode_part,
    partial_folder,
)
from hf_tinyformer.data.store.tokens import SPLITS, STORE_LAYOUT
from hf_tinyformer.data.text.config import Split
from hf_tinyformer.data.text.corpus import summarize_skipped
from hf_tinyformer.data.text.documents import Document, Skipped
from hf_tinyformer.data.text.parts import Part
from hf_tinyformer.data.tokenization.fast_encoding import DocumentEncoder
from hf_tinyformer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_SOURCE_COUNTS = ("documents", "tokens", "bytes", "empty_documents")


def _add_sources(
    parts: Sequence[Part], found: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Add up the parts: counts and files of each split and each source, and the content's hash."""
    totals = {split: Counts() for split in SPLITS}
    contents = {split: Content() for split in SPLITS}
    files: dict[str, list[list[Any]]] = {split: [] for split in SPLITS}
    sources: dict[str, dict[str, dict[str, int]]] = {}
    for part, facts in zip(parts, found, strict=True):
        for split in SPLITS:
            counted = facts["splits"][split]
            source = sources.setdefault(part.source, {}).setdefault(
                split,
                {**dict.fromkeys(_SOURCE_COUNTS, 0), "start": totals[split].tokens},
            )
            for name in _SOURCE_COUNTS:
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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    information = {"description": "", "features": describe_columns(dtype)}
    (folder / "dataset_info.json").write_text(
        json.dumps(information, indent=2) + "\n", encoding="utf-8"
    )
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
    partial = partial_folder(folder)
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
    Documents without tokens, most of them without text, are left out and counted as
    `empty_documents`.

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

    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    part = Part("corpus/00000", "corpus", {})
    try:
        prepare_token_store(folder, tokenizer=tokenizer, parts=[part], read=read, facts=facts)
    except BaseException:
        shutil.rmtree(partial_folder(folder), ignore_errors=True)  # nobody could go on from it
        raise
