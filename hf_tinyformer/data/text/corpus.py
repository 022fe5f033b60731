"""The corpus: its sources in parts, its documents in order, and which of them are held out.

    sources ──> parts ──> documents ──> train | validation

A part is what one process prepares at a time. Parts can be read alone, in any order and anywhere;
read in their order they are the corpus.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_tinyformer.data.text.config import HELD_OUT, ONLY_SOURCE, DataConfig, Split
from hf_tinyformer.data.text.documents import Document, Refuse, Skipped, refuse_all
from hf_tinyformer.data.text.drop_list import read_drop_list
from hf_tinyformer.data.text.files import TEXT_ENDINGS, file_kind, list_files
from hf_tinyformer.data.text.hub_datasets import describe_dataset, needs_pin, pin_revision
from hf_tinyformer.data.text.parts import Part, plan_files, plan_source, read_source
from hf_tinyformer.data.text.sources import (
    Source,
    describe_file,
    describe_standard_library,
    rule_of,
)
from hf_tinyformer.errors import DataError

logger = logging.getLogger(__name__)


def _describe_source(config: DataConfig, name: str, source: Source) -> dict[str, Any]:
    if source.builtin is not None:
        return {"corpus": describe_standard_library()}
    rule = rule_of(source, "")
    described = {rule.setting.removeprefix("."): rule.value}
    if source.dataset is None:
        files = list_files(f"{config.key_of(name)}.files", source.files, _refuse(config, None))
        return {"corpus": {"files": [describe_file(file) for file in files]}} | described
    dataset = describe_dataset(source)
    if source.streaming:
        dataset["shards"] = [source.shard_seed, source.max_shards, source.max_documents]
    return {"corpus": dataset} | described


def _split_rule(config: DataConfig) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if not config.validation_files:
        rule["validation"] = [config.validation_split, config.validation_fraction]
    if config.on_error != "raise":
        rule["on_error"] = config.on_error
    if config.drop is not None:
        rule["drop"] = read_drop_list(Path(config.drop)).fingerprint
    return rule


def describe_inputs(config: DataConfig) -> dict[str, Any]:
    """Describe what `iterate_documents` would read, without reading it.

    Returns:
        JSON values, equal as long as the corpus and its split are: names, sizes and times of
        files, commits of Hub data sets, and the settings that choose documents. No absolute path
        is in it, nor the sources' weights. A Hub data set whose revision is no commit is described
        by its name, so that a new version goes unnoticed; see `pin_revisions`.

    Raises:
        DataError: If a glob matches nothing, or a file that cannot be read.
    """
    sources = {
        name: _describe_source(config, name, source)
        for name, source in config.named_sources().items()
    }
    described: dict[str, Any] = {"sources": sources} if config.sources else sources[ONLY_SOURCE]
    if config.validation_files:
        refuse = _refuse(config, None)
        files = list_files("data.validation_files", config.validation_files, refuse)
        described["validation_files"] = [describe_file(file) for file in files]
    return described | _split_rule(config)


def pin_revisions(
    config: DataConfig, known: dict[str, str] | None = None
) -> tuple[DataConfig, dict[str, str]]:
    """Name the commit of every Hub data set, so that all that follows reads the same data.

    Args:
        config: The settings.
        known: Commits found before, by `ID@REVISION`; the Hub is asked for the others only.

    Returns:
        The settings with commits as revisions, and all commits by `ID@REVISION`.

    Raises:
        DataError: If the Hub has to be asked and cannot.
    """
    pinned = dict(known or {})

    def commit_of(source: Source, key: str) -> str | None:
        if not needs_pin(source):
            return source.dataset_revision
        wanted = f"{source.dataset}@{source.dataset_revision or 'main'}"
        if wanted not in pinned:
            pinned[wanted] = pin_revision(source, key)
        return pinned[wanted]

    if not config.sources:
        return replace(config, dataset_revision=commit_of(config, "data")), pinned
    sources = {
        name: replace(source, dataset_revision=commit_of(source, config.key_of(name)))
        for name, source in config.sources.items()
    }
    return replace(config, sources=sources), pinned


def _refuse(config: DataConfig, on_skip: Callable[[Skipped], None] | None) -> Refuse:
    if config.on_error == "raise":
        return refuse_all

    def skip(place: str, error: DataError) -> None:
        if on_skip is not None:
            on_skip(Skipped(place, str(error)))

    return skip


def _cut(document: Document, place: int) -> tuple[Document, Document]:
    head, rest = document.text[:place], document.text[place:]
    later = document.source
    path, _, line = later.rpartition(":")
    if file_kind(Path(path)) in TEXT_ENDINGS:
        # Only there are the text's lines the file's; elsewhere the record is all there is to name.
        later = f"{path}:{int(line) + head.count(chr(10))}"
    return Document(head, document.source), Document(rest, later)


def _split_at(documents: Iterator[Document], cut: int) -> Iterator[tuple[Split, Document]]:
    """Give the first `cut` characters to training and the rest to validation."""
    begin = 0
    for document in documents:
        end = begin + len(document.text)
        if end <= cut:
            yield "train", document
        elif begin >= cut:
            yield "validation", document
        else:
            head, rest = _cut(document, cut - begin)
            yield "train", head
            yield "validation", rest
        begin = end


def _plan_tail(config: DataConfig, parts: list[Part]) -> list[Part]:
    """Add to each part of a source how many of its characters come before the cut."""
    sizes = [sum(len(document.text) for document in _read_whole(config, part)) for part in parts]
    cut = int(sum(sizes) * (1 - config.validation_fraction))
    planned = []
    for part, size in zip(parts, sizes, strict=True):
        before = {"train_characters": max(0, min(cut, size))}
        planned.append(replace(part, description=part.description | before))
        cut -= size
    return planned


def _read_whole(
    config: DataConfig, part: Part, on_skip: Callable[[Skipped], None] | None = None
) -> Iterator[Document]:
    """Read a part's documents before they are split."""
    refuse = _refuse(config, on_skip)
    if part.source == HELD_OUT:
        return read_source(config, "data", part, refuse)
    source = config.named_sources()[part.source]
    return read_source(source, config.key_of(part.source), part, refuse)


