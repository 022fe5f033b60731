"""The folder of a run's checkpoints: find the newest whole one, keep the right ones, delete safely.

The folder is the truth: no `latest` file points into it, a scan finds what is there. A name is that
of a whole checkpoint (`step-000500`), of a damaged one (`step-000500.corrupt`), or hidden (see
artifacts.py).
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_tinyformer.artifacts import clean_folder, read_manifest, remove_folder
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.training.checkpoint import (
    KIND,
    TrainingState,
    read_state,
    verify_checkpoint,
    write_checkpoint,
)

logger = logging.getLogger(__name__)

_STEP_NAME = re.compile(r"step-(\d{6,})")


def _free_name(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, ... that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


class Checkpoints:
    """The checkpoints of one run. Only the run's main process may call what writes."""

    def __init__(self, run_dir: Path) -> None:
        """Take the run's folder; nothing is made yet."""
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints"

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, whether it is there or not."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first, compared as numbers."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name)))

    def find_newest(self, on_message: Callable[[str], None]) -> Path | None:
        """Find the newest checkpoint whose every byte is as written.

        Damaged ones are renamed to `*.corrupt` and reported, and the next older one is tried.

        Args:
            on_message: Told of each damaged checkpoint, in one line.

        Returns:
            Its folder, or `None` if there is none.
        """
        clean_folder(self.folder)
        for step in reversed(self.steps()):
            if self._is_whole(step, on_message):
                return self.path(step)
        return None

    def _is_whole(self, step: int, on_message: Callable[[str], None]) -> bool:
        path = self.path(step)
        try:
            facts = verify_checkpoint(path)
            if facts["step"] != step:
                raise ArtifactError(
                    f"{path} says that it is step {facts['step']}, but its name says {step}. "
                    "It was renamed or copied by hand."
                )
        except ArtifactError as error:
            aside = _free_name(path.with_name(f"{path.name}.corrupt"))
            path.rename(aside)
            on_message(f"{error} It was renamed to {aside.name} and is not used.")
            return False
        return True

    def holds(self, step: int, on_message: Callable[[str], None]) -> bool:
        """Say whether a step's whole checkpoint is there; a damaged one is set aside.

        Args:
            step: The step.
            on_message: Told of damage, in one line.
        """
        return self.path(step).exists() and self._is_whole(step, on_message)

    def save(
        self,
        state: TrainingState,
        *,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        identity: Mapping[str, Any],
        keep_last: int,
    ) -> None:
        """Write the checkpoint of a step, read it back, and only then delete what is too old.

        A whole checkpoint of the step that is there already is kept: it holds the same.

        Args:
            state: Where the run stands.
            weights: See `write_checkpoint`.
            optimizer_state: See `write_checkpoint`.
            identity: What makes the run this run.
            keep_last: How many of the newest to keep, see `prune`.

        Raises:
            TrainingError: If a tensor holds a number that is not finite.
            ArtifactError: If the disk does not take it or gives back something else.
        """
        path = self.path(state.step)
        if not self.holds(state.step, logger.warning):
            write_checkpoint(
                path,
                weights=weights,
                optimizer_state=optimizer_state,
                state=state,
                identity=identity,
            )
            verify_checkpoint(path)
        self.prune(keep_last)

    def prune(self, keep_last: int) -> None:
        """Delete all but the newest checkpoints and the best ones that those speak of.

        Called after the newest one was verified, so at least one whole checkpoint always stands.

        Args:
            keep_last: How many of the newest to keep.
        """
        steps = self.steps()
        keep = set(steps[-keep_last:])
        # The best of every kept state: whichever of them a run goes on from, its best is there.
        for step in steps[-keep_last:]:
            try:
                best_step = read_manifest(self.path(step), kind=KIND)["best_step"]
            except ArtifactError:
                self._is_whole(step, logger.warning)  # sets it aside, and says so
                continue
            keep.add(step if best_step is None else best_step)
        for step in steps:
            if step not in keep:
                remove_folder(self.path(step))

    def begin_from(
        self, path: Path, identity: Mapping[str, Any], on_message: Callable[[str], None]
    ) -> int:
        """Make this run go on from a checkpoint that the user named.

        What the run holds beyond that checkpoint belongs to another future, and is moved aside.

        Args:
            path: The checkpoint, from this run's folder or another's.
            identity: What makes the run this run.
            on_message: Told what was moved.

        Returns:
            Its step.

        Raises:
            ArtifactError: If it is missing, damaged or of another run. Nothing was moved then.
        """
        clean_folder(self.folder)
        step = int(verify_checkpoint(path)["step"])
        read_state(path, identity)
        is_ours = path.resolve().parent == self.folder.resolve()
        aside = self.move_aside(after_step=step if is_ours else None)
        if aside is not None:
            on_message(f"Checkpoints that do not lead on from {path} were moved to {aside}.")
        return step

    def move_aside(self, *, after_step: int | None = None) -> Path | None:
        """Make room for a new beginning: move checkpoints to `checkpoints.old`, `.old-2`, ...

        Args:
            after_step: Move only the checkpoints after this step. `None`: all of them, and the
                metrics with them.

        Returns:
            Where they are now, or `None` if there was nothing to move.
        """
        metrics = self.run_dir / "metrics.jsonl"
        aside = _free_name(self.run_dir / "checkpoints.old")
        if after_step is None:
            if self.folder.exists():
                self.folder.rename(aside)
            elif metrics.exists():
                aside.mkdir()
            else:
                return None
            if metrics.exists():
                metrics.rename(aside / metrics.name)
            return aside
        later = [step for step in self.steps() if step > after_step]
        for step in later:
            aside.mkdir(exist_ok=True)
            self.path(step).rename(aside / self.path(step).name)
        return aside if later else None
