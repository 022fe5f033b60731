"""Compressed files as streams of bytes, and their damage as errors.

Each kind is decompressed while it is read, so memory does not grow with what it unpacks to: gzip,
bzip2 and xz by Python, Zstandard by pyarrow. A file that is cut short or damaged is an error in
all four; what came before the damage has been given out by then.
"""

import bz2
import gzip
import io
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, cast

from hf_tinyformer.errors import DataError

COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")

BLOCK_BYTES = 1 << 20
"""What is read at a time."""

LARGEST_UNPACKED_TABLE = 64 << 30
"""Bytes that a compressed table may unpack to, in the folder for temporary files."""


class DamagedFileError(Exception):
    """A compressed file is cut short or damaged."""


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, DamagedFileError)


def is_compressed(path: Path) -> bool:
    """Tell whether a file's ending names a compression."""
    return path.suffix.lower() in COMPRESSED_ENDINGS


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
    if ending == ".bz2":
        return bz2.open(path, "rb")
    if ending == ".xz":
        return lzma.open(path, "rb")
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
    """Say that a file cannot be read, and from where on."""
    if isinstance(error, _DAMAGE):
        return DataError(
            f"{place} cannot be decompressed ({error}), so the file is cut short or damaged. "
            "Fetch it again, or leave it out of the globs."
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
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
