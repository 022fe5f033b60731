"""A source divided into parts, each of which one process reads alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_tinyformer.data.text.compression import is_compressed
from hf_tinyformer.data.text.documents import Document, Refuse, refuse_all
from hf_tinyformer.data.text.files import changed, file_kind, list_files, read_file
from hf_tinyformer.data.text.hub_datasets import describe_dataset, plan_dataset, read_dataset_part
from hf_tinyformer.data.text.sources import (
    Source,
    describe_file,
    describe_standard_library,
    list_standard_library,
    rule_of,
    standard_library_root,
)
from hf_tinyformer.data.text.tables import plan_row_groups
from hf_tinyformer.errors import DataError

PART_BYTES = 64 << 20
"""Small files are read together until they have this many bytes."""

LARGE_PART_BYTES = 256 << 20
"""A file with more is cut into parts of about this many bytes, where its kind allows it."""


@dataclass(frozen=True)
class Part:
    """A piece of the corpus that is read alone: the unit of resumable, distributable work."""

    name: str
    """Unique in the corpus: the source's name and a number, such as `wiki/00003`."""

    source: str
    """Name of the source it belongs to; `corpus` when the settings name only one."""

    description: dict[str, Any]
    """JSON values that say what is in it, without an absolute path: names, sizes and times of
    files, a range in them, and where the split cuts it. Equal descriptions, equal documents."""

    files: tuple[Path, ...] = field(default=(), compare=False, repr=False)
    """Where its files lie on this machine."""


def _line_ends(file: Path, size: int) -> Iterator[int]:
    """Find where lines end, about every `LARGE_PART_BYTES`, and the file's end."""
    with file.open("rb") as stream:
        wanted = LARGE_PART_BYTES
        while wanted < size:
            stream.seek(wanted)
            while block := stream.read(1 << 20):
                if (found := block.find(b"\n")) >= 0:
                    wanted += found + 1
                    break
                wanted += len(block)
            if wanted < size:
                yield wanted
            wanted += LARGE_PART_BYTES
    yield size


def _ranges(file: Path) -> list[dict[str, Any]]:
    """Cut one file into ranges that can be read alone, or into none if it is read whole."""
    size = file.stat().st_size
    if size <= LARGE_PART_BYTES or is_compressed(file):
        return []
    kind = file_kind(file)
    if kind == ".jsonl":
        ends = list(_line_ends(file, size))
        return [{"bytes": pair} for pair in map(list, zip([0, *ends], ends, strict=False))]
    if kind == ".parquet":
        return [{"row_groups": pair} for pair in plan_row_groups(file, LARGE_PART_BYTES)]
    return []


def _group(files: Sequence[Path]) -> Iterator[tuple[list[Path], dict[str, Any]]]:
    """Put small files together and cut large ones, in their order."""
    waiting: list[Path] = []
    waiting_bytes = 0
    for file in files:
        size = file.stat().st_size
        ranges = _ranges(file)
        if waiting and (ranges or waiting_bytes + size > PART_BYTES):
            yield waiting, {}
            waiting, waiting_bytes = [], 0
        if ranges:
            yield from (([file], one) for one in ranges)
        else:
            waiting.append(file)
            waiting_bytes += size
    if waiting:
        yield waiting, {}


def plan_files(
    name: str, setting: str, patterns: Sequence[str], source: Source, key: str, *, skip: bool
) -> list[Part]:
    """Divide files into parts.

    Args:
        name: The source's name.
        setting: The key that names the files.
        patterns: Its value.
        source: How they are read.
        key: Where those settings stand.
        skip: Put files that cannot be read into a part of their own, for `read_source` to refuse,
            where they would be an error here.

    Returns:
        The parts, in the files' order.

    Raises:
        DataError: If a pattern names nothing, a file cannot be read, or there is a template and a
            file without fields.
    """
    refused: list[list[str]] = []

    def note(place: str, error: DataError) -> None:
        refused.append([place, str(error)])

    files = list_files(setting, patterns, note if skip else refuse_all)
    rule = rule_of(source, key)
    described = {rule.setting.removeprefix(f"{key}."): rule.value}
    if rule.pieces:
        for file in files:
            _check_fields(file, key, str(source.template))
    parts = [
        Part(
            f"{name}/{number:05d}",
            name,
            {"files": [describe_file(file) for file in group]} | one | described,
            tuple(group),
        )
        for number, (group, one) in enumerate(_group(files))
    ]
    if refused:
        parts.append(Part(f"{name}/{len(parts):05d}", name, {"refused": refused}))
    return parts


