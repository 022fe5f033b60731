# Copyright 2026 The hf_tinyformer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Normalization: each token's vector is brought to a common scale, then scaled by learned weights.

Sources: LayerNorm, Ba et al. 2016, section 3; RMSNorm, Zhang and Sennrich 2019, section 3.
"""

import torch
from torch import Tensor, nn


class TinyFormerRMSNorm(nn.Module):
    """Divide by the root mean square: `weight * h / sqrt(mean(h^2) + eps)`.

    LayerNorm without the centring and without the bias. Shapes: `(..., size)` in and out.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize the last dimension.

        Args:
            hidden_states: Shape `(..., size)`.

        Returns:
            Same shape and dtype.
        """
        # Squares of half-precision numbers overflow or vanish, so the mean is taken in float32.
        precise = hidden_states.float()
        mean_square = precise.square().mean(dim=-1, keepdim=True)
        normalized = precise * torch.rsqrt(mean_square + self.eps)
        return self.weight * normalized.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Show size and epsilon when the model is printed."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class TinyFormerLayerNorm(nn.Module):
    """Centre and scale: `weight * (h - mean(h)) / sqrt(var(h) + eps) + bias`.

    The variance is the population's (divided by `size`, not `size - 1`). Shapes: `(..., size)` in
    and out.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize the last dimension.

        Args:
            hidden_states: Shape `(..., size)`.

        Returns:
            Same shape and dtype.
        """
        # One fused kernel of the formula above; it keeps its sums in float32 for half precision.
        return nn.functional.layer_norm(
            hidden_states, self.weight.shape, self.weight, self.bias, self.eps
        )

    def extra_repr(self) -> str:
        """Show size and epsilon when the model is printed."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


NORMS = {"rmsnorm": TinyFormerRMSNorm, "layernorm": TinyFormerLayerNorm}
