import hashlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import words_for, write_corpus
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_tinyformer import pipeline as run_stages
from hf_tinyformer.artifacts import hold_folder
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.run_config import RunConfig, load_run_config
from hf_tinyformer.training.metrics import NullReporter

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    write_corpus(tmp_path / "texts")
    return load_run_config(None, words_for(tmp_path))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_text_becomes_a_folder_that_every_auto_class_loads(config: RunConfig) -> None:
    result = run_pipeline(config, reporter=NullReporter())

    assert result.final_dir == config.run_dir / "final"
    assert result.training.status == "finished"
    model = AutoModelForCausalLM.from_pretrained(result.final_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.final_dir)
    ids = tokenizer("alpha beta", return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits
        hidden = AutoModel.from_pretrained(result.final_dir)(**ids).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), logits, rtol=0, atol=0)
    made = pipeline("text-generation", model=str(result.final_dir))("alpha", max_new_tokens=4)
    assert made[0]["generated_text"].startswith("alpha")


def test_two_runs_cannot_share_a_folder(config: RunConfig) -> None:
    with hold_folder(config.run_dir), pytest.raises(ArtifactError, match="is held by process"):
        run_pipeline(config, reporter=NullReporter())
    assert [path.name for path in config.run_dir.iterdir()] == [".lock"]


def test_a_run_holds_its_folder_from_the_first_text_to_the_final_folder(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_first(name: str) -> None:
        stage = getattr(run_stages, name)

        def looks(*args: Any, **settings: Any) -> Any:
            with pytest.raises(ArtifactError, match="is held by process"), hold_folder(run_dir):
                pass
            seen.append(name)
            return stage(*args, **settings)

        monkeypatch.setattr(run_stages, name, looks)

    run_dir = config.run_dir
    for name in ("prepare_text", "train", "write_final"):
        look_first(name)

    run_pipeline(config, reporter=NullReporter())

    assert seen == ["prepare_text", "train", "write_final"]
    with hold_folder(run_dir):
        pass


def test_a_run_leaves_everything_that_tells_what_happened(config: RunConfig) -> None:
    run_pipeline(config, reporter=NullReporter())

    run_dir = config.run_dir
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    assert names >= {"config.yaml", "tokenizer", "tokens", "metrics.jsonl", "loss.png"}
    assert names >= {"checkpoints", "final"}
    assert load_run_config(run_dir / "config.yaml") == config
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    card = (run_dir / "final" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert str(run_dir.parent) not in card


def test_nothing_published_names_a_folder_of_this_machine(
    config: RunConfig, tmp_path: Path
) -> None:
    result = run_pipeline(config, reporter=NullReporter())

    assert result.final_dir
    for path in result.final_dir.iterdir():
        if path.suffix in {".json", ".md", ".py", ".jinja"}:
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name


def test_the_same_command_again_makes_nothing_again(config: RunConfig) -> None:
    run_pipeline(config, reporter=NullReporter())
    kept = [path for path in config.run_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: (path.stat().st_mtime_ns, digest(path)) for path in kept}

    result = run_pipeline(config, reporter=NullReporter())

    assert result.final_dir == config.run_dir / "final"
    changed = [path.name for path in kept if before[path][1] != digest(path)]
    assert changed == []
    for stage in ("tokenizer", "tokens", "final"):
        file = next(path for path in kept if path.parent.name == stage)
        assert file.stat().st_mtime_ns == before[file][0], f"{stage} was made again"


def test_a_changed_text_makes_tokenizer_and_tokens_again_and_refuses_old_checkpoints(
    config: RunConfig, tmp_path: Path
) -> None:
    run_pipeline(config, reporter=NullReporter())
    (tmp_path / "texts" / "99.txt").write_text("a document that was not there before\n" * 9)

    with pytest.raises(ArtifactError, match=r"was written with.*train\.resume=never"):
        run_pipeline(config, reporter=NullReporter())


def test_more_steps_go_on_and_renew_the_final_folder(config: RunConfig, tmp_path: Path) -> None:
    run_pipeline(config, reporter=NullReporter())
    first = digest(config.run_dir / "final" / "model.safetensors")
    longer = load_run_config(None, words_for(tmp_path, "train.max_steps=16"))

    result = run_pipeline(longer, reporter=NullReporter())

    assert result.training.step == 16
    assert digest(config.run_dir / "final" / "model.safetensors") != first


def test_a_damaged_store_is_made_again_with_a_warning(
    config: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(config, reporter=NullReporter())
    arrow = next((config.run_dir / "tokens").rglob("*.arrow"))
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[:-1])
    monkeypatch.setattr(logging.getLogger("hf_tinyformer"), "propagate", True)

    run_pipeline(config, reporter=NullReporter())

    assert "It is made again" in caplog.text
    assert next((config.run_dir / "tokens").rglob("*.arrow")).read_bytes() == whole


def start(words: list[str], processes: int) -> subprocess.Popen[bytes]:
    launch = [sys.executable, "train.py"]
    if processes > 1:
        launch = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu"),
            *("--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "train.py"),
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, str(ROOT / "configs" / "note_16d.yaml"), "data.builtin=null", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(words: list[str], processes: int) -> None:
    process = start(words, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    # A launcher may start one process where two were asked for, and say nothing.
    assert re.search(rf"^processes +{processes}$", output.decode(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "steps"), [(1, (4, 17, 30)), (2, (17,))])
def test_a_run_killed_at_any_moment_ends_in_the_same_weights(
    tmp_path: Path, processes: int, steps: tuple[int, ...]
) -> None:
    write_corpus(tmp_path / "texts")
    steady = words_for(tmp_path, "name=steady", "train.max_steps=40")
    killed = words_for(tmp_path, "name=killed", "train.max_steps=40")
    finish(steady, processes)
    moments = random.Random(processes)

    for step in steps:
        process = start(killed, processes)
        metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
                break
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        # Ended by the kill, not by itself: otherwise nothing was tried.
        assert process.returncode == -signal.SIGKILL
    finish(killed, processes)

    for name in ("final/model.safetensors", "checkpoints/step-000040/optimizer.safetensors"):
        first, second = (tmp_path / "runs" / run / name for run in ("steady", "killed"))
        assert digest(first) == digest(second)
