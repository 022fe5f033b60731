"""What a document is, and how bytes become text or an error that names `file:line:byte`.

Text is taken as it stands, white space, line ends (CRLF too) and NUL included. One exception: a
UTF-8 byte order mark at a file's start is no text and is left out.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hf_tinyformer.data.text.compression import UNREADABLE, read_blocks, unreadable
from hf_tinyformer.errors import DataError

LARGEST_DOCUMENT = 1 << 30
"""UTF-8 bytes of one document, line or record. What is longer is refused unread, so that a small
file that unpacks to terabytes costs no more memory than this."""

_WORTH_CHECKING = 1 << 20
"""Shorter texts cannot have what `check_text` looks for in a text without surrogates."""

_LONGEST_SPACE_RUN = 5_000_000
# Oniguruma, the regex engine of `tokenizers`, gives up (as a panic) after ten million steps back,
# and the pattern steps back once for each white-space character of a run.
_SPACE_RUN = re.compile(rf"\s{{{_LONGEST_SPACE_RUN}}}")


class Document(NamedTuple):
    """One text of the corpus."""

    text: str

    source: str
    """Where it begins, as `path:line` (`path:row` in tables, `path:line:byte` in .json), the path
    as the globs gave it. In a later part of a large file `path@BYTE:line`, lines counted from that
    byte. No other document of its source begins there."""


class Skipped(NamedTuple):
    """What `data.on_error=skip` left out."""

    place: str
    """`path:line` and what else is known."""

    reason: str
    """The error that stands in the way, in one line."""


Refuse = Callable[[str, DataError], None]
"""Told of a place and what is wrong there: raises it, or notes it and lets reading go on."""


def check_text(text: str, source: str) -> None:
    """Refuse the texts that cannot be tokenized: lone surrogates, endless white space.

    Args:
        text: A document.
        source: Where it comes from, for the message.

    Raises:
        DataError: If the text has a lone surrogate, or a run of more than five million spaces.
    """
    # isascii() reads a flag; only other texts are scanned.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source} has the lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}, but half a character has no UTF-8 form. Repair or remove it."
            ) from None
    if len(text) >= _LONGEST_SPACE_RUN and _SPACE_RUN.search(text):
        raise DataError(
            f"{source} has a run of white space of {_LONGEST_SPACE_RUN:,} characters or more, "
            "but the tokenizer cannot cut so long a run. Shorten it."
        )


def refuse_all(place: str, error: DataError) -> None:  # noqa: ARG001 - a Refuse has a place
    """Raise the error: one bad record ends the reading. A `Refuse`."""
    raise error


def _likely_encoding(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    try:
        raw.decode("cp949")  # EUC-KR is a part of it
    except UnicodeDecodeError:
        return "WINDOWS-1252"
    return "CP949"


def decode(raw: bytes, name: str, first_line: int = 1) -> str:
    """Turn bytes into text.

    Args:
        raw: Whole lines.
        name: Their file, for messages.
        first_line: Number of the first of them.

    Raises:
        DataError: If they are not UTF-8; names file, line and byte, counted from 1.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}:{line}:{byte} is the byte 0x{raw[error.start]:02x}, but text must "
            f"be UTF-8. Convert the file, perhaps with `iconv -f {_likely_encoding(raw)} -t UTF-8`."
        ) from None


def check_length(text: str, place: str) -> None:
    """Refuse what no tokenizer can cut, in a text that is known to have no lone surrogate.

    Raises:
        DataError: See `check_text`.
    """
    if len(text) > _WORTH_CHECKING:
        check_text(text, place)


def too_long(place: str, what: str, limit: int) -> DataError:
    """Say that one record alone is larger than may be."""
    return DataError(
        f"{place} begins {what} of more than {limit:,} bytes, but that is the most. "
        "Cut it into several."
    )


class Lines:
    """The lines of a file or of a range in it, with their numbers.

    Args:
        path: The file; decompressed if its ending says so.
        refuse: Told of damage, which ends the lines, and of a line that is too long.
        byte_range: First byte and one more than the last, both at line ends.
    """

    def __init__(
        self, path: Path, refuse: Refuse, byte_range: tuple[int, int] | None = None
    ) -> None:
        self.name = path.as_posix()
        self._path = path
        self._refuse = refuse
        self._start = byte_range[0] if byte_range else 0
        self._stop = byte_range[1] if byte_range else None
        self._lines_before: int | None = None if self._start else 0

    def place(self, number: int) -> str:
        """Name a line as `path:line`, `number` counted from 1 in the range."""
        if self._lines_before is None:
            # Only for messages, so counting waits until there is one.
            blocks = read_blocks(self._path, 0, self._start)
            self._lines_before = sum(block.count(b"\n") for block in blocks)
        return f"{self.name}:{self._lines_before + number}"

    def first_line(self, number: int) -> int:
        """Return a line's number in the whole file."""
        return int(self.place(number).rpartition(":")[2])

    @property
    def prefix(self) -> str:
        """What documents' sources begin with, a line's number in the range to follow."""
        return f"{self.name}@{self._start}:" if self._start else f"{self.name}:"

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each line, the line feed and a byte order mark left out."""
        number = 0
        begun: list[bytes] = []  # the line that has not ended yet
        length = 0
        try:
            for block in read_blocks(self._path, self._start, self._stop):
                first, *rest = block.split(b"\n")
                if number == 0 and not begun and not self._start:
                    first = first.removeprefix(codecs.BOM_UTF8)
                begun.append(first)
                length += len(first)
                if length > LARGEST_DOCUMENT:
                    begun = begun[:1]
                    self._refuse_once(number + 1, length - len(first))
                if not rest:
                    continue
                number += 1
                if length <= LARGEST_DOCUMENT:
                    yield number, b"".join(begun)
                *whole, last = rest
                for line in whole:
                    number += 1
                    yield number, line
                begun, length = [last], len(last)
        except UNREADABLE as error:
            place = self.place(number + 1)
            self._refuse(place, unreadable(place, error))
            return
        if begun and begun != [b""] and length <= LARGEST_DOCUMENT:
            yield number + 1, b"".join(begun)

    def _refuse_once(self, number: int, length_before: int) -> None:
        if length_before <= LARGEST_DOCUMENT:
            place = self.place(number)
            self._refuse(place, too_long(place, "a line", LARGEST_DOCUMENT))


def read_text(path: Path, refuse: Refuse = refuse_all) -> Iterator[Document]:
    """Read a file that is one document.

    Yields:
        The document; nothing if the file cannot be used and `refuse` lets that pass.
    """
    name = path.as_posix()
    place = f"{name}:1"
    blocks: list[bytes] = []
    length = 0
    try:
        for block in read_blocks(path):
            blocks.append(block)
            length += len(block)
            if length > LARGEST_DOCUMENT:
                refuse(place, too_long(place, "a document", LARGEST_DOCUMENT))
                return
    except UNREADABLE as error:
        lines = sum(block.count(b"\n") for block in blocks)
        refuse(place, unreadable(f"{name}:{lines + 1}", error))
        return
    try:
        text = decode(b"".join(blocks).removeprefix(codecs.BOM_UTF8), name)
        check_length(text, place)
    except DataError as error:
        refuse(place, error)
        return
    yield Document(text, place)
