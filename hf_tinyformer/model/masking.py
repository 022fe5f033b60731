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
"""Who sees whom: positions and masks, made once per forward, above the layers.

transformers lets three things go silently wrong here, which this file puts right or refuses: a
left-padded batch without `position_ids`, packed rows with a cache or in a bidirectional model, and
a score bias under an attention function that drops it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.utils.import_utils import is_tracing

from .configuration_tinyformer import TinyFormerConfig

SCORE_BIAS_ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention functions that take a score bias. The rest would drop it without a word."""

HIDDEN_SCORE = torch.finfo(torch.float16).min
"""Score of a key that is not seen. Finite in every dtype, and far enough below any real score:
softmax over a row of minus infinity is NaN, and autocast turns float32's minimum into one."""


def positions_of(
    inputs_embeds: Tensor, attention_mask: Any, past_key_values: Cache | None
) -> Tensor:
    """Count each token's position from the first real token of its row.

    Args:
        inputs_embeds: Shape `(batch, sequence, hidden_size)`.
        attention_mask: If of shape `(batch, past + sequence)`, 1 marks a real token. Any other
            form says nothing about padding.
        past_key_values: Gives the number of tokens before these.

    Returns:
        Positions of shape `(batch or 1, sequence)`. Padding before the first token has position 0.
    """
    sequence = inputs_embeds.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        positions = attention_mask.long().cumsum(dim=-1) - 1
        return positions.clamp(min=0)[:, -sequence:].to(inputs_embeds.device)
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    return torch.arange(sequence, device=inputs_embeds.device)[None] + past


def build_attention_mask(
    config: TinyFormerConfig,
    inputs_embeds: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    position_ids: Tensor | None,
) -> Any:
    """Build the mask in the form the attention function takes.

    Rows without padding in which `position_ids` start again hold several documents, which are kept
    apart. Nothing is built where the function's own causal mask is enough.

    Args:
        config: Gives the attention function and `is_causal`.
        inputs_embeds: Shape `(batch, sequence, hidden_size)`.
        attention_mask: `None`, a padding mask of shape `(batch, past + sequence)`, or a finished
            mask of four dimensions, which is returned as it is.
        past_key_values: Keys and values of earlier tokens.
        position_ids: As the caller gave them, or `None`.

    Returns:
        `None`, a Boolean or additive mask of shape `(batch, 1, query, key)`, or a `BlockMask`.

    Raises:
        ValueError: If documents start again in a row that continues a cache.
    """
    if position_ids is not None and _says_nothing(attention_mask):
        attention_mask = None
    is_packable = attention_mask is None and position_ids is not None
    if is_packable and past_key_values is not None:
        if _is_empty_and_growing(past_key_values):
            # transformers looks for documents only where there is no cache. This one is empty, so
            # the mask is the same as without it.
            past_key_values = None
        else:
            _refuse_documents(position_ids)
            is_packable = False

    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    # CODEPATH: language models are causal; masked language models and encoders are not.
    if config.is_causal:
        return create_causal_mask(**arguments, position_ids=position_ids)
    documents = find_packed_sequence_indices(position_ids) if is_packable else None
    if documents is not None:
        documents = documents.expand(inputs_embeds.shape[0], -1)
        arguments["and_mask_function"] = packed_sequence_mask_function(documents)
    return create_bidirectional_mask(**arguments)


def _says_nothing(attention_mask: Any) -> bool:
    """Tell whether a mask only repeats that all tokens are real, as collators like to.

    Args:
        attention_mask: In any form.

    Returns:
        Whether it is a padding mask without padding. A compiled model cannot tell.
    """
    is_padding_mask = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
    return is_padding_mask and not is_tracing(attention_mask) and bool(attention_mask.all())


def _is_empty_and_growing(past_key_values: Cache) -> bool:
    """Tell whether a cache holds nothing and gives back exactly what is put into it.

    Args:
        past_key_values: Any cache. A static one is as long as its room, so it is not meant.

    Returns:
        Whether a mask made without this cache fits it.
    """
    return not past_key_values.is_compileable and past_key_values.get_seq_length() == 0


