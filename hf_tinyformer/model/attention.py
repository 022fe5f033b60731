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
"""Attention: every token gathers, from the tokens it may see, what it asks for.

Sources: scaled dot-product and multi-head attention, Vaswani et al. 2017, section 3.2; grouped key
and value heads, Ainslie et al. 2023, section 2.2; query-key norm, Henry et al. 2020 and, with
RMSNorm on each head, Qwen3 (Yang et al. 2025, section 2).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_tinyformer import TinyFormerConfig
from .normalization import TinyFormerRMSNorm
from .positions import apply_rotary


def repeat_key_value(states: Tensor, num_groups: int) -> Tensor:
    """Hand each key or value head to the whole group of query heads that shares it.

    Args:
        states: Shape `(batch, num_key_value_heads, sequence, head_dim)`.
        num_groups: Query heads per key and value head.

    Returns:
        Shape `(batch, num_key_value_heads * num_groups, sequence, head_dim)`.
    """
    return states if num_groups == 1 else states.repeat_interleave(num_groups, dim=1)


def eager_attention_forward(
    module: "TinyFormerAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend, line by line as in the paper: `softmax(query @ key^T * scaling + mask) @ value`.

    The same numbers as the fused kernels, plus the weights, which those never hold in full.

    Args:
        module: The attention layer, for its training flag and number of groups.
        query: Shape `(batch, num_attention_heads, query, head_dim)`.
        key: Shape `(batch, num_key_value_heads, key, head_dim)`.
        value: Same shape as `key`.
        attention_mask: Added to the scores, broadcast to `(batch, heads, query, key)`: 0 where a
            key is seen, a large negative number where not, plus any score bias.
        scaling: `1 / sqrt(head_dim)`. Without it scores grow with the width and softmax saturates.
        dropout: Chance to drop a weight.

    Returns:
        Output of shape `(batch, query, num_attention_heads, head_dim)` and attention weights of
        shape `(batch, num_attention_heads, query, key)`.
    """
    key = repeat_key_value(key, module.num_key_value_groups)
    value = repeat_key_value(value, module.num_key_value_groups)

    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    attention_weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = nn.functional.dropout(attention_weights, dropout, module.training)
    return (attention_weights @ value).transpose(1, 2), attention_weights


class TinyFormerAttention(nn.Module):
    """Multi-head attention with grouped key and value heads.

    Each head works in `head_dim` dimensions with projections of its own; their outputs stand side
    by side and `o_proj` mixes them. Shapes: `(batch, sequence, hidden_size)` in and out.
    """

    def __init__(self, config: TinyFormerConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim: int = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        # CODEPATH: on by default, as in Qwen3; off as in Llama.
        if config.use_qk_norm:
            # On each head alone, whatever `norm_type` is: it bounds the scores, nothing else.
            self.q_norm = TinyFormerRMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = TinyFormerRMSNorm(self.head_dim, config.norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: Shape `(batch, sequence, hidden_size)`.
            attention_mask: Which keys each query sees, in the form its attention function takes;
                `None` where that function's own causal mask is enough.
            position_bias: A score bias for flex attention, which cannot take it in the mask.
            position_embeddings: Cosines and sines for rotary positions.
            past_key_values: Keys and values of earlier tokens; extended in place.
            **kwargs: Passed on to the attention function.

        Returns:
            Output of the input's shape, and the attention weights of shape
            `(batch, num_attention_heads, query, key)` if the attention function gives them.
        """
        batch_and_sequence = hidden_states.shape[:-1]
        per_head = (*batch_and_sequence, -1, self.head_dim)

        query = self.q_norm(self.q_proj(hidden_states).view(per_head)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(per_head)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        if position_embeddings is not None:
            query, key = apply_rotary(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        if position_bias is not None:
            kwargs["position_bias"] = position_bias
        attention_function: Callable[..., tuple[Tensor, Tensor | None]] = (
            ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        )
        output, attention_weights = attention_function(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = self.o_proj(output.reshape(*batch_and_sequence, -1))
        return output, attention_weights
