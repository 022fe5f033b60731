"""How the next token is taken from the model's scores."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from hf_tinyformer.errors import ArtifactError

Choose = Callable[[Tensor], Tensor]
"""Takes the logits of each row, `(batch, vocab_size)`, and returns its next token, `(batch,)`: of a
row whose logits are nan or infinite, `NO_TOKEN`."""

NO_TOKEN = -1
"""Stands for an error. To raise one, a chooser would have to wait for the GPU at every token; it is
raised by `refuse_no_token`, once the tokens are on the CPU anyway."""

COLDEST = 1e-30
"""A lower temperature counts as this one, by which float32 can still divide."""


def refuse_no_token(tokens: Collection[int]) -> None:
    """Raise the error that a chooser could not.

    Args:
        tokens: The next token of each row.

    Raises:
        ArtifactError: If one is `NO_TOKEN`.
    """
    if NO_TOKEN in tokens:
        raise ArtifactError(
            "the model's largest logit is nan or infinite, but a token is chosen by finite ones: "
            "its training has diverged. Take an earlier checkpoint, or train with a lower "
            "train.learning_rate."
        )


def _draw(chances: Tensor) -> Tensor:
    # As torch.multinomial draws one, but for its checks: one that fails on CUDA makes the GPU
    # useless to the whole process.
    return (chances / torch.empty_like(chances).exponential_()).argmax(dim=-1)


def _mark(tokens: Tensor, peak: Tensor) -> Tensor:
    # What is nan or infinite is nan less itself; `isfinite` would take twice as long.
    return tokens.masked_fill((peak - peak).isnan(), NO_TOKEN)


def build_chooser(temperature: float, top_k: int, top_p: float) -> Choose:
    """Say how a token is taken from logits.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together reach this probability.

    Returns:
        A function that draws from torch's global generator unless `temperature` is 0.
    """
    heat = max(temperature, COLDEST)

    def take_likeliest(logits: Tensor) -> Tensor:
        peak, tokens = logits.max(dim=-1)
        return _mark(tokens, peak)

    # The largest logit is subtracted first, or the quotients might be larger than float32 holds.
    def sample_all(logits: Tensor) -> Tensor:
        scores = logits.float()
        peak = scores.amax(dim=-1, keepdim=True)
        tokens = _draw(((scores - peak) / heat).softmax(dim=-1))
        return _mark(tokens, peak[:, 0])

    def sample(logits: Tensor) -> Tensor:
        kept = min(top_k, logits.shape[-1]) or logits.shape[-1]
        scores, candidates = logits.float().topk(kept)  # the likeliest first
        peak = scores[:, :1]
        chances = ((scores - peak) / heat).softmax(dim=-1)
        if top_p < 1:
            reached_before = chances.cumsum(dim=-1) - chances
            chances = chances.masked_fill(reached_before >= top_p, 0.0)
        tokens = candidates.gather(-1, _draw(chances)[:, None])[:, 0]
        return _mark(tokens, peak[:, 0])

    if temperature == 0:
        return take_likeliest
    # Among all tokens nothing has to be put in order, which for a large vocabulary takes long.
    return sample_all if top_k == 0 and top_p == 1 else sample
