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
"""Position schemes: how a token's place in the sequence enters the model.

Attention alone sees a set, not a sequence. Each scheme here breaks that symmetry in another place:

    sinusoidal, learned   added to the token embeddings, once (see `embeddings.py`)
    rope                  turns query and key in every layer
    alibi, relative       added to the attention scores in every layer
    none                  nothing: the causal mask alone tells a token how much stands before it

Sources: sinusoidal, Vaswani et al. 2017, section 3.5; rotary, Su et al. 2021, section 3.2; ALiBi,
Press et al. 2022, section 3; relative buckets, Raffel et al. 2020, section 2.1; none, Haviv et al.
2022.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_tinyformer import TinyFormerConfig


def sinusoidal_positions(position_ids: Tensor, hidden_size: int) -> Tensor:
    """Turn positions into waves: column `2i` is `sin(p / 10000^(2i/d))`, column `2i+1` its cosine.

    The paper interleaves sine and cosine columns; tensor2tensor puts all sines first. This is the
    paper's order.

    Args:
        position_ids: Positions, any shape.
        hidden_size: Columns `d`. Even, since each frequency fills two.

    Returns:
        Float32 tensor of shape `(*position_ids.shape, hidden_size)`.
    """
    column = torch.arange(0, hidden_size, 2, dtype=torch.float32, device=position_ids.device)
    frequency = torch.exp(column * (-math.log(10_000.0) / hidden_size))
    angle = position_ids[..., None].float() * frequency  # (..., hidden_size / 2), radians
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(start_dim=-2)


def rotate_half(states: Tensor) -> Tensor:
    """Turn every pair `(a, b)` by a right angle into `(-b, a)`.

    Column `i` is paired with column `i + head_dim / 2`, as in Llama and Qwen3. The paper pairs
    neighbours; the two differ by an order of columns, which training does not notice.

    Args:
        states: Shape `(..., head_dim)`.

    Returns:
        Same shape.
    """
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each pair of a query and a key by its position's angle.

    The dot product of a turned query and a turned key depends on the distance of their positions
    only, since turning by `m` and by `n` differ by a turn of `m - n`.

    Args:
        query: Shape `(batch, num_attention_heads, sequence, head_dim)`.
        key: Shape `(batch, num_key_value_heads, sequence, head_dim)`.
        cos: Cosines of the angles, shape `(batch or 1, sequence, head_dim)`.
        sin: Sines, same shape.

    Returns:
        Query and key, turned, in their own shapes.
    """
    cos, sin = cos[:, None], sin[:, None]  # one angle for all heads
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


