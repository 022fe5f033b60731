"""`tinyformer data`: prepare once for many runs, describe, audit, drop."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import words_for, write_corpus

from hf_tinyformer.cli import main
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.prepared import check_prepared, holds_inputs
from hf_tinyformer.run_config import RunConfig, load_run_config
from hf_tinyformer.training.metrics import NullReporter


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `texts/`, an empty `run.yaml`, and `prepared/`."""
    folder = tmp_path_factory.mktemp("prepared")
    write_corpus(folder / "texts")
    (folder / "run.yaml").write_text("{}\n")
    output = ["--output", str(folder / "prepared")]
    assert command("data", "prepare", str(folder / "run.yaml"), *words_for(folder), *output) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, copy_function=shutil.copy2)
    return copy


def config(folder: Path, *more: str) -> RunConfig:
    prepared = f"data.prepared={folder / 'prepared'}"
    return load_run_config(None, words_for(folder, prepared, "train.max_steps=3", *more))


def test_a_run_on_a_prepared_folder_is_the_run_that_prepares_for_itself(folder: Path) -> None:
    own = load_run_config(None, words_for(folder, "name=own", "train.max_steps=3"))
    first = run_pipeline(own, reporter=NullReporter())
    second = run_pipeline(config(folder, "name=shared"), reporter=NullReporter())

    assert not (folder / "runs" / "shared" / "tokens").exists()
    weights = [result.final_dir / "model.safetensors" for result in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_corpus_need_not_be_there_nor_be_named(folder: Path) -> None:
    shutil.rmtree(folder / "texts")
    check_prepared(config(folder))

    unnamed = config(folder, "data.files=[]", "data.sequence_length=16")
    result = run_pipeline(unnamed, reporter=NullReporter())

    settings = json.loads((result.final_dir / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 16


@pytest.mark.parametrize(
    ("setting", "value", "was"),
    [
        ("data.validation_fraction", "0.1", "0.2"),
        ("tokenizer.vocab_size", "400", "300"),
        ("data.validation_split", "tail", "hash"),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(
    made: Path, setting: str, value: str, was: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} is {value}, but .* prepared with {was}"):
        check_prepared(config(made, f"{setting}={value}"))


def test_a_corpus_that_has_changed_is_noticed(folder: Path) -> None:
    with (folder / "texts" / "00.txt").open("a") as stream:
        stream.write("more\n")

    with pytest.raises(ConfigError, match=r"have changed.*tinyformer data prepare"):
        check_prepared(config(folder))


def test_tokens_of_another_tokenizer_are_refused(folder: Path) -> None:
    words = words_for(folder, "tokenizer.vocab_size=280")
    output = ["--output", str(folder / "other")]
    assert command("data", "prepare", str(folder / "run.yaml"), *words, *output) == 0
    shutil.rmtree(folder / "prepared" / "tokenizer")
    shutil.copytree(folder / "other" / "tokenizer", folder / "prepared" / "tokenizer")

    with pytest.raises(ArtifactError, match=r"was cut by tokenizer \w+, but the one beside it"):
        check_prepared(config(folder, "data.files=[]"))


def test_a_folder_that_is_not_there_is_answered_with_the_command(tmp_path: Path) -> None:
    missing = load_run_config(None, [f"data.prepared={tmp_path / 'none'}"])

    with pytest.raises(ArtifactError, match=r"data\.prepared is .*none.*tinyformer data prepare"):
        check_prepared(missing)


def test_preparing_without_a_corpus_names_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(f"data:\n  prepared: {tmp_path / 'made'}\n")

    assert command("data", "prepare", str(tmp_path / "run.yaml")) == 2
    assert "must name the corpus to prepare" in " ".join(capsys.readouterr().err.split())


def test_preparing_again_does_nothing(made: Path) -> None:
    before = (made / "prepared" / "tokens" / "manifest.json").stat().st_mtime_ns
    output = ["--output", str(made / "prepared")]

    assert command("data", "prepare", str(made / "run.yaml"), *words_for(made), *output) == 0

    assert (made / "prepared" / "tokens" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["tokenizer", "tokens"])
def test_what_is_not_ours_is_not_replaced(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / name / "keep.txt").write_text("mine")
    output = ["--output", str(tmp_path / "mine")]

    assert command("data", "prepare", str(made / "run.yaml"), *words_for(made), *output) == 2

    assert f"mine/{name} is there and not an older" in " ".join(capsys.readouterr().err.split())
    kept = [path.name for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert kept == ["keep.txt"]


def test_a_run_does_not_replace_what_is_not_ours_either(folder: Path) -> None:
    (folder / "runs" / "tiny" / "final").mkdir(parents=True)
    for kind in ("tokenizer", "final"):
        place = folder / "runs" / "tiny" / kind
        place.mkdir(parents=True, exist_ok=True)
        assert not holds_inputs(place, kind=kind, inputs="x")  # empty
        shutil.copytree(folder / "prepared" / "tokens", place, dirs_exist_ok=True)
        with pytest.raises(ArtifactError, match=rf"{kind} is there and not an older"):
            holds_inputs(place, kind=kind, inputs="x")


def test_a_damaged_folder_of_ours_is_made_again(folder: Path) -> None:
    file = next((folder / "prepared" / "tokens").rglob("train-*.arrow"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    output = ["--output", str(folder / "prepared")]

    assert command("data", "prepare", str(folder / "run.yaml"), *words_for(folder), *output) == 0

    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "words",
    [
        ["data", "audit", "run.yaml"],
        ["data", "stats", "run.yaml"],
        ["tokenizer", "train", "run.yaml"],
        ["tokenizer", "report", "prepared/tokenizer", "--config", "run.yaml"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_needs_a_corpus_says_so_where_only_its_tokens_are_named(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(folder)
    Path("run.yaml").write_text("data: {prepared: prepared}\n")

    assert command(*words) == 2

    error = " ".join(capsys.readouterr().err.split())
    assert "are not set, but one of them must name the corpus" in error


@pytest.mark.parametrize("option", [["--tasks", "4"], ["--option", "time=1:00"]])
def test_what_is_for_an_executor_is_refused_without_one(
    made: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert command("data", "prepare", str(made / "run.yaml"), *words_for(made), *option) == 2

    error = " ".join(capsys.readouterr().err.split())
    assert f"{option[0]} is {option[1]}, but it is an executor's" in error


def test_stats_of_text_and_of_its_store_agree(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = ["--picture", str(tmp_path / "lengths.png"), "--json"]
    words = words_for(made, f"data.prepared={made / 'prepared'}")
    capsys.readouterr()

    assert command("data", "stats", str(made / "run.yaml"), *words, *picture) == 0
    text = json.loads(capsys.readouterr().out)["groups"]
    assert command("data", "stats", str(made / "prepared"), *picture) == 0
    store = json.loads(capsys.readouterr().out)["groups"]

    for first, second in zip(text, store, strict=True):
        for name in ("split", "source", "documents", "bytes", "tokens", "lengths"):
            assert first[name] == second[name], name
    stores = open_token_store(made / "prepared" / "tokens")
    assert text[0]["tokens"] == stores.train.num_tokens
    assert text[0]["scripts"]["Latin"] > 0.5
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_stats_are_shown_as_a_table_with_bars(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = ["--picture", str(tmp_path / "lengths.png")]

    assert command("data", "stats", str(made / "prepared"), *picture) == 0

    shown = capsys.readouterr().out
    assert "train: corpus" in shown
    assert "\u2588" in shown
    assert "64 to 127" in shown


def test_what_an_audit_lists_is_left_out_of_tokens(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "texts" / "99.txt").write_text((folder / "texts" / "05.txt").read_text())
    (folder / "texts" / "05.txt").touch()
    run, drop = str(folder / "run.yaml"), str(folder / "drop.jsonl")
    words = words_for(folder)
    capsys.readouterr()

    assert command("data", "audit", run, *words, "--no-near", "--drop", drop, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    dropped = words_for(folder, f"data.drop={drop}")
    assert command("data", "prepare", run, *dropped, "--output", str(folder / "clean")) == 0

    assert sum(report["would_drop"].values()) == 1
    assert json.loads((folder / "runs" / "tiny" / "audit.json").read_text()) == report
    stores = open_token_store(folder / "clean" / "tokens")
    assert stores.train.num_documents + stores.validation.num_documents == 40
