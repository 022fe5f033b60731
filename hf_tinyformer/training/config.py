"""Settings of a training run."""

import math
from dataclasses import dataclass
from typing import Literal

from hf_tinyformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How weights move, and what is written on the way. A step is an optimizer step."""

    global_batch_size: int = 32
    """Sequences in a step, over all processes. The same command gives the same run on one device
    or many."""

    micro_batch_size: int | None = None
    """Sequences that one device takes at once; the rest is accumulated. Unset: on a GPU all of its
    share, on a CPU so many that memory stays small."""

    max_steps: int = 1_000
    """Steps in the whole run, warm-up included."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices inside the blocks, AdamW for the rest. `adamw`: for all."""

    learning_rate: float = 3e-3
    """Peak rate of AdamW."""

    muon_learning_rate: float = 0.02
    """Peak rate of Muon."""

    schedule: Literal["warmup_stable_decay", "cosine"] = "warmup_stable_decay"
    """Shape of both rates over the steps."""

    warmup_steps: int = 20
    """Steps of linear rise from zero. 0 starts at the peak."""

    decay_fraction: float = 0.4
    """Share of the run, at its end, in which `warmup_stable_decay` falls linearly."""

    min_learning_rate_ratio: float = 0.0
    """Where the rate ends, as a share of its peak."""

    weight_decay: float = 0.1
    """Decoupled decay of matrices (Loshchilov and Hutter 2019); norms and biases have none."""

    adam_beta1: float = 0.9
    """AdamW's memory of the gradient."""

    adam_beta2: float = 0.95
    """AdamW's memory of the squared gradient."""

    adam_epsilon: float = 1e-8
    """AdamW's guard against division by zero."""

    muon_momentum: float = 0.95
    """Muon's Nesterov momentum, once it has risen."""

    muon_momentum_warmup_steps: int = 300
    """Steps over which Muon's momentum rises from 0.7. 0 begins with `muon_momentum`."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm. 0 leaves them as they are."""

    mixed_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on CUDA from compute capability 8.0 on and on CPUs with AMX or AVX512_BF16, else
    fp32. Weights stay float32."""

    compile: bool | None = None
    """Compile the model with torch.compile: slow to start, faster afterwards. Unset: where one
    process trains for so long that it pays off, and there is a C++ compiler."""

    activation_memory_budget: float | None = None
    """Share of the activations that a compiled run keeps; the rest is computed again. Unset: 0.4 on
    a CPU, all on a GPU. On a CPU `1` with a larger micro_batch_size may be a little faster."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    evaluate_every: int = 250
    """Steps between exact evaluations of the whole validation split. The last step has one too."""

    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better validation loss. Unset: never."""

    save_every_steps: int = 250
    """Steps between checkpoints. 0: not by steps. An evaluation that is the best so far, a stop
    and the end of the run save in any case."""

    save_every_minutes: float | None = 10.0
    """Minutes between checkpoints, besides those by steps. Unset: not by the clock."""

    keep_last: int = 2
    """Newest checkpoints kept; the best one is kept besides."""

    resume: str = "auto"
    """`auto`: go on from the newest whole checkpoint of this run, if any. `never`: begin again;
    older checkpoints are moved aside. A path: go on from that checkpoint."""

    final_weights: Literal["best", "last"] = "best"
    """Which weights become `final/`: those with the best validation loss, or the last."""

    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient is not finite before the run gives up. Such a step
    never reaches the weights."""

    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where metrics go besides metrics.jsonl and loss.png."""

    sample_prompt: str = ""
    """Text that the model continues at each evaluation."""

    sample_tokens: int = 64
    """Length of that continuation. 0: no sample."""

    def __post_init__(self) -> None:
        """Reject settings that cannot train, before any weight exists."""
        self._check_counts()
        self._check_rates()
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ConfigError(
                f"train.warmup_steps is {self.warmup_steps}, but it must lie between 0 and "
                f"train.max_steps ({self.max_steps}), or the rate never peaks. "
                "Lower warmup_steps or raise max_steps."
            )

    def _check_counts(self) -> None:
        least = {
            "global_batch_size": 1,
            "max_steps": 1,
            "evaluate_every": 1,
            "save_every_steps": 0,
            "keep_last": 1,
            "max_bad_steps": 1,
            "muon_momentum_warmup_steps": 0,
            "sample_tokens": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(
                    f"train.{name} is {getattr(self, name)}, but it must be at least {minimum}. "
                    "Raise it."
                )
        for name in ("micro_batch_size", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"train.{name} is {value}, but it must be at least 1. Raise it or leave it out."
                )
        if self.save_every_minutes is not None and not self.save_every_minutes > 0:
            raise ConfigError(
                f"train.save_every_minutes is {self.save_every_minutes}, but it must be more than "
                "0. Raise it, or set it to null to save by steps only."
            )

    def _check_rates(self) -> None:
        bounds = {
            "learning_rate": (0.0, math.inf),
            "muon_learning_rate": (0.0, math.inf),
            "decay_fraction": (0.0, 1.0),
            "min_learning_rate_ratio": (0.0, 1.0),
            "weight_decay": (0.0, math.inf),
            "adam_beta1": (0.0, 1.0),
            "adam_beta2": (0.0, 1.0),
            "adam_epsilon": (0.0, math.inf),
            "muon_momentum": (0.0, 1.0),
            "max_grad_norm": (0.0, math.inf),
            "activation_memory_budget": (0.0, 1.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(
                    f"train.{name} is {value}, but it must be a number from {low:g} to {high:g}. "
                    "Change it."
                )
        for name in ("adam_beta1", "adam_beta2", "muon_momentum"):
            if getattr(self, name) == 1:
                raise ConfigError(
                    f"train.{name} is {getattr(self, name)}, but it must be less than 1, or no "
                    "gradient is ever remembered. Lower it."
                )
