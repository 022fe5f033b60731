"""Files of a corpus: which there are, and how each kind becomes documents.

Endings decide. Text and code files are one document each, records and rows one each; every kind may
also be compressed.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_tinyformer.data.text.compression import COMPRESSED_ENDINGS, unreadable
from hf_tinyformer.data.text.documents import Document, Refuse, read_text, refuse_all
from hf_tinyformer.data.text.records import read_csv, read_json, read_jsonl
from hf_tinyformer.data.text.tables import read_table
from hf_tinyformer.data.text.text_rules import TextRule, make_text_rule
from hf_tinyformer.errors import DataError

logger = logging.getLogger(__name__)

_CODE = (
    ".adoc .asm .awk .bash .bat .c .cc .cfg .clj .cljs .cmake .cmd .coffee .cpp .cs .css .cu .cuh "
    ".cxx .dart .el .elm .erl .ex .exs .f .f90 .fs .fsx .glsl .go .gradle .graphql .groovy .h .hh "
    ".hpp .hs .htm .html .hxx .ini .java .jl .js .jsx .kt .kts .less .lisp .lua .m .mjs .mk .ml "
    ".mli .mm .nim .nix .org .pas .php .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rkt .rs .rst .s "
    ".sass .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl .tex .tf .thrift .toml .ts .tsx "
    ".v .vb .vhd .vhdl .vim .vue .wgsl .xml .yaml .yml .zig .zsh"
)
CODE_ENDINGS = frozenset(_CODE.split())
TEXT_ENDINGS = CODE_ENDINGS | {".txt", ".md"}
RECORD_ENDINGS = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"})

READABLE = (
    ".txt, .md, code (.py, .js, .c, ...), .jsonl, .json, .csv, .tsv, .parquet and .arrow, each "
    "also .gz, .bz2, .xz or .zst"
)


def file_kind(path: Path) -> str | None:
    """Return the ending that says how to read a file, compression aside; None if unreadable."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    kind = endings[-1] if endings else None
    return kind if kind in TEXT_ENDINGS or kind in RECORD_ENDINGS else None


def _walk_folder(key: str, folder: Path, refuse: Refuse) -> list[Path]:
    """List the readable files below a folder by name, links followed, each folder entered once."""

    def refuse_folder(error: OSError) -> None:
        place = Path(error.filename).as_posix()
        refuse(place, unreadable(place, error))

    entered: set[str] = set()
    found: list[Path] = []
    others: Counter[str] = Counter()
    for current, folders, names in os.walk(folder, onerror=refuse_folder, followlinks=True):
        real = os.path.realpath(current)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        # Sorted: of several links to a folder the first is entered, on every file system the same.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(current, name) for name in names if not name.startswith(".")):
            if file_kind(path) is None:
                others[path.suffix.lower() or "no ending"] += 1
            else:
                found.append(path)
    if others:
        left_out = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
        logger.info("%s: files of other kinds in %s are left out: %s", key, folder, left_out)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _expand(key: str, pattern: str, refuse: Refuse) -> list[Path]:
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 - Path would normalise the glob
    literal = Path(expanded)
    if literal.is_dir():
        files = _walk_folder(key, literal, refuse)
        found = f"is a folder without files ending in {READABLE}"
    else:
        exists = os.path.lexists(expanded)
        matches = [expanded] if exists else sorted(glob.glob(expanded, recursive=True))  # noqa: PTH207
        files = [Path(match) for match in matches if not Path(match).is_dir()]
        found = f"matches no file under {Path.cwd()}"
    if not files:
        raise DataError(
            f"{key} has {pattern!r}, which {found}, but it must name files. "
            "Correct it; `texts/**/*.txt` and `texts` enter folders."
        )
    return files


def list_files(key: str, patterns: Sequence[str], refuse: Refuse = refuse_all) -> list[Path]:
    """Find the files that globs and folders name.

    Args:
        key: The setting or option that has them, for messages.
        patterns: Names of files, globs (`**` enters folders), and names of folders, which stand for
            all files below them whose ending is known, hidden ones aside.
        refuse: Told of files and folders that cannot be read.

    Returns:
        The files in the order of the patterns, and by name within each; a file that is named
        twice, or reached twice by linked folders, is taken once.

    Raises:
        DataError: If a pattern names nothing.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for file in _expand(key, pattern, refuse):
            try:
                _check_file(key, file)
            except DataError as error:
                refuse(file.as_posix(), error)
                continue
            # Linked folders are resolved, so that a loop of them adds nothing; linked files not.
            found.setdefault(os.path.join(os.path.realpath(file.parent), file.name), file)  # noqa: PTH118
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


def read_file(
    path: Path,
    rule: TextRule,
    refuse: Refuse = refuse_all,
    *,
    byte_range: tuple[int, int] | None = None,
    row_groups: tuple[int, int] | None = None,
) -> Iterator[Document]:
    """Read one file, document by document.

    Args:
        path: A file whose `file_kind` is not None.
        rule: What makes the text of records and rows.
        refuse: Told of what cannot be used; if it returns, reading goes on after that.
        byte_range: Read only the lines in this range of a .jsonl file that is not compressed.
        row_groups: Read only these row groups of a .parquet file, the last one not included.

    Yields:
        Documents in the file's order. A document may be empty.

    Raises:
        DataError: If anything in the file cannot be used; names file, line and, where there is
            one, the byte in the line, counted from 1. Always if the file changes meanwhile.
    """
    before = _version(path)
    kind = file_kind(path)
    if kind == ".jsonl":
        yield from read_jsonl(path, rule, refuse, byte_range)
    elif kind == ".json":
        yield from read_json(path, rule, refuse)
    elif kind in (".csv", ".tsv"):
        yield from read_csv(path, rule, refuse, quoted=kind == ".csv")
    elif kind in (".parquet", ".arrow"):
        yield from read_table(path, rule, refuse, parquet=kind == ".parquet", row_groups=row_groups)
    else:
        yield from read_text(path, refuse)
    if before is not None and before != _version(path):
        raise changed(path)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # opening it says why
    return status.st_size, status.st_mtime_ns


def changed(path: Path) -> DataError:
    """Say that a file is not what it was when reading began."""
    return DataError(
        f"{path.as_posix()} changed while it was read, so what was read is of no one version. "
        "Wait until it is written, and start again."
    )


def read_files(key: str, patterns: Sequence[str], text_field: str) -> Iterator[Document]:
    """Read the documents of files, in the order of their names.

    Args:
        key: The setting or option that names them, for messages.
        patterns: As in `list_files`.
        text_field: Field or column that holds the text.

    Yields:
        Documents, one after another.

    Raises:
        DataError: If a pattern names nothing, or a file cannot be read as text.
    """
    rule = make_text_rule("data", text_field, None)
    for file in list_files(key, patterns):
        yield from read_file(file, rule)
