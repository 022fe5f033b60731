"""What a run tells while it trains: `metrics.jsonl`, the curve, trackers, and a progress display.

`metrics.jsonl` has one JSON object a line. A step's line:

    {"step": 7, "loss": 5.1, "learning_rate": 0.003, "grad_norm": 0.9, "tokens": 57344,
     "tokens_per_second": 21000.0, "seconds": 2.7, "epochs": 0.02}

and an evaluation's: `step, validation_loss, perplexity, bits_per_byte, epochs, sample`. Of several
sources each has its own epochs, such as `"epochs/wiki": 0.01`. A number that is not finite stands
as null, with its name under `not_finite`, since JSON has no word for it.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from hf_tinyformer.artifacts import write_text
from hf_tinyformer.training.figure import draw_losses
from hf_tinyformer.training.trackers import Tracker

METRICS_NAME = "metrics.jsonl"
FIGURE_NAME = "loss.png"


class Reporter(Protocol):
    """Shows a run to whoever started it. Called on the main process only."""

    def on_start(self, *, total_steps: int, start_step: int, facts: Mapping[str, Any]) -> None:
        """Training begins at `start_step`; `facts` are for showing: sizes, device, precision."""

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        """A step is done. `metrics` is its line in metrics.jsonl; what is not finite is None."""

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """An evaluation is done. `metrics` has its figures, as they are, and the sample."""

    def on_message(self, text: str) -> None:
        """Something to know, in one line."""


class NullReporter:
    """A Reporter that shows nothing."""

    def on_start(self, *, total_steps: int, start_step: int, facts: Mapping[str, Any]) -> None:
        """Show nothing."""

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        """Show nothing."""

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Show nothing."""

    def on_message(self, text: str) -> None:
        """Show nothing."""


def without_odd_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what is not finite by None, and say under `not_finite` what it was.

    Args:
        record: Names to numbers, texts or None.

    Returns:
        For `{"loss": nan}`: `{"loss": None, "not_finite": {"loss": "nan"}}`.
    """
    odd = {k: v for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    clean = {key: None if key in odd else value for key, value in record.items()}
    if odd:
        clean["not_finite"] = {key: str(value) for key, value in odd.items()}
    return clean


def name_epochs(epochs: Mapping[str, float]) -> dict[str, float]:
    """Name the epochs of sources as a record has them.

    Args:
        epochs: How many times each source has been read, by its name.

    Returns:
        `{"epochs": 0.5}` for one source; `{"epochs/wiki": 0.5, "epochs/code": 2.1}` for several.
    """
    if len(epochs) == 1:
        (number,) = epochs.values()
        return {"epochs": round(number, 6)}
    return {f"epochs/{name}": round(number, 6) for name, number in epochs.items()}


def to_json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of strict JSON, see `without_odd_numbers`."""
    return json.dumps(without_odd_numbers(record), ensure_ascii=False, allow_nan=False) + "\n"


def _stands_at(line: str, step: int, evaluated_step: int) -> bool:
    try:
        record = json.loads(line)
        last = evaluated_step if "validation_loss" in record else step
        return bool(record["step"] <= last)
    except (ValueError, KeyError, TypeError):
        return False  # The line that a kill cut off, always beyond the last checkpoint.


class MetricsLog:
    """Writes the metrics of a run into its folder. Lives on the main process only."""

    def __init__(self, run_dir: Path, *, step: int, evaluated_step: int, tracker: Tracker) -> None:
        """Open the log where the run stands: what came after that is cut away, in one step.

        Args:
            run_dir: The run's folder.
            step: Steps taken; lines of later steps will be written again.
            evaluated_step: The last step whose evaluation is done.
            tracker: Where the metrics also go.
        """
        self.run_dir = run_dir
        self.tracker = tracker
        path = run_dir / METRICS_NAME
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [line + "\n" for line in lines if _stands_at(line, step, evaluated_step)]
            write_text(path, "".join(kept))
        self._stream = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a step's or an evaluation's record, so that a kill right after loses nothing.

        Args:
            record: With `step`.
        """
        self._stream.write(to_json_line(record))
        self._stream.flush()
        self.tracker.log(record)

    def sync(self) -> None:
        """Bring the file to disk, so that it never ends before a checkpoint written after this."""
        os.fsync(self._stream.fileno())

    def draw(self) -> None:
        """Draw `loss.png` anew from the file."""
        draw_losses(self.run_dir / METRICS_NAME, self.run_dir / FIGURE_NAME)

    def __enter__(self) -> "MetricsLog":
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file and the tracker."""
        self._stream.close()
        self.tracker.close()
