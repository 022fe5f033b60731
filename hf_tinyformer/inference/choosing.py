"""How the next token is taken from the model's scores."""

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]
"""Takes the logits of each row, `(batch, vocab_size)`, and returns its next token, `(batch,)`."""


def build_chooser(temperature: float, top_k: int, top_p: float) -> Choose:
    """Say how a token is taken from logits.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together reach this probability.

    Returns:
        A function that draws from torch's global generator unless `temperature` is 0.
    """
    if temperature == 0:
        return lambda logits: logits.argmax(dim=-1)

    def sample_all(logits: Tensor) -> Tensor:
        chances = (logits.float() / temperature).softmax(dim=-1)
        return torch.multinomial(chances, 1)[:, 0]

    def sample(logits: Tensor) -> Tensor:
        kept = min(top_k, logits.shape[-1]) or logits.shape[-1]
        scores, tokens = (logits.float() / temperature).topk(kept)  # the likeliest first
        chances = scores.softmax(dim=-1)
        if top_p < 1:
            reached_before = chances.cumsum(dim=-1) - chances
            chances = chances.masked_fill(reached_before >= top_p, 0.0)
        return tokens.gather(-1, torch.multinomial(chances, 1))[:, 0]

    # Among all tokens nothing has to be put in order, which for a large vocabulary takes long.
    return sample_all if top_k == 0 and top_p == 1 else sample
