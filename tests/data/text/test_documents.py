import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tinyformer.data.text.documents import check_text
from hf_tinyformer.data.text.files import file_kind, read_file
from hf_tinyformer.data.text.text_rules import make_text_rule
from hf_tinyformer.errors import DataError

COMPRESS = {"": lambda raw: raw, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def _stand_in_the_folder(tmp_path, monkeypatch):
    # Sources are named as given, so the tests give relative paths.
    monkeypatch.chdir(tmp_path)


def read(name: str, raw: bytes, text_field: str = "text") -> list[tuple[str, str]]:
    path = Path(name)
    path.write_bytes(raw)
    return [
        (document.text, document.source)
        for document in read_file(path, make_text_rule("data", text_field, None))
    ]


def parquet(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [".txt", ".md", ".py", ".TXT"])
def test_a_text_file_is_one_document_exactly_as_it_stands(ending, compression):
    text = "\r\n first\x00\tline\r\rsecond line 한글 \n\n"
    name = f"a{ending}{compression}"

    assert read(name, COMPRESS[compression](text.encode())) == [(text, f"{name}:1")]


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_jsonl_line_is_one_document_and_a_blank_line_is_none(compression):
    raw = b'{"text": "one"}\r\n\n \t\n{"id": 7, "text": "two \\u00e9\\ud83d\\ude00"}\n{"text": ""}'
    name = f"a.jsonl{compression}"

    assert read(name, COMPRESS[compression](raw)) == [
        ("one", f"{name}:1"),
        ("two é\U0001f600", f"{name}:4"),
        ("", f"{name}:5"),
    ]


def test_line_separators_of_unicode_do_not_end_a_jsonl_line():
    text = "a\u2028b\x85c\x0cd"

    assert read("a.jsonl", jsonl({"text": text})) == [(text, "a.jsonl:1")]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_parquet_row_is_one_document(kind, compression):
    texts = [f"row {number}" for number in range(1200)]
    table = pa.table({"id": list(range(1200)), "text": pa.array(texts, kind)})
    name = f"a.parquet{compression}"

    found = read(name, COMPRESS[compression](parquet(table, row_group_size=500)))

    assert found == [(text, f"{name}:{row}") for row, text in enumerate(texts, 1)]


def test_a_parquet_column_of_dictionary_strings_is_read():
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})

    assert [text for text, _ in read("a.parquet", parquet(table))] == ["a", "b", "a"]


def test_another_field_can_hold_the_text():
    record = {"text": 1, "body": "this"}

    assert read("a.jsonl", jsonl(record), "body") == [("this", "a.jsonl:1")]
    table = pa.Table.from_pylist([record])
    assert read("a.parquet", parquet(table), "body") == [("this", "a.parquet:1")]


