"""Make a model ready to train: saved memory, compilation, processes, optimizers."""

import os
import shutil
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.cpu_attention import choose_attention
from hf_tinyformer.training.loss import LossModel
from hf_tinyformer.training.optimizer import build_optimizers

WORTH_COMPILING = {"cpu": 1e14, "cuda": 1e16}
"""Floating point operations of a run from which on compiling is soon made up for: it takes half a
minute, and a run of so many takes minutes on a few cores, or on one GPU."""


KEPT_ON_CPU = 0.4
"""Share of the activations that a compiled run keeps on a CPU, if it is not told another
(docs/benchmarks.md)."""


def _enable_gradient_checkpointing(model: Any) -> None:
    # transformers 5.16 knows only the older name, 5.23 warns of it.
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": False})


def compiles(
    model: Any, config: TrainConfig, accelerator: Accelerator, *, sequence_length: int
) -> bool:
    """Say whether a run compiles its model: as `train.compile` says or, unset, where it pays off.

    A function of the run and the machine alone, so that a run that goes on does as it did before.

    Args:
        model: The bare model.
        config: The run's settings.
        accelerator: Device and processes.
        sequence_length: Tokens in a row.
    """
    if config.compile is not None:
        return config.compile
    worth = WORTH_COMPILING.get(accelerator.device.type)
    if worth is None or accelerator.num_processes > 1:
        return False
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return False
    tokens = config.max_steps * config.global_batch_size * sequence_length
    # Two operations forward and four backward for each parameter and token (Kaplan et al. 2020).
    return bool(6 * sum(p.numel() for p in model.parameters()) * tokens >= worth)


def _choose_attention(model: Any, accelerator: Accelerator, sequence_length: int) -> None:
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return
    if not isinstance(model, TinyFormerForCausalLM):
        return
    name = choose_attention(
        model.config._attn_implementation,
        has_score_bias=model.config.position_embedding_type in ("alibi", "relative"),
        sequence_length=sequence_length,
    )
    if name != model.config._attn_implementation:
        model.set_attn_implementation(name)


def prepare_model(
    model: Any, config: TrainConfig, accelerator: Accelerator, *, sequence_length: int
) -> tuple[Any, list[Optimizer]]:
    """Wrap a model for training and build its optimizers.

    Args:
        model: The bare model, with the weights to begin from. It moves to the device.
        config: The run's settings.
        accelerator: Device and processes.
        sequence_length: Tokens in a row.

    Returns:
        The model to call in training, and optimizers of the bare model's parameters.
    """
    if config.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    _choose_attention(model, accelerator, sequence_length)
    is_compiled = compiles(model, config, accelerator, sequence_length=sequence_length)
    if is_compiled:
        # Nobody asked for it then: where the compiler fails, training goes on without, and says so.
        torch._dynamo.config.suppress_errors = config.compile is None
        usual = KEPT_ON_CPU if accelerator.device.type == "cpu" else 1.0
        budget = config.activation_memory_budget
        torch._functorch.config.activation_memory_budget = usual if budget is None else budget
    called: Any = model
    if accelerator.distributed_type == DistributedType.FSDP:
        # FSDP2 swaps parameters for shards, in the optimizers too. It gathers those of a layer when
        # the layer is called: so the head has to be, and evaluations have to call what it wrapped.
        optimizers = build_optimizers(model, config, device=accelerator.device)
        called, *_ = accelerator.prepare(model, *optimizers)
        return torch.compile(called) if is_compiled else called, optimizers
    if isinstance(model, TinyFormerForCausalLM):
        called = LossModel(model)
    if is_compiled:
        called = torch.compile(called)
    # Buffers (position tables) are the same everywhere: DDP need not send them each step.
    buffers = [name for name, _ in called.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(called, buffers)
    # The optimizers stay our own: their rates are set by step, not by a wrapper.
    called = accelerator.prepare(called)
    return called, build_optimizers(model, config, device=accelerator.device, compiled=is_compiled)
