"""Which text of a record is the document: one field, or several joined by a template."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_tinyformer.errors import ConfigError, DataError


def json_name(value: Any) -> str:
    """Name a JSON value's type in words."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


@dataclass(frozen=True)
class TextRule:
    """Makes a document's text from a record's fields (columns, in tables)."""

    setting: str
    """The key a user sets it by, for messages, such as `data.text_field`."""

    value: str
    """What that key is."""

    fields: tuple[str, ...]
    """The fields it reads, each once, in the order of their first use."""

    pieces: tuple[tuple[str, str | None], ...] = ()
    """For a template: fixed text, then a field's name or None, over and over."""

    def missing(self, place: str, present: Sequence[str]) -> DataError:
        """Say that a record or table lacks a field."""
        absent = next(field for field in self.fields if field not in present)
        what = "such field" if self.fields == (self.value,) else f"field {absent!r}"
        return DataError(
            f"{self.setting} is {self.value!r}, but {place} has no {what}; it has "
            f"{', '.join(map(repr, present)) or 'none'}. Set {self.setting} to what is there."
        )

    def not_text(self, place: str, field: str, found: str) -> DataError:
        """Say that a field holds something else than text."""
        return DataError(
            f"{place} has {found} in field {field!r}, but a document is a string. "
            f"Repair or remove it, or change {self.setting}."
        )

    def text_of(self, record: Mapping[str, Any], place: str) -> str:
        """Make the text of one record.

        Args:
            record: Names to values.
            place: Where it stands, for messages.

        Raises:
            DataError: If a field is missing, or holds no string; in a template whole numbers may
                stand too.
        """
        for field in self.fields:
            if field not in record:
                raise self.missing(place, list(record))
            value = record[field]
            whole_number = isinstance(value, int) and not isinstance(value, bool)
            if not (isinstance(value, str) or (self.pieces and whole_number)):
                raise self.not_text(place, field, json_name(value))
        if not self.pieces:
            return str(record[self.fields[0]])
        return "".join(
            literal + ("" if field is None else str(record[field]))
            for literal, field in self.pieces
        )


def _parse_template(key: str, template: str) -> tuple[tuple[str, str | None], ...]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{key} is {template!r}, but its braces do not match ({error}). "
            "Write {name} for a column, and {{ or }} for a brace."
        ) from None
    pieces: list[tuple[str, str | None]] = []
    for literal, field, form, conversion in parsed:
        # Nothing is looked up in a value and nothing is run: a name stands for its column.
        if field is not None and (not field or form or conversion or set(field) & set(".[]")):
            raise ConfigError(
                f"{key} is {template!r}, but between braces only a column's plain name may stand. "
                "Write it as in '{title}\\n\\n{text}'."
            )
        pieces.append((literal, field))
    if not any(field for _, field in pieces):
        raise ConfigError(
            f"{key} is {template!r}, but it names no column, so every document would be the same. "
            "Write it as in '{title}\\n\\n{text}'."
        )
    return tuple(pieces)


def make_text_rule(key: str, text_field: str, template: str | None) -> TextRule:
    """Build the rule that settings ask for.

    Args:
        key: Where they stand, such as `data` or `data.sources.wiki`.
        text_field: The field to take whole.
        template: Text with fields' names in braces; if set, it is used instead.

    Raises:
        ConfigError: If the template is not one.
    """
    if template is None:
        return TextRule(f"{key}.text_field", text_field, (text_field,))
    pieces = _parse_template(f"{key}.template", template)
    fields = tuple(dict.fromkeys(field for _, field in pieces if field is not None))
    return TextRule(f"{key}.template", template, fields, pieces)
