"""What an optimizer step costs each of n processes, computed before anything runs.

P counts parameters, M those that Muon moves, T those outside the blocks (token table, head, last
norm), K those of the largest block, G those of Muon's largest group of equal shapes; w is the bytes
of a weight as it is computed with: 4, or 2 in bf16.

    memory, in bytes           DDP                      FSDP2
    weights                    4 P                      4 P / n
    gradients                  4 P                      4 P / n, and 4 P while they accumulate
    optimizer state            8 P - 4 M                (8 P - 4 M) / n
    weights to compute with    2 P of matrices, bf16    w (T + 2 K)
    gradient of the head       w of each of its weights (with FSDP2 the logits are activations)
    activations                what autograd keeps of one micro-batch, counted on shapes alone
    Muon's update              20 G (bf16: 14 G)        4 G / n + 16 G (10 G)

    traffic, sent by each      DDP                      FSDP2, with s = (n - 1) / n
    all-reduce gradients       2 (n - 1) / n 4 P
    all-gather weights                                  s w (2 P - T) for each micro-batch
    reduce-scatter gradients                            s 4 P
    all-gather for Muon                                 s 4 M

For AdamW alone M and G are 0. A ring sends that much (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms"); for shards see Rajbhandari et al. 2020, "ZeRO", section 7. FSDP2 gathers a
block in the forward pass and again in the backward pass, the next one while it computes one; what
is outside the blocks is gathered once and kept. Left out are the libraries' own buffers, what an
allocator holds without using it, and tensors that live inside one operation.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_tinyformer.inference.sizes import format_bytes
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.loss import LossModel
from hf_tinyformer.training.optimizer import hidden_matrix_names, rows_of_a_head
from hf_tinyformer.training.step import split_batch

Sharing = Literal["ddp", "fsdp2"]
FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, named as in the module's formulas."""

    parameters: int
    outside_blocks: int
    largest_block: int
    gathered_twice: int
    """2 P - T; an untied token table is gathered twice too."""

    muon: int
    muon_group: int


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps between the forward and the backward pass."""

    per_row: int
    """For each row of a micro-batch."""

    fixed: int
    """Whatever the micro-batch: weights cast to bf16 and, under DDP, the head's gradient."""


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Bytes that one process holds, and sends, in an optimizer step."""

    weights: int
    gradients: int
    optimizer: int
    compute_weights: int
    activations: int
    muon_update: int
    all_reduce: int
    all_gather: int
    reduce_scatter: int

    @property
    def memory(self) -> int:
        """The most that is held at once: activations are gone when the optimizers work."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.compute_weights + self.activations, self.muon_update)

    @property
    def traffic(self) -> int:
        """Everything sent."""
        return self.all_reduce + self.all_gather + self.reduce_scatter

    def rows(self) -> list[tuple[str, str]]:
        """Lay the figures out for a table: what, and how much with its unit."""
        figures = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer,
            "weights to compute with": self.compute_weights,
            "activations": self.activations,
            "Muon's update": self.muon_update,
            "memory in all": self.memory,
            "sent in all-reduce": self.all_reduce,
            "sent in all-gather": self.all_gather,
            "sent in reduce-scatter": self.reduce_scatter,
            "sent in all": self.traffic,
        }
        return [(name, format_bytes(count)) for name, count in figures.items()]


