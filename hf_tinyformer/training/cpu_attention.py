"""Which attention trains fastest in bfloat16 on a CPU.

torch's fused attention is made for long rows. In bfloat16 its backward pass takes four times as
long as in float32 for rows of 64, and for rows of 256 the plain products of the eager form, which
run at the full rate of matrix products, beat it by a tenth of a training step (docs/benchmarks.md).
"""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

IN_FLOAT32 = "sdpa_in_float32"
"""Fused attention, in float32 whatever autocast says."""

SHORT_ROW = 128
"""Tokens up to which float32 is the fastest."""

LONG_ROW = 512
"""Tokens from which on holding every weight of attention, as the eager form does, costs too much
memory."""


def _attend_in_float32(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        attended, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    # Where no autocast follows (FSDP2), the output layer takes what its own weights are in.
    return attended.to(query.dtype), None


AttentionInterface.register(IN_FLOAT32, _attend_in_float32)
AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)


def choose_attention(current: str, *, has_score_bias: bool, sequence_length: int) -> str:
    """Name the attention function to train with on a CPU in bfloat16.

    Args:
        current: The model's own. Only `sdpa`, the default, is ever changed.
        has_score_bias: Whether the position scheme adds to the scores, so that every element of
            them is touched in any case.
        sequence_length: Tokens in a row.

    Returns:
        A name for `set_attn_implementation`; all of them compute the same.
    """
    if current != "sdpa" or sequence_length > LONG_ROW:
        return current
    if has_score_bias or sequence_length > SHORT_ROW:
        return "eager"
    return IN_FLOAT32
