"""Where text comes from: files, saved data sets, the Hub, or the running Python's own library."""

import glob
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_tinyformer.data.documents import (
    READABLE,
    Document,
    check_column,
    file_kind,
    read_column,
    read_file,
)
from hf_tinyformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "validation"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text is read, how it is split, and how rows are cut from it.

    Exactly one of `files`, `dataset` and `builtin` names the corpus.
    """

    files: list[str] = field(default_factory=list)
    """Globs of .txt, .md, .py (one document a file), .jsonl and .parquet (one document a record),
    each also .gz or .xz. `**` enters folders."""

    dataset: str | None = None
    """A folder saved by `datasets`, or the id of a data set on the Hub."""

    dataset_config: str | None = None
    """Configuration of the Hub data set, such as a language."""

    dataset_split: str = "train"
    """Split of the data set to read."""

    builtin: Literal["python-stdlib"] | None = None
    """A corpus that is always there, offline: the source files of the running Python."""

    text_field: str = "text"
    """Field (jsonl) or column (parquet, data sets) that holds the text."""

    validation_files: list[str] = field(default_factory=list)
    """Globs of a validation split of its own. Then `validation_fraction` is not used."""

    validation_fraction: float = 0.01
    """Share of the corpus kept for validation, between 0 and 1."""

    validation_split: Literal["hash", "tail"] = "hash"
    """`hash` keeps whole documents by the hash of their text; `tail` keeps the last part of the
    corpus, cut inside a document if need be (for a corpus that is one long text)."""

    sequence_length: int = 256
    """Tokens in a row: what the model sees at once in training."""

    mask_documents: bool = True
    """Keep documents that share a row apart in attention, and predict no token across the gap."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        sources = [bool(self.files), self.dataset is not None, self.builtin is not None]
        if sum(sources) != 1:
            raise ConfigError(
                f"{sum(sources)} of data.files, data.dataset and data.builtin are set, but exactly "
                "1 names the corpus. Set one, for example data.files=[my_texts/*.txt]."
            )
        if not self.validation_files and not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}, but it must lie between "
                "0 and 1. Take 0.01 for a large corpus, 0.1 for a small one."
            )
        if self.sequence_length < 2:
            raise ConfigError(
                f"data.sequence_length is {self.sequence_length}, but a row needs at least 2 "
                "tokens. Take 64 or more."
            )


_EXCLUDED_FOLDERS = {
    *("site-packages", "dist-packages"),  # not the standard library
    *("test", "tests", "idle_test"),  # much of them is data, and broken on purpose
    "__pycache__",
}
_GENERATED = "_sysconfigdata"  # differs from machine to machine, and names its folders


