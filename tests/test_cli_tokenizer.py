"""`tinyformer tokenizer`, and runs whose tokenizer is of another kind or from elsewhere."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from tiny_run import words_for
from transformers import AutoTokenizer, ByT5Tokenizer, GenerationConfig

from hf_tinyformer.artifacts import hold_folder
from hf_tinyformer.cli import main
from hf_tinyformer.inference.generation import generate_text, join_texts
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.run_config import load_run_config
from hf_tinyformer.training.metrics import NullReporter

SENTENCES = ["나는 간다.", "너는 쉰다.", "그는 밥을 먹는다.", "우리는 학교에 간다.", "cafe 한글"]


def command(*words: str) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def korean_words(folder: Path, *more: str) -> list[str]:
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number in range(40):
        lines = (SENTENCES[(number + step) % len(SENTENCES)] for step in range(30))
        (folder / "texts" / f"{number:02d}.txt").write_text(f"글 {number}\n" + "\n".join(lines))
    return words_for(folder, *more)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train tokenizers of two kinds by the command line, and return the folder of both."""
    folder = tmp_path_factory.mktemp("tokenizers")
    config = folder / "korean.yaml"
    config.write_text("name: korean\n")
    for kind, size in (("jamo", 400), ("word", 30)):
        words = korean_words(folder, f"tokenizer.kind={kind}", f"tokenizer.vocab_size={size}")
        output = str(folder / kind)
        assert command("tokenizer", "train", str(config), *words, "--output", output) == 0
    return folder