def test_a_byte_order_mark_at_the_start_is_no_text_but_elsewhere_it_is():
    assert read("a.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb") == [("a\n\ufeffb", "a.txt:1")]
    assert read("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n') == [("a", "a.jsonl:1")]
    assert read("b.txt", b"\xef\xbb\xbf") == [("", "b.txt:1")]


def test_an_empty_file_is_an_empty_document_and_an_empty_jsonl_has_none():
    assert read("a.txt", b"") == [("", "a.txt:1")]
    assert read("a.txt.gz", gzip.compress(b"")) == [("", "a.txt.gz:1")]
    assert read("a.jsonl", b"") == []


def test_joined_gzip_and_xz_parts_are_read_to_the_end():
    assert read("a.txt.gz", gzip.compress(b"a") + gzip.compress(b"b"))[0][0] == "ab"
    assert read("a.txt.xz", lzma.compress(b"a") + lzma.compress(b"b"))[0][0] == "ab"


def test_a_line_of_ten_megabytes_is_one_document():
    text = "x" * 10_000_000

    assert read("a.jsonl.gz", gzip.compress(jsonl({"text": text}), 1))[0][0] == text


def test_a_jsonl_file_is_read_line_by_line():
    path = Path("a.jsonl")
    path.write_bytes(jsonl({"text": "good"}) + b"broken\n")

    documents = read_file(path, make_text_rule("data", "text", None))

    assert next(documents).text == "good"
    with pytest.raises(DataError, match=r"a\.jsonl:2:1 is not JSON"):
        next(documents)


BAD_FILES = {
    "cp949": ("a.txt", "안녕\n둘째".encode("cp949"), r"a\.txt:1:1 is the byte 0xbe.*-f CP949 -t"),
    "windows-1252": ("a.md", b"line\ncaf\xe9 here", r"a\.md:2:4 is the byte 0xe9.*WINDOWS-1252"),
    "utf-16": ("a.txt", "hi".encode("utf-16"), r"a\.txt:1:1 is the byte 0xff.*-f UTF-16"),
    "cut in a character": ("a.py", "\n\nx한".encode()[:-1], r"a\.py:3:2 is the byte 0xed"),
    "encoded surrogate": ("a.txt", b"ab\xed\xa0\x80", r"a\.txt:1:3 is the byte 0xed"),
    "overlong": ("a.txt", b"\xc0\x80", r"a\.txt:1:1 is the byte 0xc0, but text must be UTF-8"),
    "jsonl not utf-8": (
        "a.jsonl",
        jsonl({"text": "ok"}) + b'{"text": "\xff"}\n',
        r"a\.jsonl:2:11 is the byte 0xff",
    ),
    "broken json": ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl:2:\d+ is not JSON"),
    "single quotes": ("a.jsonl", b"{'text': 'a'}\n", r"a\.jsonl:1:2 is not JSON \(Expecting prop"),
    "two objects": ("a.jsonl", b'{"text": "a"} {"text": "b"}', r"a\.jsonl:1:15 is not JSON"),
    "pretty json": ("a.jsonl", b'[\n{"text": "a"}\n]', r"a\.jsonl:1:\d is not JSON"),
    "control character": ("a.jsonl", b'{"text": "a\tb"}', r"a\.jsonl:1:12 is not JSON"),
    "array": ("a.jsonl", b'["text"]', r"a\.jsonl:1 is a list, but a \.jsonl file has one object"),
    "bare string": ("a.jsonl", b'"text"', r"a\.jsonl:1 is a string, but"),
    "bare NaN": ("a.jsonl", b"NaN", r"a\.jsonl:1 is a number, but"),
    "deep nesting": ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1 cannot be parsed"),
    "huge number": (
        "a.jsonl",
        b'{"n": ' + b"9" * 5000 + b', "text": "a"}',
        r"a\.jsonl:1 cannot be parsed \(Exceeds the limit",
    ),
    "missing field": (
        "a.jsonl",
        jsonl({"text": "a"}, {"id": 1, "body": "b"}),
        r"text_field is 'text', but a\.jsonl:2 has no such field; it has 'id', 'body'\. Set",
    ),
    "no fields": ("a.jsonl", b"{}", r"a\.jsonl:1 has no such field; it has none"),
    "null": ("a.jsonl", jsonl({"text": None}), r"a\.jsonl:1 has null in field 'text'"),
    "number": ("a.jsonl", jsonl({"text": 3}), r"a\.jsonl:1 has a number in field 'text'"),
    "boolean": ("a.jsonl", jsonl({"text": True}), r"a\.jsonl:1 has a boolean in field 'text'"),
    "list": ("a.jsonl", jsonl({"text": ["a"]}), r"a\.jsonl:1 has a list in field 'text'"),
    "object": ("a.jsonl", jsonl({"text": {}}), r"a\.jsonl:1 has an object in field 'text'"),
    "lone surrogate": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "ab\\ud800"}\n',
        r"a\.jsonl:2 has the lone surrogate U\+D800 at character 2",
    ),
    "cut gzip": (
        "a.jsonl.gz",
        gzip.compress(b"".join(jsonl({"text": f"{n**9}"}) for n in range(2000)))[:-500],
        r"a\.jsonl\.gz:\d{3,4} cannot be decompressed \(Compressed file ended",
    ),
    "cut xz": (
        "a.txt.xz",
        lzma.compress(b"text")[:-8],
        r"a\.txt\.xz:1 cannot be decompressed \(Compressed file ended",
    ),
    "empty gz": ("a.txt.gz", b"", r"a\.txt\.gz:1 cannot be decompressed \(it has 0 bytes\)"),
    "empty xz": ("a.txt.xz", b"", r"a\.txt\.xz:1 cannot be decompressed \(it has 0 bytes\)"),
    "not gzip": ("a.txt.gz", b"plain text", r"a\.txt\.gz:1 cannot be decompressed \(Not a gzipped"),
    "not xz": ("a.txt.xz", b"plain text", r"a\.txt\.xz:1 cannot be decompressed \(Input format"),
    "gzip checksum": (
        "a.txt.gz",
        gzip.compress(b"text")[:-8] + bytes(8),
        r"a\.txt\.gz:\d cannot be decompressed \(CRC check failed",
    ),
    "rubbish after gzip": (
        "a.txt.gz",
        gzip.compress(b"text") + b"rubbish",
        r"a\.txt\.gz:\d cannot be decompressed",
    ),
    "not parquet": ("a.parquet", b"plain text", r"a\.parquet:1 cannot be read \(Parquet magic"),
    "empty parquet": ("a.parquet", b"", r"a\.parquet:1 cannot be read"),
    "cut parquet": (
        "a.parquet",
        parquet(pa.table({"text": ["a"] * 100}))[:-20],
        r"a\.parquet:1 cannot be read",
    ),
    "parquet in broken gzip": (
        "a.parquet.gz",
        gzip.compress(parquet(pa.table({"text": ["a"]})))[:-9],
        r"a\.parquet\.gz:1 cannot be decompressed",
    ),
    "parquet without column": (
        "a.parquet",
        parquet(pa.table({"id": [1], "body": ["a"]})),
        r"text_field is 'text', but a\.parquet has no such field; it has 'id', 'body'",
    ),
    "parquet of numbers": (
        "a.parquet",
        parquet(pa.table({"text": [1, 2]})),
        r"a\.parquet has the type int64 in field 'text', but a document is a string",
    ),
    "parquet null": (
        "a.parquet",
        parquet(pa.table({"text": ["a"] * 600 + [None]})),
        r"a\.parquet:601 has null in field 'text'",
    ),
    "parquet not utf-8": (
        "a.parquet",
        parquet(pa.table({"text": pa.array([b"ok", b"a\xff"]).view(pa.string())})),
        r"a\.parquet:2 is not UTF-8 at byte 2 of field 'text'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(case):
    name, raw, message = BAD_FILES[case]

    with pytest.raises(DataError, match=message) as caught:
        read(name, raw)

    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_parquet_page_damaged_in_the_middle_is_refused():
    table = pa.table({"text": [f"{number**9}" for number in range(5000)]})
    raw = bytearray(parquet(table, compression="zstd", use_dictionary=False))
    raw[2000:2200] = bytes(200)

    with pytest.raises(DataError, match=r"a\.parquet:\d+ cannot be read"):
        read("a.parquet", bytes(raw))


def test_endings_decide_how_a_file_is_read():
    kinds = {
        **{"a.txt": ".txt", "a.b.md": ".md", "a.py.gz": ".py", "a.JSONL.XZ": ".jsonl"},
        **{"a.parquet": ".parquet", "a.gz": None, "a": None, "a.txt.bz2": ".txt"},
        **{"a.txt.gz.gz": None, ".txt": None, "a.json.zst": ".json", "a.docx": None},
    }

    assert {name: file_kind(Path(name)) for name in kinds} == kinds


def test_a_lone_surrogate_is_named_with_its_place():
    with pytest.raises(DataError, match=r"a\.txt:1 has the lone surrogate U\+D800 at character 2"):
        check_text("ab\ud800", "a.txt:1")


def test_a_run_of_spaces_beyond_the_regex_engine_is_an_error():
    with pytest.raises(DataError, match=r"a\.txt:1 has a run of white space of 5,000,000"):
        check_text("x" + " " * 5_000_000, "a.txt:1")
    check_text(" x" * 2_500_000, "a.txt:1")
