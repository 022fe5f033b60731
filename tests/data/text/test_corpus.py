import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import describe_inputs, iterate_documents
from hf_tinyformer.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _stand_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8", newline="")


def sources(config: DataConfig, split: str = "train") -> list[str]:
    return [document.source for document in iterate_documents(config, split)]


def texts(config: DataConfig, split: str = "train") -> list[str]:
    return [document.text for document in iterate_documents(config, split)]


def with_validation(**settings) -> DataConfig:
    """A corpus with a validation file of its own, so that all of the corpus is training text."""
    write("held_out/v.txt", "held out")
    return DataConfig(validation_files=["held_out/v.txt"], **settings)


# Files


def test_files_come_by_glob_then_by_name_each_once():
    for name in ("b/2.txt", "b/1.md", "a/10.py", "a/9.py", "a/deep/er/x.txt", "top.txt"):
        write(name, name)
    config = with_validation(files=["top.txt", "a/**/*.py", "[ab]/**/*.*", "top.*"])

    assert texts(config) == ["top.txt", "a/10.py", "a/9.py", "a/deep/er/x.txt", "b/1.md", "b/2.txt"]


def test_every_kind_of_file_in_one_corpus():
    write("a.txt", "text")
    write("b.jsonl", '{"text": "line 1"}\n{"text": "line 2"}\n')
    Path("c.md.gz").write_bytes(gzip.compress(b"mark"))
    pq.write_table(pa.table({"text": ["row 1", "row 2"]}), "d.parquet")

    config = with_validation(files=["*.*"])

    assert texts(config) == ["text", "line 1", "line 2", "mark", "row 1", "row 2"]
    assert sources(config) == [
        *("a.txt:1", "b.jsonl:1", "b.jsonl:2", "c.md.gz:1", "d.parquet:1", "d.parquet:2")
    ]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob():
    write("a[1].txt", "bracket")

    assert texts(with_validation(files=["a[1].txt"])) == ["bracket"]


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("a.txt", "home")

    assert texts(with_validation(files=["~/a.txt"])) == ["home"]


def test_a_link_to_a_file_is_read_under_its_own_name():
    write("real.txt", "linked")
    Path("link.txt").symlink_to("real.txt")

    assert sources(with_validation(files=["link.txt"])) == ["link.txt:1"]


def test_a_glob_that_matches_nothing_is_named_with_the_working_folder(tmp_path):
    with pytest.raises(DataError, match=rf"'no/\*\.txt', which matches no file under {tmp_path}"):
        texts(DataConfig(files=["no/*.txt"]))
    write("a.txt", "a")
    with pytest.raises(DataError, match=r"data\.validation_files has 'v\.txt', which matches no"):
        texts(DataConfig(files=["a.txt"], validation_files=["v.txt"]), "validation")


def test_a_folder_is_every_readable_file_below_it_and_says_what_it_left_out(caplog):
    for name in ("b.txt", "a/deep/c.md", "a/b.rs", ".hidden/d.txt", ".e.txt", "f.png", "g"):
        write(f"texts/{name}", name)

    with caplog.at_level("INFO", logger="hf_tinyformer.data.text.files"):
        assert texts(with_validation(files=["texts"])) == ["a/b.rs", "a/deep/c.md", "b.txt"]

    assert "files of other kinds in texts are left out: 1 .png, 1 no ending" in caplog.text


def test_a_folder_without_readable_files_is_named():
    write("texts/a.png", "a")

    with pytest.raises(DataError, match=r"data\.files has 'texts', which is a folder without"):
        texts(DataConfig(files=["texts"]))


def test_a_loop_of_linked_folders_adds_nothing_but_linked_folders_are_entered():
    write("other/b.txt", "b")
    write("texts/a.txt", "a")
    Path("texts/loop").symlink_to("../texts")
    Path("texts/other").symlink_to("../other")

    assert texts(with_validation(files=["texts"])) == ["a", "b"]
    assert texts(with_validation(files=["texts/**/*.txt"])) == ["a", "b"]