class TinyFormerRotaryEmbedding(nn.Module):
    """Angles for rotary positions: pair `i` at position `p` turns by `p * theta^(-2i/head_dim)`.

    Made once per forward and shared by all layers. Besides the plain form it knows the stretched
    ones of `rope_parameters["rope_type"]` (linear, dynamic, yarn, llama3, longrope).

    transformers restores `inv_freq` after loading by this class's name and attributes.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: TinyFormerConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type: str = config.rope_parameters["rope_type"]
        compute: Callable[..., tuple[Tensor, float]] = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config, device)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: TinyFormerConfig, device: torch.device | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, float]:
        """Compute the angle by which each pair turns per position.

        Args:
            config: Gives `head_dim` and `rope_parameters["rope_theta"]`.
            device: Where to make them.

        Returns:
            Radians per position, shape `(head_dim / 2,)`, and the scale of cosines and sines, 1.
        """
        column = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
        return 1.0 / config.rope_parameters["rope_theta"] ** (column / config.head_dim), 1.0

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "TinyFormerRotaryEmbedding":
        """Follow the model to a device but not to half precision.

        In bfloat16 the frequencies keep three digits, and positions in the thousands turn by wrong
        angles. Seen as integers the buffers are moved and not converted.
        """
        super()._apply(  # type: ignore[no-untyped-call]
            lambda buffer: fn(buffer.view(torch.int32)).view(torch.float32), recurse
        )
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the cosines and sines for these positions.

        Args:
            hidden_states: Its dtype is the result's.
            position_ids: Shape `(batch or 1, sequence)`.

        Returns:
            Cosines and sines, each of shape `(batch or 1, sequence, head_dim)`.
        """
        angle = position_ids[..., None].float() * self.inv_freq
        angle = torch.cat((angle, angle), dim=-1)  # both halves of a head turn alike
        cos = angle.cos() * self.attention_scaling
        sin = angle.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Choose how fast each head forgets: `2^(-8/n), 2^(-16/n), ..., 2^-8` for `n` heads.

    For a number of heads that is no power of two, the slopes of the next lower power, then every
    other one of the next higher power, as in the authors' code.

    Args:
        num_heads: Number of query heads.
        device: Where to make them.

    Returns:
        Float32 slopes of shape `(num_heads,)`.
    """
    lower = 2 ** (num_heads.bit_length() - 1)
    exponent = torch.arange(1, lower + 1, device=device) * (8.0 / lower)
    between = (2 * torch.arange(num_heads - lower, device=device) + 1) * (4.0 / lower)
    return 2.0 ** -torch.cat((exponent, between))


def relative_buckets(
    distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Tensor:
    """Sort distances into buckets: near ones exactly, far ones ever more coarsely.

    With `n` buckets for a direction, distances below `n / 2` have one each; from there to
    `max_distance` they grow logarithmically; beyond it all share the last.

    Args:
        distance: Query position minus key position, any shape. Positive: the key stands before.
        bidirectional: Keys after the query get the upper half of the buckets. Otherwise they share
            bucket 0 with the query itself, since the causal mask hides them.
        num_buckets: Buckets in all.
        max_distance: Distance from which on all share a bucket.

    Returns:
        Bucket numbers, same shape, int64.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = (distance < 0) * num_buckets
        distance = distance.abs()
    else:
        distance = distance.clamp(min=0)
    num_exact = num_buckets // 2
    # The clamp keeps the logarithm finite; those distances take the exact branch below.
    growth = torch.log(distance.clamp(min=1).float() / num_exact) / math.log(
        max_distance / num_exact
    )
    coarse = num_exact + (growth * (num_buckets - num_exact)).long()
    coarse = coarse.clamp(max=num_buckets - 1)
    return offset + torch.where(distance < num_exact, distance, coarse)


class TinyFormerAlibiBias(nn.Module):
    """ALiBi: a penalty on each score that grows with distance, `-slope[head] * |query - key|`."""

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads

    def forward(self, distance: Tensor, **_: bool) -> Tensor:
        """Compute the penalties.

        Args:
            distance: Query position minus key position, shape `(batch or 1, query, key)`.
            _: `bidirectional`, as the relative scheme reads it: here both directions are alike.

        Returns:
            Float32 bias of shape `(batch or 1, num_attention_heads, query, key)`.
        """
        slopes = alibi_slopes(self.num_heads, distance.device)
        return -slopes[:, None, None] * distance.abs()[:, None]


class TinyFormerRelativeBias(nn.Module):
    """T5's relative positions: each head learns one number per bucket of distances.

    As in T5, one table serves all layers.
    """

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.bucket_bias = nn.Embedding(self.num_buckets, config.num_attention_heads)

    def forward(self, distance: Tensor, *, bidirectional: bool) -> Tensor:
        """Look up the bias of each distance.

        Args:
            distance: Query position minus key position, shape `(batch or 1, query, key)`.
            bidirectional: Whether keys after the query are seen and have buckets of their own.

        Returns:
            Bias of shape `(batch or 1, num_attention_heads, query, key)`.
        """
        buckets = relative_buckets(
            distance,
            bidirectional=bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return self.bucket_bias(buckets).movedim(-1, 1)  # heads before query and key


SCORE_BIASES = {"alibi": TinyFormerAlibiBias, "relative": TinyFormerRelativeBias}
