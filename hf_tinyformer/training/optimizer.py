"""Which optimizer moves which parameter.

Muon takes the matrices inside the blocks; AdamW (Loshchilov and Hutter 2019) takes embeddings,
output head, norms and biases, or everything. Only matrices decay: shrinking a norm's gain or a bias
changes the function without making it simpler.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.muon import Muon
from hf_tinyformer.training.precision import supports_bf16_matmul


def hidden_matrix_names(model: nn.Module) -> set[str]:
    """Name the parameters that Muon takes: 2-D, inside a block, not an embedding table.

    A block is anything under an `nn.ModuleList`, which is where every model keeps its layers.

    Args:
        model: Any module.

    Returns:
        Names as in `model.named_parameters()`.
    """
    names = set()
    for list_name, module_list in model.named_modules():
        if not isinstance(module_list, nn.ModuleList):
            continue
        for module_name, module in module_list.named_modules(prefix=list_name):
            if isinstance(module, nn.Embedding):
                continue
            for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
                if parameter.ndim == 2:
                    names.add(name)
    return names


def rows_of_a_head(model: nn.Module) -> dict[str, int]:
    """Name the projections whose rows belong to heads: to query, key and value, not to the output.

    The output projection mixes the heads, and training is worse if its columns are taken apart.

    Args:
        model: Any module; attention is what has a `head_dim` and projections named as in Llama.

    Returns:
        Names as in `model.named_parameters()`, and how many rows one head has.
    """
    return {
        f"{name}.{projection}.weight": module.head_dim
        for name, module in model.named_modules()
        for projection in ("q_proj", "k_proj", "v_proj")
        if hasattr(module, "head_dim") and isinstance(getattr(module, projection, None), nn.Linear)
    }


def _adamw(matrices: Sequence[Tensor], vectors: Sequence[Tensor], config: TrainConfig) -> Optimizer:
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def build_optimizers(
    model: nn.Module,
    config: TrainConfig,
    *,
    device: torch.device | None = None,
    compiled: bool = False,
) -> list[Optimizer]:
    """Share the trainable parameters out among optimizers.

    Each group keeps its peak rate under the key `peak_learning_rate`, see `set_learning_rates`.

    Args:
        model: The model. Tied parameters count once.
        config: The run's settings.
        device: Where steps are taken; `None` for where the parameters are. FSDP2 moves them later.
        compiled: Whether the run is. Muon then compiles too on CUDA, where what stands between its
            products counts; on a CPU they are all.

    Returns:
        `[Muon, AdamW]` or `[AdamW]`; an optimizer without parameters is left out.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for_muon = hidden_matrix_names(model) if config.optimizer == "muon" else set()
    head_rows = rows_of_a_head(model)
    muon_groups = defaultdict(list)
    for name, parameter in trainable.items():
        if name in for_muon:
            muon_groups[head_rows.get(name)].append(parameter)
    rest = [p for name, p in trainable.items() if name not in for_muon]
    optimizers: list[Optimizer] = []
    if muon_groups:
        device = device or next(iter(muon_groups.values()))[0].device
        is_fast = supports_bf16_matmul(device)
        precise = config.mixed_precision == "fp32" or not is_fast
        optimizers.append(
            Muon(
                [{"params": p, "block_rows": rows} for rows, p in muon_groups.items()],
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                weight_decay=config.weight_decay,
                dtype=torch.float32 if precise else torch.bfloat16,
                compiled=compiled and device.type == "cuda",
            )
        )
    if rest:
        matrices = [p for p in rest if p.ndim >= 2]
        vectors = [p for p in rest if p.ndim < 2]
        optimizers.append(_adamw(matrices, vectors, config))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_learning_rate"] = group["lr"]
    return optimizers


def set_momentum(optimizers: list[Optimizer], momentum: float) -> None:
    """Set Muon's momentum for the coming step.

    Args:
        optimizers: As `build_optimizers` returned them.
        momentum: From `muon_momentum`.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            for group in optimizer.param_groups:
                group["momentum"] = momentum


def set_learning_rates(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's rate for the coming step.

    Args:
        optimizers: As `build_optimizers` returned them.
        factor: Share of the peak, from `learning_rate_factor`.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * factor