def plan_parts(config: DataConfig) -> list[Part]:
    """Divide the corpus into parts, always the same for the same files and settings.

    Parts come in the order of the sources, and within one in the order of its documents. Files of
    `validation_files` are parts of a source called `validation`, after all others. With
    `validation_split=tail` this reads the corpus once, to count its characters.

    Args:
        config: Where the corpus is and how it is split.

    Returns:
        The parts. `read_part` reads them, in any order and any process.

    Raises:
        DataError: If a glob matches nothing, or something it names cannot be read.
    """
    rule = _split_rule(config)
    skip = config.on_error == "skip"
    parts = []
    for name, source in config.named_sources().items():
        own = plan_source(name, source, config.key_of(name), skip=skip)
        own = [replace(part, description=part.description | rule) for part in own]
        if config.validation_split == "tail" and not config.validation_files:
            own = _plan_tail(config, own)
        parts += own
    if config.validation_files:
        patterns = config.validation_files
        setting = "data.validation_files"
        parts += plan_files(HELD_OUT, setting, patterns, config, "data", skip=skip)
    return parts


def read_part(
    config: DataConfig, part: Part, on_skip: Callable[[Skipped], None] | None = None
) -> Iterator[tuple[Split, Document]]:
    """Read one part's documents, each with the split it belongs to, in order.

    Empty documents come too; the token store counts them and leaves them out. A document is in
    validation if the BLAKE2b hash of its text is below the fraction, so the same text is always on
    the same side, in any corpus and any order; unless the settings say otherwise.

    Args:
        config: The settings that `plan_parts` had.
        part: From `plan_parts`.
        on_skip: Told of everything that `data.on_error=skip` leaves out.

    Yields:
        Split and document.

    Raises:
        DataError: If something in the part cannot be used; names file, line and byte.
    """
    documents = _read_and_split(config, part, on_skip)
    if config.drop is None:
        return documents
    dropped = read_drop_list(Path(config.drop))
    return (
        (split, document)
        for split, document in documents
        if not dropped.drops(document, split=split, source=part.source)
    )


def _read_and_split(
    config: DataConfig, part: Part, on_skip: Callable[[Skipped], None] | None
) -> Iterator[tuple[Split, Document]]:
    documents = _read_whole(config, part, on_skip)
    if config.validation_files:
        split: Split = "validation" if part.source == HELD_OUT else "train"
        for document in documents:
            yield split, document
    elif "train_characters" in part.description:
        yield from _split_at(documents, part.description["train_characters"])
    else:
        # As bytes: this loop runs for every document, and numbers would take half its time.
        below = math.ceil(config.validation_fraction * 2**64).to_bytes(8, "big")
        blake2b = hashlib.blake2b
        for document in documents:
            held_out = blake2b(document.text.encode(), digest_size=8).digest() < below
            yield "validation" if held_out else "train", document


def _nothing_to_read(config: DataConfig, split: Split) -> DataError:
    if config.validation_files:
        key = "data.validation_files" if split == "validation" else "The corpus"
        return DataError(
            f"{key} has no text for the {split} split: 0 characters. Point it to files with text."
        )
    parts = plan_parts(replace(config, validation_split="hash"))
    num_texts = sum(bool(d.text) for part in parts for d in _read_whole(config, part))
    if not num_texts:
        return DataError(
            "The corpus has 0 characters, but training needs text. "
            "Point data.files, data.dataset or data.builtin to a corpus with text."
        )
    direction = "Raise" if split == "validation" else "Lower"
    return DataError(
        f"data.validation_fraction is {config.validation_fraction}, but of {num_texts} documents "
        f"that leaves none for {split}. {direction} it, name data.validation_files, or set "
        "data.validation_split=tail, which cuts inside a document."
    )


def iterate_documents(config: DataConfig, split: Split) -> Iterator[Document]:
    """Read one split of the corpus, document by document, always in the same order.

    Memory holds one document (or one batch of a table's rows) at a time, whatever the corpus's
    size. Documents come in the order of `plan_parts`, see `read_part`. What `data.on_error=skip`
    leaves out is counted in one warning.

    Args:
        config: Where the corpus is and how it is split.
        split: Which side to read.

    Yields:
        The documents.

    Raises:
        DataError: If a glob, file, line or record cannot be used, or the split has no text.
    """
    num_characters = 0
    skipped: list[Skipped] = []
    for part in plan_parts(config):
        for side, document in read_part(config, part, skipped.append):
            if side == split:
                num_characters += len(document.text)
                yield document
    if skipped:
        logger.warning("%s", summarize_skipped(len(skipped), skipped[0].reason))
    if not num_characters:
        raise _nothing_to_read(config, split)


def summarize_skipped(count: int, first_reason: str) -> str:
    """Say in one line how much was left out."""
    return f"Skipped {count:,} (data.on_error is skip), first: {first_reason}"
