"""What a run of training leaves to say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["finished", "early_stopped", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run, or this start of it, ended."""

    step: int
    """Optimizer steps taken."""

    best_step: int | None
    """Step with the lowest validation loss, `None` before the first evaluation."""

    best_loss: float | None
    """That loss, in nats per token."""

    tokens_seen: int
    """Tokens read in training."""

    status: Status
    """`interrupted`: the same command goes on from `checkpoint`."""

    checkpoint: Path
    """The checkpoint of `step`."""

    best_checkpoint: Path
    """The checkpoint of `best_step`, or `checkpoint` if there is none."""

    seconds: float
    """Time spent in training, over all starts of the run."""

    epochs: dict[str, float]
    """How many times each source of text was read, by its name."""