@contextmanager
def _shapes_only(config: Any) -> Iterator[Any]:
    """Yield a model whose tensors have shapes, types and a device, but no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        yield AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def count_parameters(config: Any, *, optimizer: str) -> Counts:
    """Count an architecture's parameters as the formulas need them.

    Args:
        config: A TinyFormerConfig, or that of any decoder that transformers knows.
        optimizer: `muon` or `adamw`.
    """
    with _shapes_only(config) as model:
        total = sum(p.numel() for p in model.parameters())
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        blocks = [
            sum(p.numel() for p in block.parameters()) for blocks in lists for block in blocks
        ]
        outside = total - sum(blocks)
        names = hidden_matrix_names(model) if optimizer == "muon" else set()
        table = model.get_input_embeddings().weight
        tied = table is model.get_output_embeddings().weight
        heads = rows_of_a_head(model)
        groups: Counter[tuple[int, ...]] = Counter()
        for name, parameter in model.named_parameters():
            if name in names:
                rows, columns = parameter.shape
                shape = sorted([heads.get(name, rows), columns])
                groups[(name in heads, *shape)] += parameter.numel()
    kept = outside if tied else outside - table.numel()
    return Counts(
        parameters=total,
        outside_blocks=outside,
        largest_block=max(blocks),
        gathered_twice=2 * total - kept,
        muon=sum(groups.values()),
        muon_group=max(groups.values(), default=0),
    )


def _kept_bytes(config: Any, rows: int, length: int, *, bf16: bool, sharing: Sharing) -> int:
    kept: dict[int, int] = {}
    alive = []
    with _shapes_only(config) as model:
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            alive.append(storage)  # its number is its own only as long as it lives
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        input_ids = torch.zeros((rows, length), dtype=torch.long)
        precision = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with precision, hooks:
            inputs = {"input_ids": input_ids, "use_cache": False}
            if sharing == "ddp" and isinstance(model, TinyFormerForCausalLM):
                count = torch.ones(())
                LossModel(model)(shift_labels=input_ids, num_items_in_batch=count, **inputs)
            else:
                model(labels=input_ids, **inputs)
    return sum(kept.values())


def measure_activations(config: Any, *, length: int, bf16: bool, sharing: Sharing) -> Activations:
    """Count what the backward pass needs, by a forward pass on shapes without memory.

    Args:
        config: A TinyFormerConfig, or that of any decoder that transformers knows.
        length: Tokens in a row.
        bf16: Compute in bf16 where `torch.autocast` does.
        sharing: How the processes share the work. DDP takes the loss some rows at a time, FSDP2
            from all logits.
    """
    one, two = (_kept_bytes(config, rows, length, bf16=bf16, sharing=sharing) for rows in (1, 2))
    return Activations(per_row=two - one, fixed=2 * one - two)


def step_costs(
    counts: Counts,
    activations: Activations,
    *,
    sharing: Sharing,
    processes: int,
    micro_batch_size: int,
    num_micro_batches: int,
    bf16: bool,
) -> StepCosts:
    """Compute what a step costs each process, by the formulas of this module.

    Args:
        counts: From `count_parameters`.
        activations: From `measure_activations`, of the same architecture and sharing.
        sharing: How the processes share the work.
        processes: How many there are.
        micro_batch_size: Rows that one takes at once.
        num_micro_batches: Micro-batches of a step on each process.
        bf16: Whether bf16 is computed in.
    """
    weight = BFLOAT16 if bf16 else FLOAT32
    state = FLOAT32 * (2 * counts.parameters - counts.muon)
    group = counts.muon_group * (FLOAT32 + 3 * weight)
    rows = activations.per_row * micro_batch_size
    if sharing == "ddp":
        sent = 2 * FLOAT32 * counts.parameters * (processes - 1) // processes
        return StepCosts(
            weights=FLOAT32 * counts.parameters,
            gradients=FLOAT32 * counts.parameters,
            optimizer=state,
            compute_weights=activations.fixed,
            activations=rows,
            muon_update=FLOAT32 * counts.muon_group + group,
            all_reduce=sent,
            all_gather=0,
            reduce_scatter=0,
        )
    accumulated = FLOAT32 * counts.parameters if num_micro_batches > 1 else 0
    gathered = weight * counts.gathered_twice * num_micro_batches + FLOAT32 * counts.muon
    return StepCosts(
        weights=FLOAT32 * counts.parameters // processes,
        gradients=FLOAT32 * counts.parameters // processes + accumulated,
        optimizer=state // processes,
        compute_weights=weight * (counts.outside_blocks + 2 * counts.largest_block),
        activations=rows,
        muon_update=FLOAT32 * counts.muon_group // processes + group,
        all_reduce=0,
        all_gather=gathered * (processes - 1) // processes,
        reduce_scatter=FLOAT32 * counts.parameters * (processes - 1) // processes,
    )


def compare_sharing(
    config: Any, train: TrainConfig, *, length: int, processes: int, bf16: bool
) -> tuple[StepCosts, StepCosts]:
    """Compute what a run's steps cost each process under DDP and under FSDP2.

    Args:
        config: The architecture.
        train: The run's settings.
        length: Tokens in a row.
        processes: How many there would be.
        bf16: Whether bf16 is computed in.

    Returns:
        DDP's costs and FSDP2's.

    Raises:
        ConfigError: If the batch cannot be divided among so many processes.
    """
    micro_batch_size, num_micro_batches = split_batch(train, processes)
    counts = count_parameters(config, optimizer=train.optimizer)

    def costs(sharing: Sharing) -> StepCosts:
        return step_costs(
            counts,
            measure_activations(config, length=length, bf16=bf16, sharing=sharing),
            sharing=sharing,
            processes=processes,
            micro_batch_size=micro_batch_size,
            num_micro_batches=num_micro_batches,
            bf16=bf16,
        )

    return costs("ddp"), costs("fsdp2")
