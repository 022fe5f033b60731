"""Tables of columns: .parquet and .arrow, one document a row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hf_tinyformer.data.text.compression import UNREADABLE, seekable, unreadable
from hf_tinyformer.data.text.documents import Document, Refuse, check_length
from hf_tinyformer.data.text.text_rules import TextRule
from hf_tinyformer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 256

_BUFFER_BYTES = 1 << 20
"""Read ahead in a column of a row group, which would be read whole without this."""


def check_columns(schema: "pa.Schema", rule: TextRule, name: str) -> None:
    """Refuse a table without the columns a rule needs.

    Args:
        schema: The table's columns and types.
        rule: What makes the text.
        name: The table's path or id, for the message.

    Raises:
        DataError: If a column is missing, holds something else than strings (or, for a template,
            whole numbers), or stands twice.
    """
    import pyarrow as pa

    for field in rule.fields:
        count = schema.names.count(field)
        if count == 0:
            raise rule.missing(name, schema.names)
        if count > 1:
            raise DataError(
                f"{name} has {count} columns {field!r}, but the text must come from 1. "
                "Rename the others."
            )
        kind = schema.field(field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_string = (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_string_view(kind)
        )
        if not (is_string or (rule.pieces and pa.types.is_integer(kind))):
            raise rule.not_text(name, field, f"the type {kind}")


def _values_one_by_one(
    table: "pa.RecordBatch | pa.Table", rule: TextRule, place: str, row: int
) -> dict[str, object]:
    values = {}
    for field in rule.fields:
        try:
            values[field] = table.column(field)[row].as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place} is not UTF-8 at byte {error.start + 1} of field {field!r}. "
                "Write the table again with text that is."
            ) from None
    return values


def read_rows(
    table: "pa.RecordBatch | pa.Table", rule: TextRule, name: str, first_row: int, refuse: Refuse
) -> Iterator[Document]:
    """Turn some rows of a table into documents.

    Args:
        table: With the rule's columns, see `check_columns`.
        rule: What makes the text.
        name: The table's path or id.
        first_row: Number of the first row, counted from 1 in the whole table.
        refuse: Told of rows without text or with bytes that are not UTF-8.
    """
    try:
        columns = [table.column(field).to_pylist() for field in rule.fields]
    except UnicodeDecodeError:
        columns = []  # found again below, row by row
    for row in range(table.num_rows):
        place = f"{name}:{first_row + row}"
        try:
            text = columns[0][row] if columns and not rule.pieces else None
            if text is None:
                if columns:
                    values = {f: c[row] for f, c in zip(rule.fields, columns, strict=True)}
                else:
                    values = _values_one_by_one(table, rule, place, row)
                text = rule.text_of(values, place)
            check_length(text, place)
        except DataError as error:
            refuse(place, error)
            continue
        yield Document(text, place)


def _parquet_batches(
    stream: IO[bytes], rule: TextRule, name: str, row_groups: Sequence[int] | None
) -> Iterator["pa.RecordBatch"]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
    check_columns(table.schema_arrow, rule, name)
    yield from table.iter_batches(
        batch_size=_ROWS_AT_ONCE, columns=list(rule.fields), row_groups=row_groups
    )


def _arrow_batches(stream: IO[bytes], rule: TextRule, name: str) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    head = stream.read(6)
    stream.seek(0)
    if head == b"ARROW1":
        schema = pa.ipc.open_file(stream).schema
        check_columns(schema, rule, name)
        wanted = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(f) for f in rule.fields])
        file = pa.ipc.open_file(stream, options=wanted)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        _check_end_of_stream(stream)
        schema = pa.ipc.open_stream(stream).schema
        check_columns(schema, rule, name)
        stream.seek(0)
        wanted = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(f) for f in rule.fields])
        batches = iter(pa.ipc.open_stream(stream, options=wanted))
    for batch in batches:
        for row in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield batch.slice(row, _ROWS_AT_ONCE)


def _check_end_of_stream(stream: IO[bytes]) -> None:
    """Refuse a stream without its end mark: pyarrow takes one cut between batches for whole."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 8))
    mark = stream.read()
    stream.seek(0)
    if mark != b"\xff\xff\xff\xff\x00\x00\x00\x00":
        raise OSError("it has no end mark, so it is cut short or no Arrow file")


def read_table(
    path: Path,
    rule: TextRule,
    refuse: Refuse,
    *,
    parquet: bool,
    row_groups: tuple[int, int] | None = None,
) -> Iterator[Document]:
    """Read a .parquet or .arrow file.

    Args:
        path: The file. A compressed one is unpacked into a temporary file, since tables are read
            from their end.
        rule: What makes the text.
        refuse: Told of rows that cannot be used, and of damage, which ends the file.
        parquet: Whether it is Parquet; else it is Arrow's file or stream format.
        row_groups: Of .parquet, the first row group wanted and one more than the last.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.as_posix()
    row = 1
    try:
        with seekable(path) as stream:
            if parquet:
                groups = None
                if row_groups is not None:
                    metadata = pq.read_metadata(stream)
                    row += sum(metadata.row_group(g).num_rows for g in range(row_groups[0]))
                    stream.seek(0)
                    groups = range(*row_groups)
                batches = _parquet_batches(stream, rule, name, groups)
            else:
                batches = _arrow_batches(stream, rule, name)
            for batch in batches:
                yield from read_rows(batch, rule, name, row, refuse)
                row += batch.num_rows
    except (*UNREADABLE, pa.ArrowException) as error:
        place = f"{name}:{row}"
        refuse(place, unreadable(place, error))
    except DataError as error:
        refuse(f"{name}:1", error)


def plan_row_groups(path: Path, bytes_a_part: int) -> list[list[int]]:
    """Divide a .parquet file's row groups into ranges of about so many bytes of columns.

    Returns:
        For each range its first row group and one more than its last; none if the file cannot be
        read, and reading it says why.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return []
    ranges = []
    start = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= bytes_a_part or group == metadata.num_row_groups - 1:
            ranges.append([start, group + 1])
            start, size = group + 1, 0
    return ranges