def test_an_unknown_ending_is_named():
    write("a.docx", "a")

    with pytest.raises(DataError, match=r"data\.files matches a\.docx, but the endings read are"):
        texts(DataConfig(files=["*"]))


def test_a_pipe_and_a_dangling_link_are_refused():
    os.mkfifo("pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt, but it is not a regular file"):
        texts(DataConfig(files=["pipe.txt"]))
    Path("gone.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"gone\.txt"):
        texts(DataConfig(files=["*.txt"]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named():
    write("a.txt", "a")
    Path("a.txt").chmod(0)

    with pytest.raises(DataError, match=r"a\.txt:1 cannot be read \(Permission denied\)"):
        texts(DataConfig(files=["a.txt"]))


# Splits


def write_many(count: int) -> DataConfig:
    lines = [json.dumps({"text": f"document number {n}"}) + "\n" for n in range(count)]
    write("many.jsonl", "".join(lines))
    return DataConfig(files=["many.jsonl"], validation_fraction=0.1)


def test_by_hash_every_document_is_on_one_side_in_the_order_of_the_corpus():
    config = write_many(2000)
    train, validation = texts(config), texts(config, "validation")

    every = [f"document number {number}" for number in range(2000)]
    assert sorted(train + validation) == sorted(every)
    assert train == [text for text in every if text in set(train)]
    # 2000 fair draws of 0.1: 200, standard deviation 13.4; six of them leave no doubt.
    assert 120 < len(validation) < 280


def test_by_hash_equal_texts_are_on_the_same_side_in_any_file_and_order():
    config = write_many(300)
    lines = Path("many.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    write("copies.jsonl", "".join(lines))
    both = DataConfig(files=["copies.jsonl", "many.jsonl"], validation_fraction=0.1)

    assert not set(texts(both)) & set(texts(both, "validation"))
    assert sorted(set(texts(both, "validation"))) == sorted(texts(config, "validation"))
    assert len(texts(both, "validation")) == 2 * len(texts(config, "validation"))


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out():
    small = write_many(500)
    large = DataConfig(files=small.files, validation_fraction=0.3)

    assert set(texts(small, "validation")) < set(texts(large, "validation"))


def test_by_tail_the_last_characters_are_held_out_and_the_cut_names_its_line():
    write("a.txt", "0123")
    write("b.txt", "4\n56\n789")
    config = DataConfig(files=["*.txt"], validation_split="tail", validation_fraction=0.25)

    # 12 characters: the first int(12 * 0.75) = 9 train, "789" is held out, on line 3 of b.txt.
    assert texts(config) == ["0123", "4\n56\n"]
    assert texts(config, "validation") == ["789"]
    assert sources(config, "validation") == ["b.txt:3"]


def test_by_tail_a_cut_in_a_record_names_the_record():
    write("a.jsonl", '{"text": "0123"}\n{"text": "4\\n\\n789"}\n')
    config = DataConfig(files=["a.jsonl"], validation_split="tail", validation_fraction=0.3)

    # 10 characters: "789" is held out, of the record on line 2; the file has no line 4.
    assert texts(config, "validation") == ["789"]
    assert sources(config, "validation") == ["a.jsonl:2"]


def test_by_tail_a_cut_between_documents_cuts_none():
    write("a.txt", "0123")
    write("b.txt", "4567")
    config = DataConfig(files=["*.txt"], validation_split="tail", validation_fraction=0.5)

    assert (texts(config), texts(config, "validation")) == (["0123"], ["4567"])


def test_validation_files_are_the_validation_split_and_the_corpus_is_all_training():
    config = write_many(20)
    write("v.txt", "held out")
    config = DataConfig(files=config.files, validation_files=["v.txt"])

    assert len(texts(config)) == 20
    assert texts(config, "validation") == ["held out"]


def test_a_split_without_documents_says_what_to_do():
    write("a.txt", "one text")

    with pytest.raises(
        DataError,
        match=r"fraction is 0\.01, but of 1 documents that leaves none "
        r"for validation\. Raise it.*validation_split=tail",
    ):
        texts(DataConfig(files=["a.txt"]), "validation")
    with pytest.raises(DataError, match=r"is 0\.9999, but .* none for train\. Lower it"):
        texts(DataConfig(files=["a.txt"], validation_fraction=0.9999))


def test_a_corpus_without_text_is_an_error():
    write("a.txt", "")
    write("b.jsonl", '{"text": ""}\n')

    for split in ("train", "validation"):
        with pytest.raises(DataError, match="The corpus has 0 characters"):
            texts(DataConfig(files=["*.*"]), split)
    write("v/v.txt", "")
    config = DataConfig(files=["*.*"], validation_files=["v/v.txt"])
    with pytest.raises(DataError, match=r"data\.validation_files has no text"):
        texts(config, "validation")
    with pytest.raises(DataError, match=r"The corpus has no text for the train split"):
        texts(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"0 of data\.files, data\.dataset, data\.builtin and data\.sources are set"),
        ({"files": ["a"], "builtin": "python-stdlib"}, r"2 of data\.files"),
        ({"files": ["a"], "validation_fraction": 0.0}, r"validation_fraction is 0\.0, but"),
        ({"files": ["a"], "sequence_length": 1}, r"sequence_length is 1, but"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


# Data sets


def test_a_folder_saved_by_datasets_is_read():
    rows = {"id": list(range(700)), "text": [f"row {n}" for n in range(700)]}
    datasets.Dataset.from_dict(rows).save_to_disk("saved", num_shards=2)

    config = with_validation(dataset="saved")

    assert texts(config) == rows["text"]
    assert sources(config)[-1] == "saved:700"


def test_a_dictionary_of_splits_is_read_by_split_and_an_absent_split_is_named():
    splits = {
        "train": datasets.Dataset.from_dict({"text": ["a"]}),
        "test": datasets.Dataset.from_dict({"text": ["b"]}),
    }
    datasets.DatasetDict(splits).save_to_disk("saved")

    assert texts(with_validation(dataset="saved", dataset_split="test")) == ["b"]
    with pytest.raises(DataError, match=r"dataset_split is dev, but saved has train, test"):
        texts(with_validation(dataset="saved", dataset_split="dev"))


def test_a_data_set_without_the_column_names_those_there():
    datasets.Dataset.from_dict({"id": [1], "body": ["a"]}).save_to_disk("saved")

    with pytest.raises(DataError, match=r"but saved has no such field; it has 'id', 'body'"):
        texts(DataConfig(dataset="saved"))
    with pytest.raises(DataError, match=r"saved has the type int64 in field 'id'"):
        texts(DataConfig(dataset="saved", text_field="id"))


def test_a_null_in_a_data_set_is_named_by_its_row():
    datasets.Dataset.from_dict({"text": ["a", None]}).save_to_disk("saved")

    with pytest.raises(DataError, match=r"saved:2 has null in field 'text'"):
        texts(DataConfig(dataset="saved"))


def test_a_folder_not_saved_by_datasets_is_refused():
    write("plain/a.txt", "a")

    with pytest.raises(DataError, match=r"data\.dataset is plain, but that folder was not saved"):
        texts(DataConfig(dataset="plain"))


def test_a_damaged_saved_data_set_is_one_line():
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")
    next(Path("saved").glob("*.arrow")).write_bytes(b"rubbish")

    with pytest.raises(DataError, match=r"data\.dataset is saved, but it cannot be loaded"):
        texts(DataConfig(dataset="saved"))


def test_a_hub_data_set_out_of_reach_is_one_line():
    # The suite runs with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match=r"data\.dataset is some/set, but it cannot be loaded") as e:
        texts(DataConfig(dataset="some/set"))

    assert "\n" not in str(e.value)


# The standard library


def test_the_standard_library_is_source_code_without_tests_in_a_fixed_order():
    config = DataConfig(builtin="python-stdlib", validation_fraction=0.05)
    found = {split: list(iterate_documents(config, split)) for split in ("train", "validation")}
    names = {document.source for documents in found.values() for document in documents}

    assert {"python-stdlib/json/decoder.py:1", "python-stdlib/argparse.py:1"} <= names
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert not any("_sysconfigdata" in name for name in names)
    order = [document.source for document in found["train"]]
    assert order == sorted(order)
    size = sum(len(d.text.encode()) for documents in found.values() for d in documents)
    assert 6e6 < size < 20e6
    root = sysconfig.get_path("stdlib")
    assert not any(root in document.source for document in found["train"])


# Inputs and memory


def test_inputs_change_with_a_file_and_with_the_split_but_not_with_the_rows():
    write("a.txt", "one")
    config = DataConfig(files=["*.txt"])
    before = describe_inputs(config)

    assert describe_inputs(config) == before == json.loads(json.dumps(before))
    assert describe_inputs(DataConfig(files=["a.txt"], sequence_length=512)) == before
    assert describe_inputs(DataConfig(files=["*.txt"], validation_fraction=0.1)) != before
    write("b.txt", "two")
    more = describe_inputs(config)
    assert more != before
    os.utime("a.txt", (1, 1))
    assert describe_inputs(config) not in (before, more)


def test_inputs_hold_no_absolute_path(tmp_path):
    write("a.txt", "one")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")
    for config in (
        DataConfig(files=[f"{tmp_path}/*.txt"], validation_files=[f"{tmp_path}/a.txt"]),
        DataConfig(dataset=f"{tmp_path}/saved"),
        DataConfig(builtin="python-stdlib"),
        DataConfig(dataset="some/set"),
    ):
        text = json.dumps(describe_inputs(config))
        assert str(tmp_path) not in text
        assert sys.prefix not in text


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "saved"])
def test_memory_does_not_grow_with_the_corpus(ending):
    record = {"text": "x" * 20_000}
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([record] * 2000), "c.parquet", use_dictionary=False)
    elif ending == "saved":
        datasets.Dataset.from_list([record] * 2000).save_to_disk("c.saved")
    else:
        raw = (json.dumps(record) + "\n").encode() * 2000
        Path(f"c.{ending}").write_bytes(gzip.compress(raw, 1) if ending.endswith("gz") else raw)
    source = {"dataset": "c.saved"} if ending == "saved" else {"files": [f"c.{ending}"]}
    config = with_validation(**source)
    tracemalloc.start()

    count = sum(1 for _ in iterate_documents(config, "train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 2000
    assert peak < 10e6  # of 40 MB of text


@pytest.mark.slow
def test_preparing_text_prints_nothing_and_warns_of_nothing_also_when_a_program_is_started():
    # `tokenizers` warns in a process that was forked after its threads were used.
    write("a.txt", "some text\n" * 2000)
    program = (
        "from hf_tinyformer.data.text.config import DataConfig\n"
        "from hf_tinyformer.data.text.corpus import iterate_documents\n"
        "from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer\n"
        "from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig\n"
        "from hf_tinyformer.data.store.preparation import write_token_store\n"
        "from hf_tinyformer.data.store.tokens import open_token_store\n"
        "from pathlib import Path\n"
        "import subprocess\n"
        "config = DataConfig(files=['a.txt'], validation_split='tail')\n"
        "texts = [d.text for d in iterate_documents(config, 'train')]\n"
        "tokenizer = train_tokenizer(TokenizerConfig(vocab_size=260), texts, sequence_length=8)\n"
        "documents = {s: iterate_documents(config, s) for s in ('train', 'validation')}\n"
        "write_token_store(Path('t'), tokenizer=tokenizer, documents=documents, facts={})\n"
        "open_token_store(Path('t'))\n"
        "subprocess.run(['true'], check=True)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