def _list_files(key: str, patterns: Sequence[str]) -> list[Path]:
    """Expand globs, each sorted by name; a file matched twice is taken once."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)  # noqa: PTH111 - Path would normalise the glob
        literal = Path(expanded)
        matches = [expanded] if literal.exists() else sorted(glob.glob(expanded, recursive=True))  # noqa: PTH207
        files = [Path(match) for match in matches if not Path(match).is_dir()]
        if not files:
            kind = "is a folder" if literal.is_dir() else f"matches no file under {Path.cwd()}"
            raise DataError(
                f"{key} has {pattern!r}, which {kind}, but a glob must match files. "
                "Correct it; `texts/**/*.txt` enters folders."
            )
        for file in files:
            _check_file(key, file)
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100 - keeps links apart
    return list(found.values())


def _check_file(key: str, file: Path) -> None:
    if file_kind(file) is None:
        raise DataError(
            f"{key} matches {file.as_posix()}, but the endings read are {READABLE}. "
            "Narrow the glob or convert the file."
        )
    if not file.is_file():
        raise DataError(
            f"{key} matches {file.as_posix()}, but it is not a regular file. Narrow the glob."
        )


def _list_standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
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


def _read_standard_library(files: Sequence[Path]) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in files:
        name = f"python-stdlib/{file.relative_to(root).as_posix()}:1"
        for document in read_file(file, ""):
            yield Document(document.text, name)


def _open_dataset(config: DataConfig) -> "datasets.Dataset":
    import datasets

    name = config.dataset or ""
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            # Not streamed: the walk reads the corpus several times, in one order.
            return datasets.load_dataset(name, config.dataset_config, split=config.dataset_split)
        if not any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            raise DataError(
                f"data.dataset is {name}, but that folder was not saved by `datasets`. "
                "Set data.files to the files in it instead."
            )
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"data.dataset is {name}, but it cannot be loaded ({reason}). Check the name (a folder "
            "saved by `datasets`, or an id on the Hub), data.dataset_config and data.dataset_split."
        ) from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if config.dataset_split not in saved:
        raise DataError(
            f"data.dataset_split is {config.dataset_split}, but {name} has "
            f"{', '.join(saved)}. Take one of them."
        )
    return saved[config.dataset_split]


def _read_dataset(config: DataConfig, start: int, stop: int) -> Iterator[Document]:
    dataset = _open_dataset(config)
    name = str(config.dataset)
    check_column(dataset.features.arrow_schema, config.text_field, name)
    row = start + 1
    rows = dataset.select(range(start, min(stop, len(dataset))))
    columns = rows.select_columns([config.text_field]).with_format("arrow")
    for table in columns.iter(batch_size=512):
        yield from read_column(table.column(0), config.text_field, name, row)
        row += table.num_rows


def read_files(key: str, patterns: Sequence[str], text_field: str) -> Iterator[Document]:
    """Read the documents of files, in the order of their names.

    Args:
        key: The setting or option that names them, for messages.
        patterns: Globs, as in `DataConfig.files`.
        text_field: Field or column that holds the text.

    Yields:
        Documents, one after another.

    Raises:
        DataError: If a glob matches nothing, or a file cannot be read as text.
    """
    for file in _list_files(key, patterns):
        yield from read_file(file, text_field)


def _describe_file(file: Path) -> list[str | int]:
    # An absolute path would tell whose machine this was; name, size and time identify enough.
    name = file.name if file.is_absolute() else file.as_posix()
    status = file.stat()
    return [name, status.st_size, status.st_mtime_ns]


def _describe_corpus(config: DataConfig) -> dict[str, Any]:
    if config.builtin is not None:
        files = _list_standard_library()
        size = sum(file.stat().st_size for file in files)
        version = platform.python_version()
        return {"builtin": config.builtin, "python": version, "files": len(files), "bytes": size}
    if config.dataset is None:
        files = _list_files("data.files", config.files)
        return {"files": [_describe_file(file) for file in files]}
    folder = Path(config.dataset).expanduser()
    if folder.is_dir():
        saved = sorted(file for file in folder.rglob("*") if file.is_file())
        return {"saved": [_describe_file(file) for file in saved], "split": config.dataset_split}
    return {
        "dataset": config.dataset,
        "config": config.dataset_config,
        "split": config.dataset_split,
    }


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


@dataclass(frozen=True)
class Skipped:
    """What `data.on_error=skip` left out."""

    place: str
    """`path:line:byte`, as far as it is known."""

    reason: str
    """The error that stands in the way, in one line."""


PART_BYTES = 64 << 20
"""Small files are read together until they have this many bytes."""

_ROWS_A_PART = 1 << 17


def _group_files(files: Sequence[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for file in files:
        more = file.stat().st_size
        if group and size + more > PART_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += more
    if group:
        yield group


def _plan_files(source: str, files: Sequence[Path]) -> list[Part]:
    return [
        Part(
            f"{source}/{number:05d}",
            source,
            {"files": [_describe_file(file) for file in group]},
            tuple(group),
        )
        for number, group in enumerate(_group_files(files))
    ]


def _plan_corpus(config: DataConfig) -> list[Part]:
    if config.builtin is not None:
        parts = _plan_files("corpus", _list_standard_library())
        described = {"builtin": config.builtin, "python": platform.python_version()}
        return [Part(p.name, p.source, described | p.description, p.files) for p in parts]
    if config.dataset is None:
        return _plan_files("corpus", _list_files("data.files", config.files))
    described = _describe_corpus(config)
    num_rows = len(_open_dataset(config))
    return [
        Part(f"corpus/{number:05d}", "corpus", described | {"rows": [row, row + _ROWS_A_PART]})
        for number, row in enumerate(range(0, max(num_rows, 1), _ROWS_A_PART))
    ]


def _read_whole(config: DataConfig, part: Part) -> Iterator[Document]:
    """Read a part's documents before they are split."""
    if config.builtin is not None and part.source == "corpus":
        yield from _read_standard_library(part.files)
    elif "rows" in part.description:
        start, stop = part.description["rows"]
        yield from _read_dataset(config, start, stop)
    else:
        for file in part.files:
            yield from read_file(file, config.text_field)


