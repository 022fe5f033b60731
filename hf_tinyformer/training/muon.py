"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon), for the update, the Nesterov momentum and the quintic
coefficients; decoupled weight decay as in Liu et al. 2025, "Muon is Scalable for LLM Training",
equation 3; heads by themselves as in Kimi K3 (2026, arXiv:2607.24653), section 2.5. An update of an
(m, n) matrix is scaled by sqrt(max(1, m/n)), Jordan's choice, under which one learning rate (0.02)
serves widths from tens to thousands; Liu's 0.2 sqrt(max(m, n)) aims at AdamW's rates instead.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# The cubic-free start is steep on purpose: small singular values reach 1 in five steps, and all end
# between about 0.7 and 1.2, which trains as well as exactly 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def orthogonalize(matrices: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace the singular values of each matrix by numbers near 1 (Newton-Schulz iteration).

    Args:
        matrices: A batch of matrices, `(batch, rows, columns)` with rows <= columns: the products
            are rows x rows, so the wide form is the cheap one.
        dtype: What to compute in; bfloat16 is enough where it is fast.

    Returns:
        Tensor of the same shape and of `dtype`: about U V^T of each matrix's U S V^T.
    """
    a, b, c = QUINTIC
    result = matrices.to(dtype)
    # The Frobenius norm bounds the largest singular value, so the iteration starts inside [0, 1].
    result = result / result.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(result, result.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.baddbmm(result, polynomial, result, beta=a)
    return result


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _add_update(parameter: Tensor, update: Tensor, scale: float) -> None:
    update = update.to(parameter.dtype)
    if isinstance(parameter, DTensor):
        # Every process computed the same update, so each keeps its part without being sent one.
        update = distribute_tensor(
            update, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.add_(update, alpha=scale)


class Muon(torch.optim.Optimizer):
    """Muon for two-dimensional parameters; all matrices of one shape are updated in one batch.

    A group may set `block_rows`: each so many rows of its matrices are then a matrix by themselves,
    as a head's rows of a projection are. Small matrices are also the cheaper ones.

    State by parameter: `momentum_buffer`, of the parameter's shape. As in torch's fused optimizers,
    a step changes nothing while the attribute `found_inf` is a tensor of 1.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        """Take the parameters.

        Args:
            params: Matrices, or groups of them.
            lr: Learning rate.
            momentum: Memory of the gradient; Nesterov's form is always used.
            weight_decay: Decoupled decay: each step multiplies weights by 1 - lr * weight_decay.
            dtype: What updates are made orthogonal in; bfloat16 is enough where it is fast.
            compiled: Compile the iteration with torch.compile, once for each shape of matrices.

        Raises:
            ValueError: If a parameter has not two dimensions.
        """
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "block_rows": None})
        self._dtype = dtype
        self._orthogonalize = (
            torch.compile(orthogonalize, dynamic=False) if compiled else orthogonalize
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"A parameter of shape {tuple(parameter.shape)} was given to Muon, but it "
                        "takes matrices only. Give it to AdamW."
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: Not supported; there for the signature of `torch.optim.Optimizer`.
        """
        assert closure is None, "Muon never re-evaluates the loss"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        device = parameters[0].device
        found = self.found_inf
        skip = (torch.zeros((), device=device) if found is None else found.to(device)).bool()
        if group["weight_decay"]:
            kept = 1.0 - group["lr"] * group["weight_decay"]
            torch._foreach_mul_(parameters, torch.where(skip, 1.0, kept))
        for batch in self._batches_by_shape(parameters, group["block_rows"]):
            self._step_batch(group, batch, skip)

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    @staticmethod
    def _batches_by_shape(
        parameters: Sequence[Tensor], block_rows: int | None
    ) -> list[list[Tensor]]:
        # A tall matrix is orthogonalized transposed, so it shares a batch with its wide sibling.
        batches = defaultdict(list)
        for parameter in parameters:
            rows, columns = parameter.shape
            batches[(*sorted([block_rows or rows, columns]), parameter.device)].append(parameter)
        return list(batches.values())

    def _step_batch(self, group: dict[str, Any], parameters: list[Tensor], skip: Tensor) -> None:
        momentum = group["momentum"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [self._momentum_buffer(p) for p in parameters]
        # Chosen, not multiplied: what is not finite stays so when multiplied by zero.
        pairs = zip(buffers, gradients, strict=True)
        gradients = [torch.where(skip, buffer, gradient) for buffer, gradient in pairs]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        # Nesterov: look ahead from the gradient towards the fresh momentum.
        whole = map(_whole, torch._foreach_lerp(gradients, buffers, momentum))
        blocks = [d.unflatten(0, (-1, group["block_rows"] or d.shape[0])) for d in whole]
        wide = torch.cat([b.mT if b.shape[1] > b.shape[2] else b for b in blocks])
        wide *= ~skip
        updates = self._orthogonalize(wide, dtype=self._dtype).split([len(b) for b in blocks])
        for parameter, block, update in zip(parameters, blocks, updates, strict=True):
            _, rows, columns = block.shape
            oriented = update.mT if rows > columns else update
            scale = -group["lr"] * math.sqrt(max(1.0, rows / columns))
            _add_update(parameter, oriented.reshape(parameter.shape), scale)
