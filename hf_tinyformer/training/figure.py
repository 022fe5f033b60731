"""The training curve as a picture."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import write_bytes

INK, TRAIN, VALIDATION = "#333333", "#4477aa", "#cc3311"
MAX_POINTS = 2_000


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a metrics file.

    Args:
        path: `metrics.jsonl`.

    Returns:
        The steps' records and the evaluations' records, in order.
    """
    # Not splitlines(): a sample may hold a line end of Unicode, which JSON leaves as it is.
    lines = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    steps = [record for record in records if "validation_loss" not in record]
    evaluations = [record for record in records if "validation_loss" in record]
    return steps, evaluations


def smooth(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """Average each value with those before it, later ones weighing more.

    The average looks back over a tenth of what has happened, at most over `span`: so it follows the
    steep fall at the start, and is calm later.

    Args:
        values: `(n,)`.
        span: Steps after which a value's weight has fallen to about a third.

    Returns:
        An exponential moving average, `(n,)`.
    """
    averages = np.empty_like(values)
    average = 0.0
    for index, value in enumerate(values):
        average += (value - average) / max(1.0, min(span, 1 + index / 10))
        averages[index] = average
    return averages


def _finite_points(
    records: list[dict[str, Any]], key: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    steps = np.array([step for step, _ in points], dtype=np.int64)
    return steps, np.array([value for _, value in points], dtype=np.float64)


def draw_losses(metrics_path: Path, image_path: Path) -> None:
    """Draw training and validation loss over steps, replacing the image in one step.

    Args:
        metrics_path: `metrics.jsonl`.
        image_path: The PNG to write.
    """
    # The object interface: no global figure, no window, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step_records, evaluations = read_metrics(metrics_path)
    steps, losses = _finite_points(step_records, "loss")
    at, validation = _finite_points(evaluations, "validation_loss")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(steps):
        stride = max(1, len(steps) // MAX_POINTS)
        axes.plot(steps[::stride], losses[::stride], color=TRAIN, alpha=0.25, linewidth=0.8)
        curve = smooth(losses, max(1, len(losses) // 50))
        axes.plot(steps[::stride], curve[::stride], color=TRAIN, linewidth=1.6, label="training")
    if len(at):
        best = int(np.argmin(validation))
        label = f"validation, best {validation[best]:.4f} at step {at[best]:,}"
        axes.plot(at, validation, "o-", color=VALIDATION, markersize=3.5, label=label)
    _dress(axes, with_legend=bool(len(steps) or len(at)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(image_path, buffer.getvalue())


def _dress(axes: Any, *, with_legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    axes.set_title("Loss over training", loc="left", color=INK)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    # A loss falls fast, then slowly: on a log scale both parts show.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if with_legend:
        axes.legend(frameon=False)