def _check_fields(file: Path, key: str, template: str) -> None:
    kind = file_kind(file)
    if kind not in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"):
        raise DataError(
            f"{key}.template is {template!r}, but {file.as_posix()} has no columns: a {kind} file "
            "is one text. Leave one of the two out, or make them two data.sources."
        )


def _plan_standard_library() -> list[tuple[dict[str, Any], tuple[Path, ...]]]:
    root = standard_library_root()
    python = describe_standard_library()["python"]
    planned = []
    for group, _ in _group(list_standard_library()):
        names = [[f.relative_to(root).as_posix(), f.stat().st_size] for f in group]
        planned.append(
            ({"builtin": "python-stdlib", "python": python, "files": names}, tuple(group))
        )
    return planned


def plan_source(name: str, source: Source, key: str, *, skip: bool) -> list[Part]:
    """Divide a source into parts.

    Args:
        name: Its name.
        source: Its settings.
        key: Where they stand.
        skip: As in `plan_files`.

    Returns:
        The parts, in the order of the source's documents.

    Raises:
        DataError: If a glob matches nothing, or something it names cannot be read.
    """
    if source.builtin is not None:
        planned = enumerate(_plan_standard_library())
        return [Part(f"{name}/{n:05d}", name, told, files) for n, (told, files) in planned]
    if source.dataset is not None:
        rule = rule_of(source, key)
        told = describe_dataset(source) | {rule.setting.removeprefix(f"{key}."): rule.value}
        pieces = enumerate(plan_dataset(source, key, LARGE_PART_BYTES))
        return [Part(f"{name}/{n:05d}", name, told | piece) for n, piece in pieces]
    return plan_files(name, f"{key}.files", source.files, source, key, skip=skip)


def _read_files(source: Source, key: str, part: Part, refuse: Refuse) -> Iterator[Document]:
    rule = rule_of(source, key)
    byte_range = part.description.get("bytes")
    row_groups = part.description.get("row_groups")
    for file, described in zip(part.files, part.description["files"], strict=True):
        if list(describe_file(file)) != list(described):
            raise changed(file)
        yield from read_file(
            file,
            rule,
            refuse,
            byte_range=tuple(byte_range) if byte_range else None,
            row_groups=tuple(row_groups) if row_groups else None,
        )


def _read_standard_library(source: Source, key: str, part: Part) -> Iterator[Document]:
    root = standard_library_root()
    for file in part.files:
        name = f"python-stdlib/{file.relative_to(root).as_posix()}:1"
        for document in read_file(file, rule_of(source, key)):
            yield Document(document.text, name)


def read_source(source: Source, key: str, part: Part, refuse: Refuse) -> Iterator[Document]:
    """Read the documents of one part.

    Args:
        source: The settings the part was planned with.
        key: Where they stand.
        part: From `plan_source` or `plan_files`.
        refuse: Told of what cannot be used.

    Yields:
        The documents, in their order.

    Raises:
        DataError: What `refuse` raises, or if a file is not what it was when it was planned.
    """
    if "refused" in part.description:
        for place, reason in part.description["refused"]:
            refuse(place, DataError(reason))
    elif "builtin" in part.description:
        yield from _read_standard_library(source, key, part)
    elif "files" in part.description:
        yield from _read_files(source, key, part, refuse)
    else:
        yield from read_dataset_part(source, key, part.description, refuse)
