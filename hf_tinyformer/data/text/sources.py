"""A source of text as the user's settings: files, a data set, or the running Python's library."""

import os
import platform
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_tinyformer.data.text.text_rules import TextRule, make_text_rule
from hf_tinyformer.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where text comes from. Exactly one of `files`, `dataset` and `builtin` names it."""

    files: list[str] = field(default_factory=list)
    """Files, globs (`**` enters folders) and folders. A text or code file (.txt, .md, .py, ...) is
    one document; in .jsonl, .json, .csv, .tsv, .parquet and .arrow a record or row is one. Each
    also .gz, .bz2, .xz or .zst."""

    dataset: str | None = None
    """A folder saved by `datasets`, or the id of a data set on the Hub."""

    dataset_config: str | None = None
    """Configuration of the Hub data set, such as a language."""

    dataset_split: str = "train"
    """Split of the data set to read."""

    dataset_revision: str | None = None
    """Branch, tag or commit of the Hub data set. A run keeps to the commit it began with."""

    streaming: bool = False
    """Read the Hub data set shard by shard over the network, keeping no copy of it."""

    shard_seed: int | None = 0
    """Of a streamed data set: seed of the order of its shards; null keeps the Hub's."""

    max_shards: int | None = None
    """Of a streamed data set: take only the first shards of that order."""

    max_documents: int | None = None
    """Of a streamed data set: take at most so many documents, equally many from each shard."""

    builtin: Literal["python-stdlib"] | None = None
    """A corpus that is always there, offline: the source files of the running Python."""

    text_field: str = "text"
    """Field (.jsonl, .json) or column (tables, data sets) that holds the text."""

    template: str | None = None
    """Joins several fields into one text, such as "{title}\\n\\n{text}". Then `text_field` is not
    used. {{ and }} stand for braces."""


@dataclass(frozen=True, kw_only=True)
class WeightedSource(Source):
    """One of several sources that batches are mixed from."""

    weight: float = 1.0
    """Its share of the training rows, relative to the other sources' weights."""


def rule_of(source: Source, key: str) -> TextRule:
    """Return what makes a text of a source's records."""
    return make_text_rule(key, source.text_field, source.template)


def check_source(source: Source, key: str) -> None:
    """Reject settings of one source that contradict each other.

    Args:
        source: The settings.
        key: Where they stand, such as `data.sources.wiki`.

    Raises:
        ConfigError: Names the keys.
    """
    named = sum([bool(source.files), source.dataset is not None, source.builtin is not None])
    if named != 1:
        raise ConfigError(
            f"{named} of {key}.files, {key}.dataset and {key}.builtin are set, but exactly "
            f"1 names the text. Set one, for example {key}.files=[my_texts/*.txt]."
        )
    if source.streaming and source.dataset is None:
        raise ConfigError(
            f"{key}.streaming is true, but it is for data sets on the Hub. "
            f"Leave it out, or set {key}.dataset."
        )
    # Not dataset_config and dataset_split: they stay where files take a data set's place by
    # `data.dataset=null data.files=[...]` over a configuration.
    for name in ("dataset_revision", "shard_seed"):
        value = getattr(source, name)
        if source.dataset is None and value != getattr(Source, name):
            raise ConfigError(
                f"{key}.{name} is {value!r}, but it is for data sets on the Hub. "
                f"Leave it out, or set {key}.dataset."
            )
    if source.template is not None and source.builtin is not None:
        raise ConfigError(
            f"{key}.template is {source.template!r}, but {key}.builtin has no columns: its files "
            f"are one text each. Leave {key}.template out."
        )
    for name in ("max_shards", "max_documents"):
        value = getattr(source, name)
        if value is not None and (value < 1 or not source.streaming):
            raise ConfigError(
                f"{key}.{name} is {value}, but it is at least 1 and for streamed data sets only. "
                f"Change it, or set {key}.streaming=true."
            )
    rule_of(source, key)


_EXCLUDED_FOLDERS = {
    *("site-packages", "dist-packages"),  # not the standard library
    *("test", "tests", "idle_test"),  # much of them is data, and broken on purpose
    "__pycache__",
}
_GENERATED = "_sysconfigdata"  # differs from machine to machine, and names its folders


def standard_library_root() -> Path:
    """Return the folder of the running Python's own source files."""
    return Path(sysconfig.get_path("stdlib"))


def list_standard_library() -> list[Path]:
    """List the running Python's own source files, without tests, by name.

    Raises:
        DataError: If it has none.
    """
    root = standard_library_root()
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in _EXCLUDED_FOLDERS and not name.startswith("config-")
        ]
        files += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(_GENERATED)
        ]
    if not files:
        raise DataError(
            f"data.builtin is python-stdlib, but this Python has no source files in {root}. "
            "Use a Python that has them, or data.files."
        )
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def describe_standard_library() -> dict[str, Any]:
    """Describe the files of `list_standard_library`."""
    files = list_standard_library()
    size = sum(file.stat().st_size for file in files)
    version = platform.python_version()
    return {"builtin": "python-stdlib", "python": version, "files": len(files), "bytes": size}


def describe_file(file: Path) -> list[str | int]:
    """Describe a file by name, size and time."""
    # An absolute path would tell whose machine this was; name, size and time identify enough.
    name = file.name if file.is_absolute() else file.as_posix()
    status = file.stat()
    return [name, status.st_size, status.st_mtime_ns]
