"""A .json file of any size, value by value: an array's elements, or values one after another.

Only the value at hand and one block are in memory. Every fault names file, line and byte.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_tinyformer.data.text.compression import read_blocks
from hf_tinyformer.data.text.documents import LARGEST_DOCUMENT, decode, too_long
from hf_tinyformer.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")

_LONGEST_WORD = len("-Infinity")
"""Characters of JSON that stand or fall together, strings aside."""


class _JsonText:
    """The text from the value at hand to the end of the blocks read so far."""

    def __init__(self, path: Path) -> None:
        self.name = path.as_posix()
        self._blocks = read_blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.position = 0
        self.ended = False
        self._line = 1  # where text[_counted] stands: line, and bytes of that line before it
        self._bytes_before = 0
        self._counted = 0
        if self.more() and self.text.startswith("\ufeff"):
            self.text = self.text[1:]

    def more(self) -> bool:
        """Read another block; tell whether there was one."""
        block = next(self._blocks, None)
        unfinished = self._decoder.getstate()[0]
        try:
            more = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError:
            line, byte = self._count(len(self.text))
            # Spaces in place of the bytes before, so that the message counts them.
            raw = b" " * (byte - 1) + unfinished + (block or b"")
            decode(raw, self.name, line)
            raise
        self._count(self.position)
        self.text = self.text[self.position :] + more
        self.position = self._counted = 0
        self.ended = block is None
        return not self.ended

    def _count(self, position: int) -> tuple[int, int]:
        """Return line and byte of a position, from 1; positions must not go back past the last."""
        newlines = self.text.count("\n", self._counted, position)
        begin = self.text.rfind("\n", self._counted, position) + 1 if newlines else self._counted
        if newlines:
            self._line += newlines
            self._bytes_before = 0
        self._bytes_before += len(self.text[begin:position].encode("utf-8"))
        self._counted = position
        return self._line, self._bytes_before + 1

    def place(self, position: int | None = None) -> str:
        """Name a position as `path:line:byte`; unset, the one where reading stands."""
        line, byte = self._count(self.position if position is None else position)
        return f"{self.name}:{line}:{byte}"

    def next_character(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text) or not self.more():
                return self.text[self.position : self.position + 1]

    def parse_value(self) -> Any:
        """Parse the value that begins here, reading on until it is whole."""
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
                if end < len(self.text) or self.ended:  # a number may go on in the next block
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                # What is not read yet can mend only an open string, and a word that has begun.
                may_go_on = error.msg.startswith("Unterminated string") or (
                    error.pos > len(self.text) - _LONGEST_WORD
                )
                if self.ended or not may_go_on:
                    raise DataError(
                        f"{self.place(error.pos)} is not JSON ({error.msg}). Repair the file."
                    ) from None
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{self.place()} cannot be parsed ({error}). Repair or remove the record."
                ) from None
            unparsed = len(self.text) - self.position
            if unparsed > LARGEST_DOCUMENT:
                raise too_long(self.place(), "a record", LARGEST_DOCUMENT)
            # Twice as much each time, or a long record would be parsed once for every block.
            while len(self.text) - self.position < 2 * unparsed and self.more():
                pass


def _expected(source: _JsonText, found: str, what: str) -> DataError:
    return DataError(
        f"{source.place()} has {repr(found) if found else 'its end'}, but {what}. "
        "Repair the file; one object a line is a .jsonl file."
    )


def iterate_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Parse a .json file piece by piece.

    Args:
        path: The file. If its first character is a bracket it is an array, and its elements are
            the values; else it is values one after another, with white space between or nothing.

    Yields:
        Where each value begins, as `path:line:byte`, and the value.

    Raises:
        DataError: If the file is not UTF-8 or not JSON; what came before has been yielded.
        OSError, EOFError, and what else is in `compression.UNREADABLE`.
    """
    source = _JsonText(path)
    character = source.next_character()
    if character != "[":
        while character:
            yield source.place(), source.parse_value()
            character = source.next_character()
        return
    source.position += 1
    character = source.next_character()
    while character != "]":
        yield source.place(), source.parse_value()
        character = source.next_character()
        if character == ",":
            source.position += 1
            character = source.next_character()
            if character == "]":
                raise _expected(source, character, "after a comma another value comes")
        elif character != "]":
            raise _expected(source, character, "in an array a comma or a bracket comes next")
    source.position += 1
    if character := source.next_character():
        raise _expected(source, character, "nothing comes after the array")
