"""What a person sees while training runs: a bar in a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
"""In a log, where a bar cannot move, a line this often says that the run is alive."""


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _epochs(metrics: Mapping[str, Any]) -> str:
    """Say how many times each source has been read."""
    found = [
        f"{key.removeprefix('epochs').removeprefix('/')} {value:.2f}".strip()
        for key, value in metrics.items()
        if key.startswith("epochs")
    ]
    return f"  epochs {', '.join(found)}" if found else ""


class TrainingDisplay:
    """Shows a run's progress. Implements `training.metrics.Reporter`.

    Args:
        console: Where to draw.
        quiet: Draw nothing, as every process but the first does.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("step", total=None, figures="", visible=False)
        self._total_steps = 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        """Take the terminal's last line for the bar."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal's last line back."""
        self._bar.stop()

    def on_start(self, *, total_steps: int, start_step: int, facts: Mapping[str, Any]) -> None:
        """Say what is about to happen, and draw the empty bar."""
        self._total_steps = total_steps
        for name, value in facts.items():
            self.on_message(f"{name.replace('_', ' '):<18} {_readable(value)}")
        if start_step:
            self.on_message(f"going on after step {start_step}")
        self._bar.update(self._task, total=total_steps, completed=start_step, visible=True)
        self._bar.start()
        self._last_line = time.monotonic()

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        """Move the bar, or now and then write a line where there is none."""
        figures = (
            f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:,.0f} tokens/s"
            if metrics["loss"] is not None
            else "loss not finite: step left out"
        )
        self._bar.update(self._task, completed=metrics["step"], figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.on_message(f"step {metrics['step']}/{self._total_steps}  {figures}")

    def on_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Write the figures of an evaluation, and the text the model made up."""
        self.on_message(
            f"step {metrics['step']}  validation loss {metrics['validation_loss']:.4f}  "
            f"perplexity {metrics['perplexity']:.2f}  "
            f"bits per byte {metrics['bits_per_byte']:.4f}{_epochs(metrics)}"
        )
        if metrics.get("sample"):
            self._write(Text(f"  {metrics['sample']!r}", style="dim"))

    def on_message(self, text: str) -> None:
        """Write a line above the bar."""
        self._write(Text(text))

    def _write(self, text: Text) -> None:
        if not self._quiet:
            self._bar.console.print(text, soft_wrap=True)


@contextmanager
def counting_bar(
    console: Console, *, quiet: bool = False, what: str = "scored"
) -> Iterator[Callable[[int], None]]:
    """Show how much has been done, where the whole is not known.

    Args:
        console: Where to draw.
        quiet: Draw nothing.
        what: What is counted.

    Yields:
        A function that takes how many more are done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"))
    disable = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=disable, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(count: int) -> None:
            bar.update(task, advance=count)

        yield advance


@contextmanager
def parts_bar(console: Console) -> Iterator[Callable[[int, int, int], None]]:
    """Show how many parts of a corpus are encoded, and how fast: a bar, or lines in a log.

    Yields:
        A function that takes the parts done, all parts, and the bytes of text encoded so far.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    started = last_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("parts", total=None)

        def update(done: int, total: int, num_bytes: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            rate = f"{num_bytes / 1e6 / max(now - started, 1e-9):,.1f} MB/s" if num_bytes else ""
            bar.update(task, completed=done, total=total, description=f"parts {rate}".strip())
            if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                console.print(Text(f"part {done} of {total}  {rate}".strip()), soft_wrap=True)

        yield update
        bar.update(task, completed=bar.tasks[task].total)
