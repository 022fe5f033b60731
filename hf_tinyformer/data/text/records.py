"""Records from .jsonl, .json, .csv and .tsv: one document each.

A .jsonl line is one object, blank lines aside. A .json file is an array of objects, or objects one
after another. In .csv and .tsv the first line names the columns, and every other record has as
many; blank lines are none. A .csv field may stand in double quotes and then hold anything (RFC
4180). In .tsv a quote is a character like any other.
"""

import csv
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

from hf_tinyformer.data.text.compression import UNREADABLE, unreadable
from hf_tinyformer.data.text.documents import (
    Document,
    Lines,
    Refuse,
    check_length,
    check_text,
    decode,
)
from hf_tinyformer.data.text.json_stream import iterate_json
from hf_tinyformer.data.text.text_rules import TextRule, json_name
from hf_tinyformer.errors import DataError

LARGEST_FIELD = 64 << 20
"""Characters in one field of a .csv: a quote that is never closed costs no more memory."""

_SURELY_FINE = 1 << 20
"""Shorter texts from a strict parser need no look by `check_text`."""


def _check_object(place: str, record: Any, rule: str) -> None:
    if not isinstance(record, dict):
        raise DataError(
            f'{place} is {json_name(record)}, but {rule}. Write it as {{"text": "..."}}.'
        )


def _parse_line(raw: bytes, name: str, place: str) -> Any:
    """Parse one line as Python does: it takes more than orjson, and its messages are exact."""
    text = decode(raw, name, first_line=int(place.rpartition(":")[2]))
    if not text or text.isspace():
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode("utf-8")) + 1
        raise DataError(
            f"{place}:{byte} is not JSON ({error.msg}), but a .jsonl file has one object "
            "a line. Repair or remove the line."
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of 4301 digits; nesting without end
        raise DataError(f"{place} cannot be parsed ({error}). Repair or remove the line.") from None
    _check_object(place, record, "a .jsonl file has one object a line")
    return record


def _text_of_line(raw: bytes, name: str, place: str, rule: TextRule) -> str | None:
    """Return a line's text, None if it is blank, or say exactly what is wrong with it."""
    record = _parse_line(raw, name, place)
    if record is None:
        return None
    text = rule.text_of(record, place)
    check_text(text, place)
    return text


def read_jsonl(
    path: Path, rule: TextRule, refuse: Refuse, byte_range: tuple[int, int] | None = None
) -> Iterator[Document]:
    """Read a .jsonl file, or the lines of a range in it."""
    lines = Lines(path, refuse, byte_range)
    prefix = lines.prefix
    loads = orjson.loads
    quick_text: Callable[[Any], Any] = itemgetter(*rule.fields)
    if rule.pieces:
        quick_text = lambda record: rule.text_of(record, prefix)  # noqa: E731
    for number, raw in lines:
        try:
            text = quick_text(loads(raw))
        except (orjson.JSONDecodeError, LookupError, TypeError, DataError):
            text = None
        if type(text) is not str or len(text) > _SURELY_FINE:
            place = lines.place(number)
            try:
                text = _text_of_line(raw, lines.name, place, rule)
            except DataError as error:
                refuse(place, error)
                continue
            if text is None:
                continue
        yield Document(text, f"{prefix}{number}")


def read_json(path: Path, rule: TextRule, refuse: Refuse) -> Iterator[Document]:
    """Read a .json file: an array of objects, or objects one after another."""
    place = f"{path.as_posix()}:1"
    try:
        for place, record in iterate_json(path):
            try:
                _check_object(place, record, "a .json file has an array of objects")
                text = rule.text_of(record, place)
                check_text(text, place)
            except DataError as error:
                refuse(place, error)
                continue
            yield Document(text, place)
    except UNREADABLE as error:
        refuse(place, unreadable(place, error))
    except DataError as error:
        # What follows cannot be told apart any more, so this ends the file.
        refuse(place, error)


class _TextLines:
    """Feeds the csv module: lines as text, and the number of the last one."""

    def __init__(self, lines: Lines) -> None:
        self.number = 0
        self._lines = lines
        self._fault: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        for number, raw in self._lines:
            self.number = number
            try:
                text = decode(raw, self._lines.name, self.number)
            except DataError as error:
                # Raised here it would tear the record, and what is left of it pass for others.
                self._fault = self._fault or error
                text = raw.decode("utf-8", "replace")
            yield text + "\n"

    def take_fault(self) -> DataError | None:
        """Return what is wrong with the lines since the last call."""
        fault, self._fault = self._fault, None
        return fault


def _check_header(header: list[str], rule: TextRule, place: str) -> None:
    for name in rule.fields:
        if name not in header:
            raise rule.missing(place, header)
        if header.count(name) > 1:
            raise DataError(
                f"{place} names {header.count(name)} columns {name!r}, but the text must come from "
                "1. Rename the others."
            )


def _unequal(place: str, found: int, header: list[str]) -> DataError:
    return DataError(
        f"{place} has {found} fields, but the header has {len(header)} columns. "
        "Repair or remove the record; a comma or line end in a .csv field needs quotes around it."
    )


def read_csv(path: Path, rule: TextRule, refuse: Refuse, *, quoted: bool) -> Iterator[Document]:
    """Read a .csv file (`quoted`), or a .tsv file."""
    lines = Lines(path, refuse)
    csv.field_size_limit(LARGEST_FIELD)
    text_lines = _TextLines(lines)
    reader = csv.reader(
        text_lines,
        delimiter="," if quoted else "\t",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] = []
    columns: list[int] = []
    while True:
        first_line = text_lines.number + 1
        place = f"{lines.name}:{first_line}"
        fault: DataError | None = None
        ends_here = False
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fault = DataError(f"{place} is not a table's record ({error}). Repair it.")
            # Of a quote that is never closed; what is left would pass for records.
            ends_here = "limit" in str(error) and text_lines.number > first_line
        try:
            if fault := text_lines.take_fault() or fault:
                raise fault
            if not header:
                _check_header(row, rule, lines.name)
                header = row
                columns = [header.index(name) for name in rule.fields]
                continue
            if not row:
                continue
            if len(row) != len(header):
                raise _unequal(place, len(row), header)
            values = {name: row[at] for name, at in zip(rule.fields, columns, strict=True)}
            text = rule.text_of(values, place) if rule.pieces else row[columns[0]]
            check_length(text, place)
        except DataError as error:
            refuse(place, error)
            if ends_here or not header:
                return
            continue
        yield Document(text, place)
    if not header:
        refuse(
            f"{lines.name}:1",
            DataError(f"{lines.name}:1 has no header, but its first line names the columns."),
        )
