"""One file becomes documents, and every fault in it an error that names `file:line`.

A .txt, .md or .py file is one document; a .jsonl line and a .parquet row are one each. Each kind
may be compressed (.gz, .xz) and is then decompressed while it is read, so that no more than one
document, or one batch of rows, is in memory.

Text is taken as it stands, white space, line ends (CRLF too) and NUL included. Two exceptions: a
UTF-8 byte order mark at a file's start is no text and is left out, and a blank line of a .jsonl
file is no record.
"""

import codecs
import gzip
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from hf_tinyformer.data.tokenizer import check_text
from hf_tinyformer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_ENDINGS = (".txt", ".md", ".py")
COMPRESSED_ENDINGS = (".gz", ".xz")
READABLE = ".txt, .md, .py, .jsonl and .parquet, each also .gz or .xz"

_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What gzip and lzma raise for a file that is cut short or damaged."""

_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus."""

    text: str

    source: str
    """Where it begins, as `path:line` (`path:row` in tables), the path as the globs gave it."""


def file_kind(path: Path) -> str | None:
    """Return the ending that says how to read a file, compression aside; None if unreadable."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    kind = endings[-1] if endings else None
    return kind if kind in (*TEXT_ENDINGS, ".jsonl", ".parquet") else None


def _open(path: Path) -> IO[bytes]:
    ending = path.suffix.lower()
    if ending in COMPRESSED_ENDINGS and path.stat().st_size == 0:
        raise EOFError("it has 0 bytes")  # gzip would take it for an empty text
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _unreadable(place: str, error: Exception) -> DataError:
    if isinstance(error, _DAMAGE):
        return DataError(
            f"{place} cannot be decompressed ({error}), so the file is cut short or damaged. "
            "Fetch it again, or leave it out of the globs."
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{place} cannot be read ({reason}). Put it right, or change the globs.")


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number from 1, line end included, byte order mark left out."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (*_DAMAGE, OSError) as error:
        raise _unreadable(f"{path.as_posix()}:{number + 1}", error) from None


def _likely_encoding(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    try:
        raw.decode("cp949")
    except UnicodeDecodeError:
        return "WINDOWS-1252"
    return "CP949"


def _decode(raw: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path.as_posix()}:{line}:{byte} is the byte 0x{raw[error.start]:02x}, but text must "
            f"be UTF-8. Convert the file, perhaps with `iconv -f {_likely_encoding(raw)} -t UTF-8`."
        ) from None


def _read_text(path: Path) -> Iterator[Document]:
    raw = b"".join(line for _, line in _read_lines(path))
    source = f"{path.as_posix()}:1"
    text = _decode(raw, path)
    check_text(text, source)
    yield Document(text, source)


def _missing_field(source: str, text_field: str, present: list[str]) -> DataError:
    return DataError(
        f"data.text_field is {text_field!r}, but {source} has no such field; it has "
        f"{', '.join(map(repr, present)) or 'none'}. Set data.text_field to the one with the text."
    )


def _not_a_string(source: str, text_field: str, found: str) -> DataError:
    return DataError(
        f"{source} has {found} in field {text_field!r}, but a document is a string. "
        "Repair or remove it, or set data.text_field to another field."
    )


def _parse_record(line: str, source: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}:{error.colno} is not JSON ({error.msg}), but a .jsonl file has one object "
            "a line. Repair or remove the line."
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of 4301 digits; nesting without end
        raise DataError(
            f"{source} cannot be parsed ({error}). Repair or remove the line."
        ) from None
    if not isinstance(record, dict):
        raise DataError(
            f"{source} is {_json_name(record)}, but a .jsonl file has one object a line. "
            f'Write it as {{"text": "..."}}.'
        )
    return record


def _json_name(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def _read_jsonl(path: Path, text_field: str) -> Iterator[Document]:
    for number, raw in _read_lines(path):
        line = _decode(raw, path, first_line=number)
        if line.isspace() or not line:
            continue
        source = f"{path.as_posix()}:{number}"
        record = _parse_record(line, source)
        if text_field not in record:
            raise _missing_field(source, text_field, list(record))
        text = record[text_field]
        if not isinstance(text, str):
            raise _not_a_string(source, text_field, _json_name(text))
        check_text(text, source)
        yield Document(text, source)


def check_column(schema: "pa.Schema", text_field: str, name: str) -> None:
    """Refuse a table without a column of strings.

    Args:
        schema: The table's columns and types.
        text_field: The column that must hold the texts.
        name: The table's path or id, for the message.

    Raises:
        DataError: If the column is missing or holds something else.
    """
    import pyarrow as pa

    if text_field not in schema.names:
        raise _missing_field(name, text_field, schema.names)
    kind = schema.field(text_field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _not_a_string(name, text_field, f"the type {kind}")


def read_column(
    column: "pa.Array | pa.ChunkedArray", text_field: str, name: str, first_row: int
) -> Iterator[Document]:
    """Turn some rows of a table's text column into documents.

    Args:
        column: Strings.
        text_field: The column's name, for messages.
        name: The table's path or id.
        first_row: Number of the first row, counted from 1 in the whole table.

    Raises:
        DataError: If a row has no string, or one that is not UTF-8.
    """
    for row, value in enumerate(column, first_row):
        source = f"{name}:{row}"
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source} is not UTF-8 at byte {error.start + 1} of field {text_field!r}. "
                "Write the table again with text that is."
            ) from None
        if text is None:
            raise _not_a_string(source, text_field, "null")
        check_text(text, source)
        yield Document(text, source)


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.as_posix()
    row = 1
    try:
        with tempfile.TemporaryFile() as plain, _open(path) as stream:
            if path.suffix.lower() in COMPRESSED_ENDINGS:
                # A table is read from its end: it needs a file that can be sought in.
                shutil.copyfileobj(stream, plain)
                stream = plain
            table = pq.ParquetFile(stream)
            check_column(table.schema_arrow, text_field, name)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[text_field]):
                yield from read_column(batch.column(0), text_field, name, row)
                row += batch.num_rows
    except (*_DAMAGE, OSError, pa.ArrowException) as error:
        raise _unreadable(f"{name}:{row}", error) from None


def read_file(path: Path, text_field: str) -> Iterator[Document]:
    """Read one file, document by document.

    Args:
        path: A file whose `file_kind` is not None.
        text_field: Field of .jsonl, or column of .parquet, that holds the text.

    Yields:
        Documents in the file's order. A document may be empty.

    Raises:
        DataError: If anything in the file cannot be used; names file, line and, where there is
            one, the byte in the line, counted from 1.
    """
    kind = file_kind(path)
    if kind == ".jsonl":
        return _read_jsonl(path, text_field)
    if kind == ".parquet":
        return _read_parquet(path, text_field)
    return _read_text(path)
