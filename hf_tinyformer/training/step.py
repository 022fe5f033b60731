"""One optimizer step: micro-batches, their gradients, the finite gate, the update.

The loss of a step is the sum over all predicted tokens of the global batch, divided by their count,
so neither the size of micro-batches nor the number of processes changes what is minimized.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hf_tinyformer.errors import ConfigError, TrainingError
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.optimizer import set_learning_rates, set_momentum
from hf_tinyformer.training.processes import Processes
from hf_tinyformer.training.randomness import derive_seed
from hf_tinyformer.training.schedule import learning_rate_factor, muon_momentum


class Batches(Protocol):
    """What the data room's TrainingBatches offers: batches as a pure function of the step."""

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return where the rows of a step begin, `(global_batch_size,)`."""

    def num_targets(self, step: int) -> int:
        """Return how many tokens the step's rows predict."""

    def batch(self, starts: NDArray[np.int64]) -> dict[str, Tensor]:
        """Read some of those rows."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step found, the same on every process."""

    loss: float
    grad_norm: float
    learning_rate: float
    taken: bool
    """False if something was not finite, so the weights stayed as they were."""

    overflowed: bool
    """Not taken only because fp16's loss scale was too high, which is part of finding it."""

    stop: bool
    """Some process was asked to stop."""

    save: bool
    """The main process's clock asks for a checkpoint."""


def split_batch(config: TrainConfig, num_processes: int) -> tuple[int, int]:
    """Divide the global batch among processes and micro-batches.

    Args:
        config: The run's settings.
        num_processes: Processes that train together.

    Returns:
        Sequences in a micro-batch, and micro-batches that each process takes in a step.

    Raises:
        ConfigError: If the division leaves a rest.
    """
    total = config.global_batch_size
    if total % num_processes:
        raise ConfigError(
            f"train.global_batch_size is {total}, but it must be a multiple of the {num_processes} "
            f"processes. Take {-(-total // num_processes) * num_processes}."
        )
    share = total // num_processes
    micro = config.micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"train.micro_batch_size is {micro}, but it must divide the {share} sequences that "
            f"each of {num_processes} processes takes of train.global_batch_size ({total}). Take "
            f"{math.gcd(share, micro)} or {share}."
        )
    return micro, share // micro


STATES_AT_ONCE = 3 << 20
"""Numbers of hidden states, over all layers, that a CPU takes at once: what autograd keeps for them
is a few hundred megabytes, and more at a time are no faster (docs/benchmarks.md)."""


