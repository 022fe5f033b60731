import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_run import words_for, write_corpus

from hf_tinyformer.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny run by the command line, and return its folder."""
    folder = tmp_path_factory.mktemp("cli")
    write_corpus(folder / "texts")
    config = folder / "tiny.yaml"
    config.write_text("name: tiny\n")
    status = command("train", str(config), *words_for(folder))
    assert status == 0
    return folder / "runs" / "tiny"


def command(*words: str) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def test_training_says_where_the_model_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run / "config.yaml"

    assert command("train", str(settings)) == 0

    said = " ".join(capsys.readouterr().out.split())
    assert "The model is in" in said
    assert "tinyformer generate" in said


@pytest.mark.parametrize(
    ("resume", "sentence"),
    [
        ("auto", "Run the same command to go on."),
        ("never", "Run the same command with train.resume=auto to go on."),
    ],
)
def test_a_stopped_run_says_how_it_goes_on(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resume: str,
    sentence: str,
) -> None:
    stopped = SimpleNamespace(
        final_dir=None, training=SimpleNamespace(step=3, checkpoint="runs/x/checkpoints/step-3")
    )
    monkeypatch.setattr("hf_tinyformer.pipeline.run_pipeline", lambda *_, **__: stopped)

    assert command("train", str(run / "config.yaml"), f"train.resume={resume}") == 75

    assert sentence in " ".join(capsys.readouterr().out.split())


def test_how_a_start_began_is_not_kept_in_the_runs_own_file(run: Path, tmp_path: Path) -> None:
    words = (f"output_dir={tmp_path}", "train.resume=never")

    assert command("train", str(run / "config.yaml"), *words) == 0

    settings = yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["train"]["resume"] == "auto"


def test_nothing_but_json_stands_on_standard_output_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "texts")
    (tmp_path / "texts" / "picture.png").write_bytes(b"")
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data:\n  files: ['{tmp_path / 'texts'}']\n  builtin: null\n")

    assert command("data", "stats", str(config), "--json") == 0

    written = capsys.readouterr()
    assert json.loads(written.out)
    assert "left out" in written.err


def test_info_on_a_run_that_goes_on_from_a_model_counts_that_models_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("info", str(run / "final")) == 0
    of_the_model = re.search(r"parameters\D*([\d,]+)", capsys.readouterr().out)

    config = tmp_path / "on.yaml"
    config.write_text(
        f"init_from: {run / 'final'}\ndata:\n  builtin: python-stdlib\n  sequence_length: 16\n"
    )
    assert command("info", str(config)) == 0
    of_the_run = re.search(r"parameters\D*([\d,]+)", capsys.readouterr().out)

    assert of_the_model is not None
    assert of_the_run is not None
    assert of_the_run[1] == of_the_model[1]


def test_generate_continues_the_prompt_and_repeats_itself_with_a_seed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", str(run / "final"), "alpha beta", "--max-new-tokens", "12", "--seed", "3")

    assert command(*words) == 0
    first = capsys.readouterr().out
    assert command(*words) == 0

    assert first.startswith("alpha beta")
    assert first == capsys.readouterr().out
    assert command(*words[:-1], "4") == 0
    assert first != capsys.readouterr().out


def test_evaluate_gives_the_figures_of_the_run_itself(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.parent.parent / "texts"

    assert command("evaluate", str(run / "final"), "--text", f"{text}/*.txt", "--json") == 0

    figures = json.loads(capsys.readouterr().out)["text"]
    assert figures["num_bytes"] == sum(path.stat().st_size for path in text.glob("*.txt"))
    assert 0 < figures["bits_per_byte"] < 8


def test_evaluate_scores_blimp_and_lambada_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blimp = tmp_path / "blimp.jsonl"
    pair = {
        "sentence_good": "alpha beta gamma delta",
        "sentence_bad": "alpha delta beta alpha",
        "UID": "order",
        "linguistics_term": "order",
    }
    blimp.write_text(json.dumps(pair) + "\n")
    lambada = tmp_path / "lambada.jsonl"
    lambada.write_text(json.dumps({"text": "alpha beta gamma delta"}) + "\n")

    words = ("--blimp", str(blimp), "--lambada", str(lambada), "--json")
    assert command("evaluate", str(run / "final"), *words) == 0

    figures = json.loads(capsys.readouterr().out)
    assert figures["blimp"]["accuracy"] in (0.0, 1.0)
    assert figures["lambada"]["accuracy"] in (0.0, 1.0)


def test_info_counts_the_weights_of_a_model_and_of_a_configuration(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "final")
    total = f"{sum(weight.numel() for weight in model.parameters()):,}"

    assert command("info", str(run / "final")) == 0
    assert total in capsys.readouterr().out
    assert command("info", str(ROOT / "configs" / "gpt2_small.yaml")) == 0
    # GPT-2's 124,439,808, with 47 more rows of 768 in the vocabulary.
    assert f"{124_439_808 + 47 * 768:,}" in capsys.readouterr().out


def test_tokenizer_show_gives_every_piece_of_the_text(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("tokenizer", "show", str(run / "final"), "alpha beta") == 0

    pieces = re.findall(r"\s(\d+)\s.*'(.*)'", capsys.readouterr().out)
    assert "".join(piece for _, piece in pieces) == "alpha beta"


def test_tokenizer_train_writes_a_folder_that_transformers_loads(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    output = tmp_path / "tokenizer"
    settings = str(run / "config.yaml")

    assert command("tokenizer", "train", settings, "--output", str(output)) == 0

    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer.encode("alpha")) == "<s>alpha"


def test_show_prints_every_setting_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", str(ROOT / "configs" / "demo.yaml"), "seed=5", "--show") == 0

    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "configs/none.yaml"], r"configs/none\.yaml is not there"),
        (["train", "configs/demo.yaml", "train.max_stps=1"], r"Did you mean max_steps\?"),
        (["generate", "runs/none/final"], r"runs/none/final is no folder here"),
        (
            ["export", "me/none", "out", "--to", "native"],
            r"me/none is no folder here, but an export is made from one",
        ),
        (["generate", "tests"], r"tests has no config\.json"),
        (["evaluate", "tests"], r"there is nothing to score.*--text, --blimp or --lambada"),
        (["info", "tests"], r"tests"),
        (["tokenizer", "show", "tests", "a"], r"tests has no tokenizer_config\.json"),
        (["push", "tests", "me/model"], r"tests"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)

    assert command(*words) == 2

    error = capsys.readouterr().err
    assert re.fullmatch(r"tinyformer: error: .*\n", error)
    assert re.search(message, error)


def test_the_run_folder_instead_of_the_model_is_answered_with_the_model(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("generate", str(run)) == 2

    assert f"Did you mean {run / 'final'}?" in capsys.readouterr().err


def test_every_command_has_a_help_text() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "hf_tinyformer", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout

    for name in ("train", "tokenizer", "evaluate", "generate", "info", "push", "pull"):
        assert re.search(rf"\b{name}\b +\S", output), name
