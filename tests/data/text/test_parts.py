"""Parts: read alone in any order, together exactly the corpus."""

import io
import itertools
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tinyformer.data.text import parts as parts_module
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import (
    describe_inputs,
    iterate_documents,
    plan_parts,
    read_part,
)
from hf_tinyformer.data.text.sources import WeightedSource
from hf_tinyformer.errors import DataError


@pytest.fixture(autouse=True)
def _stand_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("v.txt").write_text("held out")


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few hundred bytes."""
    monkeypatch.setattr(parts_module, "PART_BYTES", 100)
    monkeypatch.setattr(parts_module, "LARGE_PART_BYTES", 250)


def write_lines(name: str, count: int) -> list[str]:
    texts = [f"text {number} " + "x" * (number % 90) for number in range(count)]
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def texts_of(config: DataConfig, part) -> list[str]:
    return [document.text for _, document in read_part(config, part)]


def config_of(**settings) -> DataConfig:
    return DataConfig(**({"validation_files": ["v.txt"]} | settings))


def test_a_large_jsonl_is_cut_at_line_ends_and_nothing_is_lost(small_parts):
    texts = write_lines("a.jsonl", 60)
    config = config_of(files=["a.jsonl"])

    parts = plan_parts(config)[:-1]

    assert len(parts) > 10
    assert [part.name for part in parts[:2]] == ["corpus/00000", "corpus/00001"]
    spans = [part.description["bytes"] for part in parts]
    assert spans[0][0] == 0
    assert spans[-1][1] == Path("a.jsonl").stat().st_size
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(spans))
    backwards = [texts_of(config, part) for part in reversed(parts)]
    assert [text for own in reversed(backwards) for text in own] == texts


@pytest.mark.parametrize("size", range(200, 420, 7))
def test_wherever_the_cuts_fall_every_line_is_in_one_part(monkeypatch, size):
    texts = write_lines("a.jsonl", 40)
    monkeypatch.setattr(parts_module, "LARGE_PART_BYTES", size)
    config = config_of(files=["a.jsonl"])

    assert [text for part in plan_parts(config)[:-1] for text in texts_of(config, part)] == texts


def test_an_error_in_a_later_part_names_the_line_of_the_whole_file(small_parts):
    write_lines("a.jsonl", 50)
    with Path("a.jsonl").open("a") as stream:
        stream.write('{"text": 5}\n')
    config = config_of(files=["a.jsonl"])
    last = plan_parts(config)[-2]

    with pytest.raises(DataError, match=r"a\.jsonl:51 has a number in field 'text'"):
        texts_of(config, last)
    start = last.description["bytes"][0]
    assert start > 0
    _, document = next(iter(read_part(config, last)))
    assert document.source == f"a.jsonl@{start}:1"


def test_a_large_parquet_is_cut_between_row_groups(small_parts):
    texts = [f"row {number}" for number in range(200)]
    table = pa.table({"text": texts})
    pq.write_table(table, "a.parquet", row_group_size=20, compression="none")
    config = config_of(files=["a.parquet"])

    parts = plan_parts(config)[:-1]

    assert len(parts) > 3
    assert parts[1].description["row_groups"][0] == parts[0].description["row_groups"][1]
    found = [list(read_part(config, part)) for part in parts]
    assert [document.text for own in found for _, document in own] == texts
    sources = [document.source for own in found for _, document in own]
    assert sources == [f"a.parquet:{row}" for row in range(1, 201)]


def test_small_files_share_a_part_and_large_ones_stand_alone(small_parts):
    for name, size in (("a", 40), ("b", 40), ("c", 40), ("d", 150), ("e", 10)):
        Path(f"{name}.txt").write_text(name * size)
    config = config_of(files=["[a-e].txt"])

    groups = [[path.name for path in part.files] for part in plan_parts(config)[:-1]]

    assert groups == [["a.txt", "b.txt"], ["c.txt"], ["d.txt"], ["e.txt"]]


def test_a_saved_data_set_is_cut_into_ranges_of_rows(small_parts):
    texts = [f"row {number} " + "x" * 40 for number in range(90)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk("saved")
    config = config_of(dataset="saved")

    parts = plan_parts(config)[:-1]

    assert len(parts) > 5
    assert [text for part in parts for text in texts_of(config, part)] == texts


def test_parts_are_planned_alike_and_described_without_a_folder_of_this_machine(tmp_path):
    write_lines("a.jsonl", 5)
    for config in (config_of(files=[f"{tmp_path}/a.jsonl"]), config_of(builtin="python-stdlib")):
        parts = plan_parts(config)

        assert plan_parts(config) == parts
        described = json.dumps([part.description for part in parts])
        assert str(tmp_path) not in described
        assert len({part.name for part in parts}) == len(parts)


def test_a_description_changes_with_whatever_changes_the_documents():
    write_lines("a.jsonl", 5)
    settings = [
        {},
        {"text_field": "other"},
        {"validation_files": [], "template": "{text}"},
        {"on_error": "skip"},
        {"validation_files": [], "validation_fraction": 0.2},
        {"validation_files": [], "validation_fraction": 0.3},
        {"validation_files": [], "validation_split": "tail"},
    ]

    found = [
        json.dumps(plan_parts(config_of(**({"files": ["a.jsonl"]} | more)))[0].description)
        for more in settings
    ]

    assert len(set(found)) == len(settings)


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_parts_one_by_one_give_what_the_whole_gives(small_parts, split):
    write_lines("a.jsonl", 60)
    Path("b.txt").write_text("the last text " * 9)
    config = DataConfig(files=["a.jsonl", "b.txt"], validation_split=split, validation_fraction=0.3)
    by_part = {"train": [], "validation": []}

    for part in plan_parts(config):
        for side, document in read_part(config, part):
            by_part[side].append(document)

    for side, documents in by_part.items():
        assert documents == list(iterate_documents(config, side))
        assert documents


def test_sources_come_one_after_another_under_their_names():
    write_lines("a.jsonl", 3)
    Path("b.csv").write_text("title,body\nt,b\n")
    config = DataConfig(
        sources={
            "lines": WeightedSource(files=["a.jsonl"]),
            "table": WeightedSource(files=["b.csv"], template="{title}: {body}", weight=5),
        },
        validation_files=["v.txt"],
    )

    parts = plan_parts(config)

    assert [part.name for part in parts] == ["lines/00000", "table/00000", "validation/00000"]
    assert texts_of(config, parts[1]) == ["t: b"]


def test_errors_of_a_source_name_its_key():
    Path("b.csv").write_text("title\nt\n")
    named = {"good": WeightedSource(files=["v.txt"]), "bad": WeightedSource(files=["b.csv"])}
    config = DataConfig(sources=named)

    with pytest.raises(DataError, match=r"data\.sources\.bad\.text_field is 'text', but b\.csv"):
        list(iterate_documents(config, "train"))
    named["bad"] = WeightedSource(files=["none/*"])
    with pytest.raises(DataError, match=r"data\.sources\.bad\.files has 'none/\*', which matches"):
        plan_parts(DataConfig(sources=named))


def test_validation_files_that_cannot_be_read_may_be_skipped():
    Path("gone.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"data\.validation_files matches gone\.txt, but it is not"):
        plan_parts(config_of(files=["v.txt"], validation_files=["[gv]*.txt"]))
    config = config_of(files=["v.txt"], validation_files=["[gv]*.txt"], on_error="skip")
    skipped = []

    found = [
        document.text
        for part in plan_parts(config)
        for split, document in read_part(config, part, skipped.append)
        if split == "validation"
    ]

    assert found == ["held out"]
    assert [place for place, _ in skipped] == ["gone.txt"]
    assert [name for name, *_ in describe_inputs(config)["validation_files"]] == ["v.txt"]


def test_a_template_over_a_text_file_is_refused():
    with pytest.raises(DataError, match=r"data\.template is '\{a\}', but v\.txt has no columns"):
        plan_parts(DataConfig(files=["v.txt"], template="{a}"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_template_joins_fields_of_every_kind_of_record(ending):
    records = [{"title": "T1", "year": 7, "text": "a"}, {"title": "T2", "year": 8, "text": "b"}]
    table = pa.Table.from_pylist(records)
    sink = io.BytesIO()
    if ending == "jsonl":
        sink.write("\n".join(json.dumps(record) for record in records).encode())
    elif ending == "json":
        sink.write(json.dumps(records).encode())
    elif ending == "csv":
        sink.write(b"title,year,text\nT1,7,a\nT2,8,b\n")
    elif ending == "parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    Path(f"a.{ending}").write_bytes(sink.getvalue())
    config = DataConfig(files=[f"a.{ending}"], template="{{{title}}} ({year})\n\n{text}")

    found = [d.text for part in plan_parts(config) for _, d in read_part(config, part)]

    assert found == ["{T1} (7)\n\na", "{T2} (8)\n\nb"]


def test_a_template_never_looks_into_a_value():
    Path("a.jsonl").write_text('{"a": "{b} {0.__class__}", "b": "x"}\n{"a": null, "b": "y"}\n')
    config = DataConfig(files=["a.jsonl"], template="{a}|{b}")
    reading = read_part(config, plan_parts(config)[0])

    assert next(iter(reading))[1].text == "{b} {0.__class__}|x"
    with pytest.raises(DataError, match=r"a\.jsonl:2 has null in field 'a'"):
        list(reading)
