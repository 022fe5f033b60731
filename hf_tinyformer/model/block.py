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
"""One layer: attention, then feed-forward, each wrapped in a residual sum and a norm.

Sources: post-LN, Vaswani et al. 2017, section 3.1; pre-LN, Radford et al. 2019, section 2.3, and
Xiong et al. 2020, who show why it trains without a long warmup.
"""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import TinyFormerAttention
from .configuration_tinyformer import TinyFormerConfig
from .feed_forward import MLPS
from .normalization import NORMS


class TinyFormerBlock(GradientCheckpointingLayer):
    """Attention and feed-forward on a residual stream.

    Pre-LN:  `h = h + attention(norm(h))`, then `h = h + mlp(norm(h))`.
    Post-LN: `h = norm(h + attention(h))`, then `h = norm(h + mlp(h))`.

    Shapes: `(batch, sequence, hidden_size)` in and out.
    """

    def __init__(self, config: TinyFormerConfig, layer_idx: int) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_placement == "pre"
        self.self_attn = TinyFormerAttention(config, layer_idx)
        self.mlp = MLPS[config.mlp_type](config)
        self.attention_norm = NORMS[config.norm_type](config.hidden_size, config.norm_eps)
        self.mlp_norm = NORMS[config.norm_type](config.hidden_size, config.norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Transform the residual stream.

        What may carry a gradient is passed by position: reentrant gradient checkpointing loses the
        gradient of the rest.

        Args:
            hidden_states: Shape `(batch, sequence, hidden_size)`.
            attention_mask: See `TinyFormerAttention.forward`, as for the rest.
            position_bias: A score bias for flex attention.
            position_embeddings: Cosines and sines for rotary positions.
            past_key_values: Keys and values of earlier tokens; extended in place.
            **kwargs: Passed on to the attention function.

        Returns:
            Same shape as `hidden_states`.
        """
        residual = hidden_states
        # CODEPATH: norm_placement is "pre" or "post", fixed when the model is made.
        if self.is_pre_norm:
            hidden_states = self.attention_norm(hidden_states)
        hidden_states, _ = self.self_attn(
            hidden_states,
            attention_mask,
            position_bias,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = residual + self.dropout(hidden_states)
        if not self.is_pre_norm:
            hidden_states = self.attention_norm(hidden_states)

        residual = hidden_states
        if self.is_pre_norm:
            hidden_states = self.mlp_norm(hidden_states)
        hidden_states = residual + self.dropout(self.mlp(hidden_states))
        if not self.is_pre_norm:
            hidden_states = self.mlp_norm(hidden_states)
        return hidden_states
