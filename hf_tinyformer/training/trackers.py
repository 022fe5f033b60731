"""Optional places for metrics: TensorBoard, Trackio, Weights & Biases, each inside the run folder.

They are for looking at. The truth is `metrics.jsonl`, which resuming trims to where the run stands.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from hf_tinyformer.errors import ConfigError


class Tracker(Protocol):
    """A place that takes records of a step."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take a record with `step` among its numbers and texts."""

    def close(self) -> None:
        """Bring everything to its place."""


class NoTracker:
    """A tracker that keeps nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Do nothing."""


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    group = "validation" if "validation_loss" in record else "train"
    return {
        f"{group}/{key.removeprefix('validation_')}": value
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class _TensorBoard:
    def __init__(self, module: Any, run_dir: Path, start_step: int) -> None:
        # purge_step hides what a killed run wrote after its last checkpoint.
        self._writer = module.SummaryWriter(run_dir / "tensorboard", purge_step=start_step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for key, value in _numbers(record).items():
            self._writer.add_scalar(key, value, record["step"])
        if record.get("sample"):
            self._writer.add_text("sample", record["sample"], record["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, module: Any, run_dir: Path, facts: Mapping[str, Any]) -> None:
        self._run = module.init(
            project="hf_tinyformer",
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(facts),
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, module: Any, run_dir: Path, facts: Mapping[str, Any]) -> None:
        self._run = module.init(
            project="hf_tinyformer",
            name=run_dir.name,
            config=dict(facts),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def _require(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"train.tracker is {name}, but the package {name} is not installed ({error}). Run "
            f"`pip install {name}`, or set train.tracker=none; metrics.jsonl and loss.png are "
            "written in any case."
        ) from error


def open_tracker(
    name: Literal["none", "tensorboard", "trackio", "wandb"],
    *,
    run_dir: Path,
    start_step: int,
    facts: Mapping[str, Any],
) -> Tracker:
    """Open the tracker that `train.tracker` names.

    Args:
        name: Which.
        run_dir: The run's folder; the tracker keeps its files below it.
        start_step: Steps taken before this start of the run.
        facts: What to show beside the curves.

    Returns:
        The open tracker.

    Raises:
        ConfigError: If its package is not installed.
    """
    if name == "tensorboard":
        return _TensorBoard(_require(name, "torch.utils.tensorboard"), run_dir, start_step)
    if name == "wandb":
        return _Wandb(_require(name, "wandb"), run_dir, facts)
    if name == "trackio":
        # Trackio reads its folder from here, once, when it is imported; the user's own wins.
        os.environ.setdefault("TRACKIO_DIR", str(run_dir / "trackio"))
        return _Trackio(_require(name, "trackio"), run_dir, facts)
    return NoTracker()
