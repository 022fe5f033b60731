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
"""What enters the first block: token vectors plus, in two of the schemes, position vectors.

The token table itself is `model.embed_tokens`, where transformers, FSDP and PEFT look for it. Token
vectors are not scaled by `sqrt(hidden_size)` as in Vaswani et al. 2017, section 3.4: with tied
weights the factor cannot be folded away, and no GPT-2 or Llama has it.
"""

import torch
from torch import Tensor, nn
from transformers.utils.import_utils import is_tracing

from .configuration_tinyformer import TinyFormerConfig
from .positions import sinusoidal_positions


class TinyFormerLearnedPositions(nn.Embedding):
    """One learned vector per position, `max_position_embeddings` of them (GPT-2)."""

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__(config.max_position_embeddings, config.hidden_size)

    def forward(self, position_ids: Tensor) -> Tensor:
        """Look up the vectors.

        Args:
            position_ids: Shape `(batch or 1, sequence)`.

        Returns:
            Shape `(batch or 1, sequence, hidden_size)`.

        Raises:
            ValueError: If a position lies outside the table. A compiled model, which cannot look
                at numbers, raises RuntimeError instead.
        """
        inside = ((position_ids >= 0) & (position_ids < self.num_embeddings)).all()
        message = (
            f"position_ids leave the table of learned positions, 0 to {self.num_embeddings - 1} "
            f"(max_position_embeddings is {self.num_embeddings}). Shorten the input or generate "
            "fewer tokens."
        )
        if is_tracing(position_ids):
            torch._assert_async(inside, message)
        elif not inside:
            raise ValueError(message)
        return super().forward(position_ids)


class TinyFormerSinusoidalPositions(nn.Module):
    """Fixed waves, computed where needed: no table, hence no last position."""

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size

    def forward(self, position_ids: Tensor) -> Tensor:
        """Compute the vectors.

        Args:
            position_ids: Shape `(batch or 1, sequence)`.

        Returns:
            Float32 tensor of shape `(batch or 1, sequence, hidden_size)`.
        """
        return sinusoidal_positions(position_ids, self.hidden_size)


class TinyFormerEmbeddings(nn.Module):
    """Sum of token and position vectors, then dropout.

    Vaswani et al. 2017, sections 3.5 and 5.4.
    """

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.positions: nn.Module | None = None
        # CODEPATH: two schemes add a vector for the position; the others enter in attention.
        if config.position_embedding_type == "learned":
            self.positions = TinyFormerLearnedPositions(config)
        # CODEPATH: the fixed table of Vaswani et al. 2017.
        elif config.position_embedding_type == "sinusoidal":
            self.positions = TinyFormerSinusoidalPositions(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Add the positions.

        Args:
            inputs_embeds: Token vectors, shape `(batch, sequence, hidden_size)`.
            position_ids: Shape `(batch or 1, sequence)`.

        Returns:
            Shape `(batch, sequence, hidden_size)`.
        """
        if self.positions is not None:
            inputs_embeds = inputs_embeds + self.positions(position_ids).to(inputs_embeds.dtype)
        return self.dropout(inputs_embeds)
