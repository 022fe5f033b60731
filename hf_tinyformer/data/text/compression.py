"""Compressed files as streams of bytes, and their damage as errors.

Each kind is decompressed while it is read, so memory does not grow with what it unpacks to: gzip,
bzip2 and xz by Python, Zstandard by pyarrow. A file that is cut short or damaged is an error in
all four; what came before the damage has been given out by then.
"""

import bz2
import errno
import gzip
import io
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

from hf_tinyformer.errors import DataError

COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")

BLOCK_BYTES = 1 << 20
"""What is read at a time."""

_PACKED_BYTES = 1 << 13
"""What is read of a .bz2 or .xz at a time: each small stream copies what follows it in there, and
what one of these unpacks to is lost with damage in it."""

LARGEST_UNPACKED_TABLE = 64 << 30
"""Bytes that a compressed table may unpack to, in the folder for temporary files."""


class DamagedFileError(Exception):
    """A compressed file is cut short or damaged."""


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, DamagedFileError)

_TROUBLE_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


def is_compressed(path: Path) -> bool:
    """Tell whether a file's ending names a compression."""
    return path.suffix.lower() in COMPRESSED_ENDINGS


class _JoinedStreams(io.RawIOBase):
    """Streams of bzip2 or xz, one after another, unpacked as one.

    Python's own readers take a stream that fails at its beginning for rubbish after the last one,
    and end there without an error.

    Args:
        packed: The file.
        ending: Which of the two it is. In .xz zero bytes may follow a stream, in fours.
    """

    def __init__(self, packed: io.FileIO, ending: str) -> None:
        self._packed = packed
        self._is_xz = ending == ".xz"
        self._begin: Callable[[], Any] = (
            lzma.LZMADecompressor if self._is_xz else bz2.BZ2Decompressor
        )
        self._stream = self._begin()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        unpacked = b""
        while not unpacked:
            packed = b""
            if self._stream.eof:
                packed = self._next_stream()
                if not packed:
                    return 0
                self._stream = self._begin()
            elif self._stream.needs_input:
                packed = self._packed.read(_PACKED_BYTES)
                if not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker")
            unpacked = self._stream.decompress(packed, len(buffer))
        buffer[: len(unpacked)] = unpacked
        return len(unpacked)

    def _next_stream(self) -> bytes:
        """Return what follows the stream that has ended; nothing at the file's end."""
        packed = self._stream.unused_data or self._packed.read(_PACKED_BYTES)
        padding = 0
        while self._is_xz and packed.startswith(b"\0"):
            stripped = packed.lstrip(b"\0")
            padding += len(packed) - len(stripped)
            packed = stripped or self._packed.read(_PACKED_BYTES)
        if padding % 4:
            raise DamagedFileError(f"{padding} zero bytes follow a stream, which come in fours")
        return packed


def _open_zstandard(path: Path) -> BufferedIOBase:
    import pyarrow as pa

    raw = pa.OSFile(str(path), "rb")
    return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), BLOCK_BYTES)


def open_unpacked(path: Path) -> BufferedIOBase:
    """Open a file for reading, decompressing it if its ending says so.

    Raises:
        OSError: If it cannot be opened.
        EOFError: If it is compressed and has no byte, which the libraries take for an empty text.
    """
    ending = path.suffix.lower()
    if ending in COMPRESSED_ENDINGS and path.stat().st_size == 0:
        raise EOFError("it has 0 bytes")
    if ending == ".gz":
        return cast(BufferedIOBase, gzip.open(path, "rb"))
    if ending in (".bz2", ".xz"):
        return io.BufferedReader(_JoinedStreams(path.open("rb", buffering=0), ending), BLOCK_BYTES)
    return _open_zstandard(path) if ending == ".zst" else path.open("rb")


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Give what bzip2 and Zstandard raise for damage, an OSError without a number, a name."""
    try:
        yield
    except OSError as error:
        # Python's own OSErrors carry a number: no permission, no such file, a disk that fails.
        if error.errno is None and not isinstance(error, gzip.BadGzipFile) and is_compressed(path):
            hint = (
                "; written with --long, which needs more memory than readers allow"
                if "too much memory" in str(error)
                else ""
            )
            raise DamagedFileError(f"{error}{hint}") from None
        raise


UNREADABLE = (*_DAMAGE, OSError)
"""What reading a file may raise. `unreadable` makes a DataError of it."""


def unreadable(place: str, error: Exception) -> DataError:
    """Say that a file cannot be read, and from where on.

    Raises:
        DataError: If that is no fault of the file but trouble of the machine: a full or failing
            disk, too many open files. It would pass over good files, so it is never skipped.
    """
    if isinstance(error, _DAMAGE):
        return DataError(
            f"{place} cannot be decompressed ({error}), so the file is cut short or damaged. "
            "Fetch it again, or leave it out of the globs."
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    if isinstance(error, OSError) and error.errno in _TROUBLE_OF_THE_MACHINE:
        raise DataError(
            f"{place} cannot be read ({reason}), but that is trouble of the machine and not of the "
            "file, so it is never skipped. Put it right and start again."
        )
    return DataError(f"{place} cannot be read ({reason}). Put it right, or change the globs.")


def read_blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed, some at a time.

    Args:
        path: The file.
        start: The first byte wanted. Only of files that are not compressed.
        stop: One more than the last byte wanted; `None` reads to the end.

    Raises:
        OSError, EOFError, and what else is in `UNREADABLE`.
    """
    with damage_named(path), open_unpacked(path) as stream:
        if start:
            stream.seek(start)
        left = -1 if stop is None else stop - start
        while left:
            # read1 gives what there is: `read` would lose what it has when it comes upon damage.
            block = stream.read1(BLOCK_BYTES if left < 0 else min(BLOCK_BYTES, left))
            if not block:
                return
            left -= len(block) if left > 0 else 0
            yield block


@contextmanager
def seekable(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that can be sought in; a compressed one is unpacked into a temporary file.

    Raises:
        DamagedFileError: If it unpacks to more than `LARGEST_UNPACKED_TABLE` bytes.
    """
    if not is_compressed(path):
        with path.open("rb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as plain:
        for block in read_blocks(path):
            plain.write(block)
            if plain.tell() > LARGEST_UNPACKED_TABLE:
                raise DamagedFileError(f"it unpacks to more than {LARGEST_UNPACKED_TABLE:,} bytes")
        plain.seek(0)
        yield plain