def _falls_into_validation(text: str, fraction: float) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _cut(document: Document, place: int) -> tuple[Document, Document]:
    head, rest = document.text[:place], document.text[place:]
    path, _, line = document.source.rpartition(":")
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
    """Add to each part how many of its characters come before the cut."""
    sizes = [sum(len(document.text) for document in _read_whole(config, part)) for part in parts]
    cut = int(sum(sizes) * (1 - config.validation_fraction))
    planned = []
    for part, size in zip(parts, sizes, strict=True):
        description = part.description | {"train_characters": max(0, min(cut, size))}
        planned.append(Part(part.name, part.source, description, part.files))
        cut -= size
    return planned


def plan_parts(config: DataConfig) -> list[Part]:
    """Divide the corpus into parts, always the same for the same files and settings.

    Parts come in the order of the sources, and within one in the order of its documents. Files of
    `validation_files` are parts of a source called `validation`, after all others. With
    `validation_split=tail`, this reads the corpus once, to count its characters.

    Args:
        config: Where the corpus is and how it is split.

    Returns:
        The parts. `read_part` reads them, in any order and any process.

    Raises:
        DataError: If a glob matches nothing, or something it names cannot be read.
    """
    parts = _plan_corpus(config)
    if config.validation_files:
        files = _list_files("data.validation_files", config.validation_files)
        return parts + _plan_files("validation", files)
    return _plan_tail(config, parts) if config.validation_split == "tail" else parts


def read_part(
    config: DataConfig, part: Part, on_skip: Callable[[Skipped], None] | None = None
) -> Iterator[tuple[Split, Document]]:
    """Read one part's documents, each with the split it belongs to, in order.

    Empty documents come too; the token store counts them and leaves them out.

    Args:
        config: The settings that `plan_parts` had.
        part: From `plan_parts`.
        on_skip: Told of everything that `data.on_error=skip` leaves out.

    Yields:
        Split and document.

    Raises:
        DataError: If something in the part cannot be used; names file, line and byte.
    """
    documents = _read_whole(config, part)
    if config.validation_files:
        split: Split = "validation" if part.source == "validation" else "train"
        for document in documents:
            yield split, document
    elif "train_characters" in part.description:
        yield from _split_at(documents, part.description["train_characters"])
    else:
        for document in documents:
            held_out = _falls_into_validation(document.text, config.validation_fraction)
            yield "validation" if held_out else "train", document


def _nothing_to_read(config: DataConfig, split: Split) -> DataError:
    if config.validation_files:
        key = "data.validation_files" if split == "validation" else "The corpus"
        return DataError(
            f"{key} has no text for the {split} split: 0 characters. Point it to files with text."
        )
    parts = _plan_corpus(config)
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
    size. Empty documents come too; the token store counts them and leaves them out.

    Files come in the order of the globs, and by name within each. By `hash`, a document is in
    validation if the BLAKE2b hash of its text is below the fraction, so the same text is always on
    the same side, in any corpus and any order. By `tail`, the corpus is read once more beforehand,
    to count its characters.

    Args:
        config: Where the corpus is and how it is split.
        split: Which side to read.

    Yields:
        The documents.

    Raises:
        DataError: If a glob, file, line or record cannot be used, or the split has no text.
    """
    num_characters = 0
    for part in plan_parts(config):
        for side, document in read_part(config, part):
            if side == split:
                num_characters += len(document.text)
                yield document
    if not num_characters:
        raise _nothing_to_read(config, split)


def describe_inputs(config: DataConfig) -> dict[str, Any]:
    """Describe what `iterate_documents` would read, without reading it.

    Returns:
        JSON values, equal as long as the corpus and its split are: names, sizes and times of
        files, and the settings that choose documents. No absolute path is in it. A data set on
        the Hub is described by its id, so a new revision there goes unnoticed.

    Raises:
        DataError: If a glob matches nothing, or a file that cannot be read.
    """
    described: dict[str, Any] = {"corpus": _describe_corpus(config)}
    if config.builtin is None:
        described["text_field"] = config.text_field
    if config.validation_files:
        files = _list_files("data.validation_files", config.validation_files)
        described["validation_files"] = [_describe_file(file) for file in files]
    else:
        described["validation"] = [config.validation_split, config.validation_fraction]
    return described
