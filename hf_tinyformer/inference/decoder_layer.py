"""One block of a TinyFormer, arranged to read one token of each text at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
"""Takes `(batch, inputs)` and returns `(batch, outputs)`."""


def _make_product(layers: Sequence[nn.Linear]) -> Product:
    """Make one product out of several with the same input."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    weight = torch.cat(weights)
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    return lambda states: functional.linear(states, weight, bias)


def make_norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Make a function of a norm: one operation, with no module around it.

    Args:
        module: A TinyFormer's norm, or the identity that stands for none.
    """
    if isinstance(module, nn.Identity):
        return lambda hidden_states: hidden_states
    weight, eps = module.weight, module.eps
    if (bias := getattr(module, "bias", None)) is not None:
        return lambda states: functional.layer_norm(states, weight.shape, weight, bias, eps)
    return lambda states: functional.rms_norm(states, weight.shape, weight, eps)


Slot = int | Tensor
"""Place of the new tokens in the cache. As a tensor, `(1,)`, nothing's shape depends on it."""


def _remember(cache: Tensor, new: Tensor, slot: Slot) -> Tensor:
    """Write the new tokens' keys or values, and return those to look at."""
    if isinstance(slot, int):
        cache[:, :, slot] = new
        return cache[:, :, : slot + 1]
    return cache.index_copy_(2, slot, new[:, :, None])


class DecoderLayer:
    """One block for one new token in each row."""

    def __init__(self, block: Any, cache: Tensor) -> None:
        """Take the weights.

        Args:
            block: A TinyFormerBlock.
            cache: Keys and values, shape `(2, batch, num_key_value_heads, room, head_dim)`.
        """
        attention, mlp = block.self_attn, block.mlp
        config = attention.config
        self.is_pre_norm = block.is_pre_norm
        self.attention_norm = make_norm(block.attention_norm)
        self.mlp_norm = make_norm(block.mlp_norm)
        self.project = _make_product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.norm_weight: Tensor | None = None
        if config.use_qk_norm:
            queries, keys = self.heads
            rows = [attention.q_norm.weight] * queries + [attention.k_norm.weight] * keys
            self.norm_weight, self.norm_eps = torch.stack(rows), attention.q_norm.eps
        self.mix = _make_product([attention.o_proj])
        inputs = [mlp.gate_proj, mlp.up_proj] if hasattr(mlp, "gate_proj") else [mlp.up_proj]
        self.widen = _make_product(inputs)
        self.activation = getattr(mlp, "activation", None)
        self.narrow = _make_product([mlp.down_proj])
        self.keys, self.values = cache

    def __call__(
        self,
        hidden_states: Tensor,
        slot: Slot,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Transform the new tokens' vectors, `(batch, hidden_size)`, and remember their keys."""
        normed = self.attention_norm(hidden_states) if self.is_pre_norm else hidden_states
        hidden_states = hidden_states + self.mix(self._attend(normed, slot, angles, mask))
        if not self.is_pre_norm:
            hidden_states = self.attention_norm(hidden_states)
        normed = self.mlp_norm(hidden_states) if self.is_pre_norm else hidden_states
        hidden_states = hidden_states + self.narrow(self._activate(self.widen(normed)))
        return hidden_states if self.is_pre_norm else self.mlp_norm(hidden_states)

    def _attend(
        self,
        states: Tensor,
        slot: Slot,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        queries, keys = self.heads
        projected = self.project(states).view(len(states), queries + 2 * keys, self.head_dim)
        turning, value = projected.split([queries + keys, keys], dim=1)
        if self.norm_weight is not None:
            turning = functional.rms_norm(turning, (self.head_dim,), eps=self.norm_eps)
            turning = turning * self.norm_weight
        if angles is not None:
            cos, sin = angles  # the first half of the sines is negative, as `rotate_half` makes it
            turned = torch.roll(turning, self.head_dim // 2, dims=-1)
            turning = torch.addcmul(turning * cos, turned, sin)
        query, key = turning.split([queries, keys], dim=1)
        attended = functional.scaled_dot_product_attention(
            query[:, :, None],
            _remember(self.keys, key, slot),
            _remember(self.values, value, slot),
            attn_mask=mask,
            scale=self.scaling,
            enable_gqa=queries != keys,
        )
        return attended.reshape(len(states), -1)

    def _activate(self, widened: Tensor) -> Tensor:
        if self.activation is not None:
            activated: Tensor = self.activation(widened)
            return activated
        gate, up = widened.chunk(2, dim=-1)
        return functional.silu(gate) * up
