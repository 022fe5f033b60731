"""Compressed files of several streams, and what the machine does wrong and not the file."""

import bz2
import errno
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_tinyformer.data.text import compression
from hf_tinyformer.data.text.compression import UNREADABLE, read_blocks, unreadable
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import plan_parts, read_part
from hf_tinyformer.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "xz": lzma.compress}
PIECES = [b"".join(b"%d\n" % (number + start) ** 9 for number in range(1000)) for start in range(4)]

in_both = pytest.mark.parametrize("ending", COMPRESS)


def unpack(path: Path) -> tuple[bytes, str]:
    """What is read of a file, and the error that ends it."""
    found = b""
    try:
        for block in read_blocks(path):
            found += block
    except UNREADABLE as error:
        return found, str(unreadable(path.name, error))
    return found, ""


@pytest.fixture
def streams(ending: str) -> list[bytes]:
    return [COMPRESS[ending](piece) for piece in PIECES]


@in_both
def test_joined_streams_are_read_to_the_end(streams: list[bytes], ending: str, tmp_path: Path):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join([*streams, COMPRESS[ending](b""), *streams]))

    assert unpack(path) == (b"".join(PIECES * 2), "")


@in_both
@pytest.mark.parametrize("byte", [0, 3, 7, 12, 60])
def test_a_stream_damaged_at_its_beginning_is_an_error_after_the_streams_before_it(
    streams: list[bytes], ending: str, byte: int, tmp_path: Path
):
    damaged = bytearray(streams[1])
    damaged[byte] ^= 0xFF
    path = tmp_path / f"a.{ending}"
    path.write_bytes(streams[0] + damaged + streams[2] + streams[3])

    found, error = unpack(path)

    assert found == PIECES[0]
    assert f"a.{ending} cannot be decompressed" in error


@in_both
@pytest.mark.parametrize("rubbish", [b"rubbish between two streams", b"x", b"\0", b"\n"])
@pytest.mark.parametrize("followed", [True, False])
def test_rubbish_after_a_stream_is_an_error(
    streams: list[bytes], ending: str, rubbish: bytes, followed: bool, tmp_path: Path
):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(streams[0] + rubbish + streams[1] * followed)

    found, error = unpack(path)

    assert found == PIECES[0]
    assert "cannot be decompressed" in error


@in_both
def test_a_last_stream_that_is_cut_is_an_error(streams: list[bytes], ending: str, tmp_path: Path):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(streams[0] + streams[1][:10])

    found, error = unpack(path)

    assert found == PIECES[0]
    assert "Compressed file ended before the end-of-stream marker" in error


@pytest.mark.parametrize("zeros", [4, 8, 24_576])
def test_zero_bytes_in_fours_may_follow_a_stream_of_xz(zeros: int, tmp_path: Path):
    path = tmp_path / "a.xz"
    padding = bytes(zeros)
    path.write_bytes(lzma.compress(b"one") + padding + lzma.compress(b"two") + padding)
    assert unpack(path) == (b"onetwo", "")

    path.write_bytes(lzma.compress(b"one") + padding + b"\0\0" + lzma.compress(b"two"))
    assert unpack(path)[0] == b"one"
    assert f"({zeros + 2} zero bytes follow a stream, which come in fours)" in unpack(path)[1]


@in_both
@pytest.mark.parametrize("size", [1, 100, 1 << 13])
def test_streams_may_end_anywhere_in_what_is_read_at_a_time(
    streams: list[bytes], ending: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compression, "_PACKED_BYTES", size)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join(streams))

    assert unpack(path) == (b"".join(PIECES), "")


TROUBLE = ["ENOSPC", "EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("a.jsonl", code) for code in TROUBLE),
        *((name, "EIO") for name in ("a.txt", "a.json", "a.csv", "a.tsv", "a.parquet.gz")),
    ],
)
def test_trouble_of_the_machine_is_never_skipped(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / name).write_bytes(gzip.compress(b"x") if name.endswith("gz") else b"x")
    (tmp_path / "v.txt").write_text("held out")
    config = DataConfig(
        files=[str(tmp_path / name)], validation_files=[str(tmp_path / "v.txt")], on_error="skip"
    )
    part = plan_parts(config)[0]
    number = getattr(errno, code)

    def fail(path: Path) -> None:
        raise OSError(number, "trouble", str(path))

    monkeypatch.setattr(compression, "open_unpacked", fail)
    with pytest.raises(DataError, match=rf"{name}:1 cannot be read \(trouble\).*never skipped"):
        list(read_part(config, part))

    number = errno.EACCES
    assert list(read_part(config, part)) == []
