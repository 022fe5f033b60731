"""Make a model ready to train: saved memory, compilation, processes, optimizers."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.optimizer import build_optimizers


def _enable_gradient_checkpointing(model: Any) -> None:
    # transformers 5.16 knows only the older name, 5.23 warns of it.
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": False})


def prepare_model(
    model: Any, config: TrainConfig, accelerator: Accelerator
) -> tuple[Any, list[Optimizer]]:
    """Wrap a model for training and build its optimizers.

    Args:
        model: The bare model, with the weights to begin from. It moves to the device.
        config: The run's settings.
        accelerator: Device and processes.

    Returns:
        The model to call in training, and optimizers of the bare model's parameters.
    """
    if config.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    called: Any = torch.compile(model) if config.compile else model
    if accelerator.distributed_type == DistributedType.FSDP:
        # FSDP2 swaps parameters for shards, in the optimizers too.
        optimizers = build_optimizers(model, config)
        called, *_ = accelerator.prepare(called, *optimizers)
        return called, optimizers
    # Buffers (position tables) are the same everywhere: DDP need not send them each step.
    buffers = [name for name, _ in called.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(called, buffers)
    # The optimizers stay our own: their rates are set by step, not by a wrapper.
    called = accelerator.prepare(called)
    return called, build_optimizers(model, config)