def fit_micro_batch(
    config: TrainConfig, model: Any, device: torch.device, *, processes: int, sequence_length: int
) -> TrainConfig:
    """Set `train.micro_batch_size` for a CPU, if it is not set.

    Args:
        config: The run's settings.
        model: What is trained; one whose config names no sizes is left alone.
        device: Where. A GPU takes all of its share at once, which is what it is fast at.
        processes: Processes that train together.
        sequence_length: Tokens in a row.

    Returns:
        The settings to train with.

    Raises:
        ConfigError: If the processes do not divide the global batch.
    """
    share, _ = split_batch(config, processes)
    sizes = getattr(model, "config", None)
    width, depth = (getattr(sizes, name, 0) for name in ("hidden_size", "num_hidden_layers"))
    if config.micro_batch_size is not None or device.type != "cpu" or not width * depth:
        return config
    most = max(1, STATES_AT_ONCE // (sequence_length * width * depth))
    rows = next(rows for rows in range(min(share, most), 0, -1) if share % rows == 0)
    return replace(config, micro_batch_size=rows)


def uses_dropout(model: nn.Module) -> bool:
    """Say whether the forward pass of training draws random numbers.

    Args:
        model: A model; one with a transformers config says it there.
    """
    layers = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    config = getattr(model, "config", None)
    settings = vars(config) if config is not None else {}
    return layers or any(
        "dropout" in name and isinstance(value, int | float) and value > 0
        for name, value in settings.items()
    )


class StepRunner:
    """Takes the optimizer steps of a run."""

    def __init__(
        self,
        *,
        model: nn.Module,
        bare_model: nn.Module,
        optimizers: Sequence[Optimizer],
        batches: Batches,
        config: TrainConfig,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        """Take what a step needs.

        Args:
            model: The model to call, as `accelerator.prepare` returned it.
            bare_model: The model whose parameters the optimizers move.
            optimizers: From `build_optimizers`.
            batches: Rows by step.
            config: The run's settings.
            seed: The run's seed, for dropout.
            accelerator: Device, precision and gradient synchronization.
        """
        self.model = model
        self.optimizers = list(optimizers)
        self.batches = batches
        self.config = config
        self.seed = seed
        self.accelerator = accelerator
        self.processes = Processes(accelerator)
        self.micro_batch_size, self.num_micro_batches = split_batch(config, self.processes.count)
        self.has_dropout = uses_dropout(bare_model)
        self.parameters = [p for p in bare_model.parameters() if p.requires_grad]
        self._prepared: dict[tuple[int, int], dict[str, Tensor]] = {}

    def run(self, step: int, requests: Callable[[], tuple[bool, bool]]) -> StepOutcome:
        """Take one step.

        Args:
            step: Steps taken before it.
            requests: Asked once the gradients are there: does this process want to stop, to save?

        Returns:
            What came of it, known to all processes after one message among them.

        Raises:
            TrainingError: If a GPU's memory does not hold a micro-batch.
        """
        self.model.train()
        try:
            loss = self._accumulate(step)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"train.micro_batch_size is {self.micro_batch_size}, but so many sequences at once "
                f"do not fit into the memory of {self.accelerator.device}. Lower it, or set "
                "train.gradient_checkpointing=true."
            ) from error
        scaler = self.accelerator.scaler
        if scaler is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
        norm = self._clip()
        stop, save = requests()
        main = self.processes.is_main
        # After the all-reduce of the gradients their norm is the same everywhere: one sends it.
        sums = self.processes.add([loss, norm if main else 0.0, stop, main and save])
        # The device decides whether to move the weights, and only then are the numbers fetched: a
        # GPU goes on with the update while this process waits for them.
        rate = self._update(step, skip=~sums[:2].isfinite().all())
        total_loss, grad_norm, stops, saves = sums.tolist()
        finite = math.isfinite(total_loss) and math.isfinite(grad_norm)
        return StepOutcome(
            loss=total_loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            taken=finite,
            overflowed=self._overflowed(finite=finite, loss=total_loss),
            stop=stops > 0,
            save=saves > 0,
        )

    def _accumulate(self, step: int) -> Tensor:
        """Add up the gradients of this process's micro-batches, and return their share of loss."""
        num_targets = max(1, self.batches.num_targets(step))
        num_items = torch.full((), num_targets, device=self.accelerator.device)
        total = torch.zeros((), device=self.accelerator.device)
        last = self.num_micro_batches - 1
        for number in range(self.num_micro_batches):
            # Dealt out in turn, so the same micro-batches exist for any number of processes.
            index = number * self.processes.count + self.processes.rank
            inputs = self._take(step, index)
            if self.has_dropout:
                torch.manual_seed(derive_seed(self.seed, "dropout", step, index))
            with self._synchronized() if number == last else self._unsynchronized():
                outputs = self.model(**inputs, num_items_in_batch=num_items, use_cache=False)
                # Gradients are averaged over processes, but the loss is a sum over them.
                self.accelerator.backward(outputs.loss * self.processes.count)
            total += outputs.loss.detach()
            # On a GPU the device is still at work here: the next rows are read and sent meanwhile.
            self._prepare(
                *((step, index + self.processes.count) if number < last else (step + 1, None))
            )
        return total

    @staticmethod
    def _synchronized() -> AbstractContextManager[None]:
        return nullcontext()

    def _unsynchronized(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.model)
        return context

    def _prepare(self, step: int, index: int | None) -> None:
        if step >= self.config.max_steps:
            return
        index = self.processes.rank if index is None else index
        start = index * self.micro_batch_size
        rows = self.batches.rows(step)[start : start + self.micro_batch_size]
        batch, device = self.batches.batch(rows), self.accelerator.device
        if device.type == "cuda":
            # From pinned memory nobody waits for the copy: it is queued behind the work at hand.
            batch = {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
        else:
            batch = {name: value.to(device) for name, value in batch.items()}
        self._prepared = {(step, index): batch}

    def _take(self, step: int, index: int) -> dict[str, Tensor]:
        if (step, index) not in self._prepared:
            self._prepare(step, index)
        return self._prepared.pop((step, index))

    def _gradients(self) -> Iterator[Tensor]:
        return (p.grad for p in self.parameters if p.grad is not None)

    def _clip(self) -> Tensor:
        norm = torch.nn.utils.get_total_norm(list(self._gradients()))
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _update(self, step: int, *, skip: Tensor) -> float:
        """Move the weights unless `skip` is true; return AdamW's learning rate for the log."""
        factor = learning_rate_factor(step, self.config)
        set_learning_rates(self.optimizers, factor)
        set_momentum(self.optimizers, muon_momentum(step, self.config))
        for optimizer in self.optimizers:
            # How torch's GradScaler tells a fused optimizer; ours knows it too.
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
            optimizer.step()
        if self.accelerator.scaler is not None:
            # Once for all optimizers: it forgets which of them are unscaled already.
            self.accelerator.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return self.config.learning_rate * factor

    def _overflowed(self, *, finite: bool, loss: float) -> bool:
        scaler = self.accelerator.scaler
        # A scale of 1 can hide nothing: what overflows there is the gradient itself.
        return (
            scaler is not None
            and not finite
            and math.isfinite(loss)
            and float(scaler.get_scale()) >= 1.0
        )
