"""Where a start of a run begins: at its newest whole checkpoint, at a named one, or at step 0."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.training.checkpoint import KIND
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.metrics import Reporter
from hf_tinyformer.training.processes import Processes
from hf_tinyformer.training.rotation import Checkpoints


def _check_best(path: Path, checkpoints: Checkpoints, reporter: Reporter) -> None:
    best_step = read_manifest(path, kind=KIND)["best_step"]
    if best_step is not None and not checkpoints.holds(best_step, reporter.on_message):
        reporter.on_message(
            f"The best checkpoint that {path} speaks of, step {best_step}, is not here. "
            "The best is sought among the evaluations to come."
        )


def find_start(
    config: TrainConfig,
    checkpoints: Checkpoints,
    identity: Mapping[str, Any],
    processes: Processes,
    reporter: Reporter,
) -> Path | None:
    """Find the checkpoint to go on from, the same one on every process.

    Args:
        config: The run's settings; `resume` decides.
        checkpoints: Those of the run. Ones that stand in the way are moved aside.
        identity: What makes the run this run.
        processes: All of which must call this.
        reporter: Told of what was damaged or moved.

    Returns:
        Its folder, or `None` to begin at step 0.

    Raises:
        ArtifactError: If `config.resume` names a checkpoint that is missing, damaged or of another
            run.
    """
    named = config.resume not in ("auto", "never")

    def choose() -> int:
        if named:
            step = checkpoints.begin_from(Path(config.resume), identity, reporter.on_message)
            _check_best(Path(config.resume), checkpoints, reporter)
            return step
        if config.resume == "never":
            aside = checkpoints.move_aside()
            if aside is not None:
                reporter.on_message(f"Older checkpoints were moved to {aside}.")
            return -1
        newest = checkpoints.find_newest(reporter.on_message)
        if newest is None:
            return -1
        _check_best(newest, checkpoints, reporter)
        return int(newest.name.removeprefix("step-"))

    step = processes.main_first(choose, what="find the checkpoint to go on from")
    if named:
        return Path(config.resume)
    return None if step < 0 else checkpoints.path(step)
