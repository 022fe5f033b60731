"""A folder with a tiny finished run in it, for what other libraries do with a checkpoint."""

import shutil
from pathlib import Path

import pytest

from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.run_config import load_run_config
from hf_tinyformer.training.metrics import NullReporter

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

# What the libraries here say of each other; none of it can be put right on our side.
THIRD_PARTY = (
    # peft 0.21 and trl 1.16 use names that transformers renamed.
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning",
    # Their compiled parts carry no __module__ (bitsandbytes, sentencepiece by SWIG).
    "ignore:builtin type .* has no __module__ attribute:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for warning in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(warning))


def write_texts(folder: Path) -> None:
    folder.mkdir()
    for index in range(40):
        text = f"def add_{index}(left, right):\n    return left + right + {index}\n" * 4
        (folder / f"{index}.txt").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a clone is after `make demo`, but for the size: `runs/demo/final` in it."""
    folder = tmp_path_factory.mktemp("clone")
    write_texts(folder / "texts")
    overrides = [
        "data.builtin=null",
        f"data.files=[{folder}/texts/*.txt]",
        "data.validation_fraction=0.2",
        "data.sequence_length=128",
        "tokenizer.vocab_size=320",
        "model.hidden_size=32",
        "model.num_hidden_layers=2",
        "train.global_batch_size=8",
        "train.max_steps=30",
        "train.warmup_steps=2",
        "train.evaluate_every=30",
        "train.sample_tokens=0",
        "train.mixed_precision=fp32",
        f"output_dir={folder}/runs",
    ]
    config = load_run_config(ROOT / "configs" / "demo.yaml", overrides)
    run_pipeline(config, reporter=NullReporter(), cpu=True)
    # Some of the recipes read files of the repository.
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


@pytest.fixture(scope="session")
def checkpoint(finished_run: Path) -> Path:
    return finished_run / "runs" / "demo" / "final"


@pytest.fixture
def clone(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one test, which is also the working directory."""
    folder = shutil.copytree(finished_run, tmp_path / "clone")
    monkeypatch.chdir(folder)
    return folder
