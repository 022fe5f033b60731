"""Every kind of broken file: loaded as documented, or refused by file, line and byte.

Each case is a file beside a good one. `raise` must refuse the broken one by its place; `skip` must
give exactly the texts listed, and list everything else that it left out.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tinyformer.data.text import documents, json_stream, records
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import plan_parts, read_part
from hf_tinyformer.errors import DataError

GOOD = "the good file"


class Case(NamedTuple):
    """A file, the texts it gives, and what is wrong with it."""

    name: str
    content: bytes
    texts: list[str]
    refused: str | None = None
    """What the message says; None for a file that is loaded whole."""

    skipped: int = 1


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def parquet(columns: dict, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def arrow(columns: dict, kind: str = "stream", rows: int = 2) -> bytes:
    table = pa.table(columns)
    sink = io.BytesIO()
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def many(count: int = 3000) -> list[str]:
    return [f"record {number**9}" for number in range(count)]


MANY_LINES = lines(*({"text": text} for text in many()))
TWO = lines({"text": "one"}, {"text": "two"})
ROWS = {"text": ["one", "two", "three", "four"]}

CASES = {
    # Loaded, as documented
    "crlf": Case("a.txt", b"one\r\ntwo\r\n", ["one\r\ntwo\r\n"]),
    "lone carriage returns": Case("a.txt", b"one\rtwo", ["one\rtwo"]),
    "nul": Case("a.txt", b"one\x00two", ["one\x00two"]),
    "byte order mark": Case("a.txt", b"\xef\xbb\xbfone", ["one"]),
    "byte order mark in jsonl": Case("a.jsonl", b"\xef\xbb\xbf" + TWO, ["one", "two"]),
    "byte order mark in json": Case("a.json", b'\xef\xbb\xbf[{"text": "one"}]', ["one"]),
    "byte order mark in csv": Case("a.csv", b"\xef\xbb\xbftext\none\n", ["one"]),
    "empty text file": Case("a.txt", b"", [""]),
    "empty jsonl": Case("a.jsonl", b"", []),
    "empty array": Case("a.json", b" [ ] \n", []),
    "header only": Case("a.csv", b"id,text\n", []),
    "parquet without rows": Case("a.parquet", parquet({"text": pa.array([], pa.string())}), []),
    "arrow without rows": Case("a.arrow", arrow({"text": pa.array([], pa.string())}), []),
    "no line end at the end": Case("a.jsonl", TWO[:-1], ["one", "two"]),
    "blank lines": Case("a.jsonl", b"\n \n" + TWO + b"\r\n\t\n", ["one", "two"]),
    "crlf in jsonl": Case("a.jsonl", TWO.replace(b"\n", b"\r\n"), ["one", "two"]),
    "duplicate ids": Case(
        "a.jsonl", lines({"id": 1, "text": "one"}, {"id": 1, "text": "two"}), ["one", "two"]
    ),
    "duplicate keys, the last counts": Case("a.jsonl", b'{"text": "a", "text": "b"}', ["b"]),
    "NaN beside the text": Case("a.jsonl", b'{"x": NaN, "text": "one"}', ["one"]),
    "deep nesting beside the text": Case(
        "a.jsonl", b'{"x": ' + b"[" * 500 + b"]" * 500 + b', "text": "one"}', ["one"]
    ),
    "line separators of unicode": Case(
        "a.jsonl", lines({"text": "a\u2028b\x85c"}), ["a\u2028b\x85c"]
    ),
    "escaped nul": Case("a.jsonl", b'{"text": "a\\u0000b"}', ["a\x00b"]),
    "array on one line": Case("a.json", b'[{"text":"one"},{"text":"two"}]', ["one", "two"]),
    "array over many lines": Case(
        "a.json", json.dumps([{"text": "one"}, {"text": "two"}], indent=2).encode(), ["one", "two"]
    ),
    "one object": Case("a.json", b'{\n "text": "one"\n}\n', ["one"]),
    "lines in a json file": Case("a.json", TWO, ["one", "two"]),
    "quotes, commas and line ends in csv": Case(
        "a.csv", b'id,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,plain\r\n', ['a, "b"\r\nc', "plain"]
    ),
    "nul in csv": Case("a.csv", b"text\na\x00b\n", ["a\x00b"]),
    "quotes in tsv are characters": Case("a.tsv", b'id\ttext\n1\t"a\n2\tb"c\n', ['"a', 'b"c']),
    "joined gzip": Case("a.txt.gz", gzip.compress(b"one") + gzip.compress(b"two"), ["onetwo"]),
    "joined bzip2": Case("a.txt.bz2", bz2.compress(b"one") + bz2.compress(b"two"), ["onetwo"]),
    "joined zstd": Case("a.txt.zst", zstd(b"one") + zstd(b"two"), ["onetwo"]),
    "many in zstd": Case("a.jsonl.zst", zstd(MANY_LINES), many()),
    "many in bzip2": Case("a.jsonl.bz2", bz2.compress(MANY_LINES), many()),
    "csv in xz": Case("a.csv.xz", lzma.compress(b"text\none\n"), ["one"]),
    "parquet in zstd": Case("a.parquet.zst", zstd(parquet(ROWS)), ROWS["text"]),
    "arrow file": Case("a.arrow", arrow(ROWS, "file"), ROWS["text"]),
    "arrow stream": Case("a.arrow", arrow(ROWS), ROWS["text"]),
    "arrow in gzip": Case("a.arrow.gz", gzip.compress(arrow(ROWS, "file")), ROWS["text"]),
    # Refused: encodings
    "windows-1252": Case(
        "a.txt", b"x\ncaf\xe9 y", [], r"a\.txt:2:4 is the byte 0xe9.*WINDOWS-1252"
    ),
    "cp949": Case("a.txt", "똠방\n".encode("cp949"), [], r"a\.txt:1:1 is the byte 0x8c.*-f CP949"),
    "euc-kr": Case("a.txt", "가나다".encode("euc-kr"), [], r"a\.txt:1:1 is the byte 0xb0.*CP949"),
    "utf-16": Case("a.txt", "one".encode("utf-16"), [], r"a\.txt:1:1 is the byte 0xff.*UTF-16"),
    "utf-16 without mark": Case(
        "a.jsonl", '{"text": "é"}'.encode("utf-16-le"), [], r"a\.jsonl:1:2[0-9] is the byte 0xe9"
    ),
    "cut in a character": Case("a.txt", "x\n한".encode()[:-1], [], r"a\.txt:2:1 is the byte 0xed"),
    "latin line in csv": Case(
        "a.csv",
        b"id,text\n1,one\n2,caf\xe9\n3,three\n",
        ["one", "three"],
        r"a\.csv:3:6 is the byte",
    ),
    "latin in json": Case(
        "a.json", b'[{"text": "one"},\n {"text": "caf\xe9"}]', [], r"a\.json:2:15 is the byte 0xe9"
    ),
    # Refused: records
    "broken line": Case(
        "a.jsonl", TWO + b'{"text": "x"\n' + TWO, ["one", "two"] * 2, r"a\.jsonl:3:13 is not JSON"
    ),
    "torn last line": Case("a.jsonl", TWO + b'{"tex', ["one", "two"], r"a\.jsonl:3:2 is not JSON"),
    "byte place after wide characters": Case(
        "a.jsonl", '{"text": "가나" "}'.encode(), [], r"a\.jsonl:1:19 is not JSON"
    ),
    "array line": Case("a.jsonl", b'["text"]\n' + TWO, ["one", "two"], r"a\.jsonl:1 is a list"),
    "null line": Case("a.jsonl", b"null\n" + TWO, ["one", "two"], r"a\.jsonl:1 is null"),
    "bare NaN": Case("a.jsonl", b"NaN\n" + TWO, ["one", "two"], r"a\.jsonl:1 is a number"),
    "too deep nesting": Case(
        "a.jsonl", b"[" * 10**5 + b"\n" + TWO, ["one", "two"], r"a\.jsonl:1 cannot"
    ),
    "huge number": Case(
        "a.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n" + TWO, ["one", "two"], r"a\.jsonl:1 cannot be"
    ),
    "missing field": Case(
        "a.jsonl", lines({"body": "x"}) + TWO, ["one", "two"], r"'text', but a\.jsonl:1 has no such"
    ),
    "null text": Case(
        "a.jsonl", lines({"text": None}, {"text": "one"}), ["one"], r"a\.jsonl:1 has null in"
    ),
    "mixed types": Case(
        "a.jsonl",
        lines({"text": 1}, {"text": "one"}, {"text": ["x"]}, {"text": {}}, {"text": True}),
        ["one"],
        r"a\.jsonl:1 has a number in field 'text'",
        skipped=4,
    ),
    "lone surrogate": Case(
        "a.jsonl", b'{"text": "\\ud800"}\n' + TWO, ["one", "two"], r"a\.jsonl:1 has the lone surr"
    ),
    "json is cut": Case(
        "a.json", b'[{"text": "one"},\n{"text": "tw', ["one"], r"a\.json:2:10 is not JSON"
    ),
    "json without comma": Case(
        "a.json", b'[{"text": "one"} {"text": "two"}]', ["one"], r"a\.json:1:18 has '\{', but in an"
    ),
    "json after a comma": Case("a.json", b'[{"text": "one"},]', ["one"], r"a\.json:1:18 has '\]'"),
    "json after the array": Case(
        "a.json", b'[{"text": "one"}]\n!', ["one"], r"a\.json:2:1 has '!'"
    ),
    "json of strings": Case("a.json", b'["one", "two"]', [], r"a\.json:1:2 is a string", skipped=2),
    "json without field": Case(
        "a.json", b'[{"body": "x"},\n {"text": "one"}]', ["one"], r"a\.json:1:2 has no such field"
    ),
    # Refused: tables of text
    "empty csv": Case("a.csv", b"", [], r"a\.csv:1 has no header"),
    "csv without column": Case(
        "a.csv", b"id,body\n1,x\n", [], r"a\.csv has no such field; it has 'id'"
    ),
    "csv with the column twice": Case("a.csv", b"text,text\na,b\n", [], r"a\.csv names 2 columns"),
    "too many fields": Case(
        "a.csv",
        b"id,text\n1,one\n2,a,b\n3,three\n",
        ["one", "three"],
        r"a\.csv:3 has 3 fields, but",
    ),
    "too few fields": Case(
        "a.tsv", b"id\ttext\n1\n2\ttwo\n", ["two"], r"a\.tsv:2 has 1 fields, but"
    ),
    "quote never closed": Case(
        "a.csv", b'id,text\n1,one\n2,"open\n3,x\n', ["one"], r"a\.csv:3 is not a table's record"
    ),
    "text after a quote": Case(
        "a.csv", b'id,text\n1,"a"b\n2,two\n', ["two"], r"a\.csv:2 is not a table's record"
    ),
    "latin line in a quoted field of several lines": Case(
        "a.csv",
        b'id,text\n1,one\n2,"a\n3,caf\xe9\n4,x\n5,\xe9"\n6,six\n',
        ["one", "six"],
        r"a\.csv:4:6 is the byte 0xe9",
    ),
    "latin line before a quote never closed": Case(
        "a.csv", b'id,text\n1,one\n2,"caf\xe9\n3,x\n', ["one"], r"a\.csv:3:7 is the byte 0xe9"
    ),
    "latin header": Case("a.csv", b"caf\xe9,text\n1,one\n", [], r"a\.csv:1:4 is the byte 0xe9"),
    "quote in the header never closed": Case(
        "a.csv", b'id,"text\n1,one\n', [], r"a\.csv:1 is not a table's record"
    ),
    "line number after quoted line ends": Case(
        "a.csv", b'id,text\n1,"a\nb\nc"\n2\n', ["a\nb\nc"], r"a\.csv:5 has 1 fields"
    ),
    # Refused: tables of columns
    "parquet without column": Case(
        "a.parquet", parquet({"b": ["x"]}), [], r"a\.parquet has no such"
    ),
    "parquet of numbers": Case(
        "a.parquet", parquet({"text": [1]}), [], r"a\.parquet has the type int64"
    ),
    "parquet null": Case(
        "a.parquet",
        parquet({"text": ["one", None, "two"]}),
        ["one", "two"],
        r"a\.parquet:2 has null",
    ),
    "parquet not utf-8": Case(
        "a.parquet",
        parquet({"text": pa.array([b"one", b"\xff", b"two"]).view(pa.string())}),
        ["one", "two"],
        r"a\.parquet:2 is not UTF-8 at byte 1",
    ),
    "parquet is cut": Case("a.parquet", parquet(ROWS)[:-9], [], r"a\.parquet:1 cannot be read"),
    "parquet is empty": Case("a.parquet", b"", [], r"a\.parquet:1 cannot be read"),
    "parquet is text": Case("a.parquet", b"one two three", [], r"a\.parquet:1 cannot be read"),
    "arrow stream is cut in a batch": Case(
        "a.arrow", arrow(ROWS)[:-60], [], r"a\.arrow:1 cannot be read"
    ),
    "arrow stream is cut between batches": Case(
        "a.arrow", arrow(ROWS)[:-8], [], r"a\.arrow:1 cannot be read \(it has no end mark"
    ),
    "arrow file is cut": Case(
        "a.arrow", arrow(ROWS, "file")[:-9], [], r"a\.arrow:1 cannot be read"
    ),
    "arrow is empty": Case("a.arrow", b"", [], r"a\.arrow:1 cannot be read"),
    "arrow null": Case("a.arrow", arrow({"text": ["one", None]}), ["one"], r"a\.arrow:2 has null"),
    # Refused: compression
    "gzip is text": Case("a.txt.gz", b"one", [], r"a\.txt\.gz:1 cannot be decompressed"),
    "bzip2 is text": Case("a.txt.bz2", b"one", [], r"a\.txt\.bz2:1 cannot be decompressed"),
    "xz is text": Case("a.txt.xz", b"one", [], r"a\.txt\.xz:1 cannot be decompressed"),
    "zstd is text": Case("a.txt.zst", b"one two", [], r"a\.txt\.zst:1 cannot be decompressed"),
    "gzip is empty": Case("a.txt.gz", b"", [], r"a\.txt\.gz:1 cannot be decompressed \(it has 0"),
    "bzip2 is empty": Case(
        "a.txt.bz2", b"", [], r"a\.txt\.bz2:1 cannot be decompressed \(it has 0"
    ),
    "zstd is empty": Case("a.txt.zst", b"", [], r"a\.txt\.zst:1 cannot be decompressed \(it has 0"),
    "gzip is cut at its end": Case(
        "a.txt.gz", gzip.compress(b"one")[:-1], [], r"a\.txt\.gz:1 cannot"
    ),
    "xz is cut": Case("a.txt.xz", lzma.compress(b"one")[:-8], [], r"a\.txt\.xz:1 cannot"),
    "bzip2 is cut": Case("a.txt.bz2", bz2.compress(b"one")[:-4], [], r"a\.txt\.bz2:1 cannot"),
    "zstd is cut": Case(
        "a.txt.zst", zstd(b"one" * 99)[:-3], [], r"a\.txt\.zst:1 cannot be decompr"
    ),
    "gzip checksum": Case(
        "a.txt.gz", gzip.compress(b"one")[:-8] + bytes(8), [], r"a\.txt\.gz:1 cannot"
    ),
    "rubbish after gzip": Case(
        "a.txt.gz", gzip.compress(b"one") + b"x", [], r"a\.txt\.gz:1 cannot"
    ),
    "parquet in cut gzip": Case(
        "a.parquet.gz", gzip.compress(parquet(ROWS))[:-9], [], r"a\.parquet\.gz:1 cannot be decompr"
    ),
}


@pytest.fixture(autouse=True)
def _stand_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("z_good.txt").write_text(GOOD)
    Path("v.txt").write_text("held out")


def read(on_error: str, files: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    config = DataConfig(files=files, validation_files=["v.txt"], on_error=on_error)
    skipped: list[tuple[str, str]] = []
    found = [
        document.text
        for part in plan_parts(config)
        for split, document in read_part(config, part, skipped.append)
        if split == "train"
    ]
    return found, skipped


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_is_loaded_as_documented_or_refused_by_its_place(name):
    case = CASES[name]
    Path(case.name).write_bytes(case.content)

    if case.refused is None:
        assert read("raise", [case.name, "z_good.txt"]) == ([*case.texts, GOOD], [])
    else:
        with pytest.raises(DataError, match=case.refused) as error:
            read("raise", [case.name, "z_good.txt"])
        assert "\n" not in str(error.value)

    found, skipped = read("skip", [case.name, "z_good.txt"])
    assert found == [*case.texts, GOOD]
    assert len(skipped) == (case.skipped if case.refused else 0)
    for place, reason in skipped:
        assert re.match(rf"{re.escape(case.name)}:\d+", place)
        assert case.name in reason
    if skipped:
        assert re.search(case.refused, skipped[0][1])


def test_there_are_forty_kinds_and_more():
    assert len(CASES) >= 80
    assert sum(case.refused is not None for case in CASES.values()) >= 50


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_what_comes_before_damage_is_read_and_the_line_of_the_damage_is_named(ending):
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[ending]
    # Bzip2 unpacks 900 kB at a time, in which a run of one letter counts for five.
    texts = [f"{number}: {'xy' * 150} {number**9}" for number in range(9_000)]
    raw = compress(lines(*({"text": text} for text in texts)))
    name = f"a.jsonl.{ending}"
    Path(name).write_bytes(raw[: len(raw) * 3 // 4])

    found, skipped = read("skip", [name])

    assert 1000 < len(found) < 9_000
    assert found == texts[: len(found)]
    assert [place for place, _ in skipped] == [f"{name}:{len(found) + 1}"]


# What is not a file, or not a file that stays as it is


def test_a_pipe_a_dangling_link_and_another_ending_are_refused_and_may_be_skipped():
    os.mkfifo("pipe.txt")
    Path("gone.txt").symlink_to("nowhere")
    Path("a.docx").write_text("x")
    Path("link.txt").symlink_to("z_good.txt")

    for name in ("pipe.txt", "gone.txt", "a.docx"):
        with pytest.raises(DataError, match=rf"data\.files matches {re.escape(name)}, but"):
            read("raise", [name])
    found, skipped = read("skip", ["*.*"])

    assert sorted(found) == sorted([GOOD, GOOD, "held out"])  # by its name and by the link
    assert sorted(place for place, _ in skipped) == ["a.docx", "gone.txt", "pipe.txt"]


def test_a_folder_that_ends_like_a_file_is_entered_when_named_and_no_file_for_a_glob():
    Path("folder.txt").mkdir()
    Path("folder.txt/b.txt").write_text("inside")

    assert read("raise", ["folder.txt"])[0] == ["inside"]
    assert read("raise", ["z_*.txt", "folder.*/*"])[0] == [GOOD, "inside"]


def test_a_file_that_may_not_be_read_is_refused_and_may_be_skipped():
    Path("a.txt").write_text("x")
    Path("a.txt").chmod(0)
    folder, user = Path.cwd(), os.geteuid()
    mode = folder.stat().st_mode
    if user == 0:
        folder.chmod(0o755)
        os.seteuid(65534)  # root may read every file
    try:
        with pytest.raises(DataError, match=r"a\.txt:1 cannot be read \(Permission denied\)"):
            read("raise", ["a.txt"])
        found, skipped = read("skip", ["a.txt", "z_good.txt"])
    finally:
        if user == 0:
            os.seteuid(0)
            folder.chmod(mode)

    assert found == [GOOD]
    assert [place for place, _ in skipped] == ["a.txt:1"]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_that_changes_while_it_is_read_is_always_an_error(on_error):
    Path("a.jsonl").write_bytes(MANY_LINES)
    config = DataConfig(files=["a.jsonl"], validation_files=["v.txt"], on_error=on_error)
    reading = read_part(config, plan_parts(config)[0])
    next(reading)
    with Path("a.jsonl").open("ab") as stream:
        stream.write(TWO)

    with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
        list(reading)


def test_a_file_that_changed_after_it_was_planned_is_always_an_error():
    Path("a.txt").write_text("one")
    config = DataConfig(files=["a.txt"], validation_files=["v.txt"], on_error="skip")
    part = plan_parts(config)[0]
    Path("a.txt").write_text("another")

    with pytest.raises(DataError, match=r"a\.txt changed while it was read"):
        list(read_part(config, part))


# Sizes


def test_a_line_of_a_hundred_megabytes_is_one_document():
    text = "x" * 100_000_000
    with Path("a.jsonl").open("w") as stream:
        stream.write(f'{{"text": "{text}"}}\n{{"text": "after"}}\n')

    found, skipped = read("raise", ["a.jsonl"])

    assert [len(one) for one in found] == [100_000_000, 5]
    assert not skipped


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_bomb_is_refused_unread_and_costs_little_memory(monkeypatch, name):
    for module in (documents, json_stream):
        monkeypatch.setattr(module, "LARGEST_DOCUMENT", 4 << 20)
    begin = {"txt": b"", "jsonl": b'{"text": "', "json": b'[{"text": "'}[name.split(".")[1]]
    raw = begin + b"x" * (64 << 20)
    Path(name).write_bytes(gzip.compress(raw, 9))
    del raw
    assert Path(name).stat().st_size < 100_000
    tracemalloc.start()

    with pytest.raises(DataError, match=rf"{name}:1(:2)? begins a .* of more than 4,194,304 bytes"):
        read("raise", [name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 40 << 20


def test_the_lines_around_one_that_is_too_long_are_read(monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_DOCUMENT", 3 << 20)
    long = lines({"text": "x" * (8 << 20)})
    Path("a.jsonl").write_bytes(TWO + long + TWO)

    found, skipped = read("skip", ["a.jsonl"])

    assert found == ["one", "two"] * 2
    assert [place for place, _ in skipped] == ["a.jsonl:3"]


def test_a_quote_never_closed_in_a_large_csv_ends_it(monkeypatch):
    monkeypatch.setattr(records, "LARGEST_FIELD", 1000)
    Path("a.csv").write_text('id,text\n1,one\n2,"open\n' + "3,three\n" * 500)

    found, skipped = read("skip", ["a.csv"])

    assert found == ["one"]
    assert [place for place, _ in skipped] == ["a.csv:3"]


def test_a_csv_written_by_python_comes_back_whatever_is_in_it():
    texts = ['"', "a\nb", "a\r\nb", ",", "", '""', " x ", "한글", "a\tb", "\x00", "'"]
    with Path("a.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))

    assert read("raise", ["a.csv"])[0] == texts