def _refuse_documents(position_ids: Tensor) -> None:
    """Refuse rows whose documents cannot be kept apart.

    Args:
        position_ids: Shape `(batch or 1, sequence)`.

    Raises:
        ValueError: If a row's positions do not rise by one.
    """
    if position_ids.shape[1] == 1 or is_tracing(position_ids):
        return
    if (position_ids.diff(dim=-1) != 1).any():
        raise ValueError(
            "position_ids start again within a row, but past_key_values is a static cache or holds "
            "tokens already, so the documents cannot be kept apart. Pass use_cache=False, or an "
            "attention_mask if this is padding."
        )


def check_score_bias(config: TinyFormerConfig, kwargs: dict[str, Any]) -> None:
    """Refuse to add a bias to scores where it would be dropped or land on other keys.

    Args:
        config: Gives the attention function.
        kwargs: What the caller hands to the attention function; `cache` means pages.

    Raises:
        ValueError: If the attention function takes no bias, or keys lie in pages.
    """
    scheme = config.position_embedding_type
    if config._attn_implementation not in SCORE_BIAS_ATTENTION:
        raise ValueError(
            f"attn_implementation is {config._attn_implementation!r}, but position_embedding_type "
            f"{scheme!r} adds a bias to the scores, which only {', '.join(SCORE_BIAS_ATTENTION)} "
            "take. Choose one of them."
        )
    if kwargs.get("cache") is not None:
        raise ValueError(
            f"position_embedding_type is {scheme!r}, but a paged cache does not keep keys in "
            "order, so the distances to them are lost. Use generate instead of generate_batch."
        )


def distances_of(
    inputs_embeds: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    position_ids: Tensor | None,
) -> Tensor:
    """Measure how far each key stands before each query.

    Between slots, their places in the row, not between `position_ids`: the two agree within a
    document, wherever padding stands, and slots are also known for keys that lie in a cache. But a
    finished mask may read a row as a tree, whose branches stand side by side; there positions count
    if they are given.

    Args:
        inputs_embeds: Shape `(batch, sequence, hidden_size)`.
        attention_mask: As the caller gave it.
        past_key_values: Gives the room for keys and the number of tokens before these.
        position_ids: As the caller gave them, or `None`.

    Returns:
        Distances of shape `(batch or 1, query, key)`, negative for a key that stands after.
    """
    sequence, device = inputs_embeds.shape[1], inputs_embeds.device
    is_first = past_key_values is None or _is_empty_and_growing(past_key_values)
    is_finished = isinstance(attention_mask, Tensor) and attention_mask.dim() == 4
    if is_first and is_finished and position_ids is not None:
        return position_ids[:, :, None] - position_ids[:, None, :]
    if past_key_values is None:
        slots = torch.arange(sequence, device=device)
        return (slots[:, None] - slots)[None]
    num_keys, first_key = past_key_values.get_mask_sizes(sequence, 0)
    query_slots = torch.arange(sequence, device=device) + past_key_values.get_seq_length()
    key_slots = torch.arange(num_keys, device=device) + first_key
    return (query_slots[:, None] - key_slots)[None]


def merge_score_bias(
    score_bias: Tensor, attention_mask: Any, distance: Tensor, *, is_causal: bool
) -> tuple[Any, Tensor | None]:
    """Add a score bias to the mask, once for all layers.

    Args:
        score_bias: Shape `(batch or 1, num_attention_heads, query, key)`.
        attention_mask: What `build_attention_mask` gave.
        distance: What `distances_of` gave, shape `(batch or 1, query, key)`.
        is_causal: Whether `None` as a mask stands for the causal mask.

    Returns:
        The mask with the bias in it and `None`; for flex attention, whose mask is no tensor, the
        mask as it was and the bias.
    """
    if isinstance(attention_mask, BlockMask):
        # Flex attention reads the bias at [batch, head, query, key], with no broadcasting.
        return attention_mask, score_bias.expand(attention_mask.shape[0], -1, -1, -1)
    if attention_mask is None:
        if not is_causal:
            return score_bias, None
        attention_mask = distance[:, None] >= 0
    if attention_mask.dtype == torch.bool:
        return torch.where(attention_mask, score_bias, HIDDEN_SCORE), None
    return (score_bias + attention_mask).clamp(min=HIDDEN_SCORE), None