def test_show_makes_jamo_readable_and_says_what_is_lost(
    tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("tokenizer", "show", str(tokenizers / "jamo"), "나는 쉰") == 0
    shown = capsys.readouterr().out
    assert command("tokenizer", "show", str(tokenizers / "word"), "나는 뷁") == 0
    lost = capsys.readouterr().out

    assert "'ㄴ'" in shown  # 쉰 is never seen without 다, so it is taken apart
    assert not any("\u1100" <= letter <= "\u11ff" for letter in shown)
    assert "do not give the text back" not in shown
    assert "They do not give the text back, but: 나는" in lost


def test_show_refuses_text_that_is_not_utf8(
    tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What the shell's byte 0xe9 becomes.
    assert command("tokenizer", "show", str(tokenizers / "jamo"), "caf\udce9") == 2
    assert "has the lone surrogate U+DCE9 at character 3" in capsys.readouterr().err


def test_a_tokenizer_without_a_fast_form_is_refused_in_one_line(
    tokenizers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    texts = ("--text", str(tokenizers / "texts" / "0*.txt"))

    for words in (("show", str(tmp_path), "a"), ("report", str(tmp_path), *texts)):
        assert command("tokenizer", *words) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"{tmp_path} has a ByT5Tokenizer, but only tokenizers with a tokenizer.json" in error


def test_a_tokenizer_is_not_trained_in_the_folder_of_a_run_that_is_at_work(
    tokenizers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = korean_words(tmp_path, "tokenizer.kind=bytes")
    with hold_folder(tmp_path / "runs" / "tiny"):
        assert command("tokenizer", "train", str(tokenizers / "korean.yaml"), *words) == 2
        assert "is held by process" in " ".join(capsys.readouterr().err.split())

    assert command("tokenizer", "train", str(tokenizers / "korean.yaml"), *words) == 0
    assert (tmp_path / "runs" / "tiny" / "tokenizer" / "tokenizer.json").is_file()


def test_data_sets_are_read_at_the_commits_beside_the_prepared_tokens(
    tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    korean_words(tmp_path)
    prepared = tmp_path / "prepared"
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\ntokenizer: {{kind: bytes}}\n"
        f"data: {{files: ['{tmp_path}/texts/*.txt'], prepared: {prepared}}}\n"
    )
    pinned = []
    monkeypatch.setattr(
        "hf_tinyformer.prepared.pin_data",
        lambda run_config, folder: pinned.append(folder) or run_config,
    )

    assert command("tokenizer", "train", str(config)) == 0
    assert command("tokenizer", "report", str(tokenizers / "jamo"), "--config", str(config)) == 0

    assert pinned == [prepared, prepared]


def test_report_sets_tokenizers_side_by_side(
    tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tokenizers / "jamo"), str(tokenizers / "word")]
    texts = ("--text", str(tokenizers / "texts" / "0*.txt"))

    assert command("tokenizer", "report", *folders, *texts) == 0
    table = capsys.readouterr().out
    assert command("tokenizer", "report", *folders, *texts, "--json") == 0
    jamo, word = json.loads(capsys.readouterr().out)

    assert all(label in table for label in ("bytes hidden", "longest tokens", "jamo", "word"))
    assert "do not compare" in " ".join(table.split())
    assert jamo["texts"] == jamo["texts_unchanged"] == word["texts"] == 10
    assert jamo["hidden_rate"] == 0 < word["hidden_rate"] < 1
    assert word["name"] == folders[1]


def test_report_reads_the_validation_split_of_a_run(
    tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tokenizers / "run.yaml"
    config.write_text(f"data:\n  files: ['{tokenizers}/texts/*.txt']\n  validation_fraction: 0.2\n")
    words = ["tokenizer", "report", str(tokenizers / "jamo"), "--config", str(config), "--json"]

    assert command(*words) == 0

    assert 0 < json.loads(capsys.readouterr().out)[0]["texts"] < 40


def test_report_without_text_says_what_is_missing(
    tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("tokenizer", "report", str(tokenizers / "jamo")) == 2
    assert "0 of --text and 0 of --config are given" in capsys.readouterr().err


@pytest.fixture(scope="module")
def jamo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jamo")
    words = korean_words(
        folder,
        "tokenizer.kind=jamo",
        "tokenizer.vocab_size=400",
        "tokenizer.chat_template=chatml",
        "train.sample_prompt=나는",
    )
    return run_pipeline(load_run_config(None, words), reporter=NullReporter()).final_dir


def test_a_model_of_jamo_answers_in_syllables(jamo_run: Path) -> None:
    model, tokenizer = load_checkpoint(jamo_run)

    text = generate_text(model, tokenizer, "나는", max_new_tokens=40, seed=0)
    card = (jamo_run / "README.md").read_text()

    assert isinstance(tokenizer, TinyFormerTokenizer)
    for written in (join_texts(tokenizer, "나는", text), card):
        assert unicodedata.is_normalized("NFC", written)
    # A syllable may go on in the answer: 가 and a final ㄴ.
    assert join_texts(tokenizer, "가", "\u11ab다") == "간다"


def test_the_end_of_a_turn_ends_what_the_model_writes(jamo_run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(jamo_run)

    ends = GenerationConfig.from_pretrained(jamo_run).eos_token_id

    assert ends == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert tokenizer.chat_template


PROGRAM = """
import sys, unicodedata
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("나는", return_tensors="pt")
text = tokenizer.decode(model.generate(**ids, max_new_tokens=30)[0], skip_special_tokens=True)
assert "hf_tinyformer" not in sys.modules
assert text.startswith("나")
assert unicodedata.is_normalized("NFC", text), ascii(text)
"""


@pytest.mark.slow
def test_a_model_of_jamo_answers_in_syllables_without_the_package(
    jamo_run: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(jamo_run)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )


def test_a_run_takes_a_tokenizer_that_is_there(tokenizers: Path, tmp_path: Path) -> None:
    words = korean_words(tmp_path, f"tokenizer.path={tokenizers / 'word'}", "train.max_steps=3")
    config = load_run_config(None, [*words, "train.sample_prompt=나는"])

    final = run_pipeline(config, reporter=NullReporter()).final_dir

    ours = json.loads((final / "tokenizer.json").read_text())
    theirs = json.loads((tokenizers / "word" / "tokenizer.json").read_text())
    assert ours["model"] == theirs["model"]
    # Words that it does not know are hidden from the model, and the card says so.
    card = " ".join((final / "README.md").read_text().split())
    assert "too low to be compared with those of others" in card
    again = run_pipeline(config, reporter=NullReporter())
    assert again.final_dir == final
