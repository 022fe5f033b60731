"""How well a model predicts tokens it has not seen: loss, perplexity, bits per byte.

Exact means: every token of the split counts once, each token's loss is taken from float32 logits,
and the losses are added in float64. So a figure does not depend on the batch size, on the order of
the batches, or on how many processes shared the work.

Bits per byte divides by the bytes of the text rather than by tokens, so that models with different
tokenizers compare (Gao et al. 2020, The Pile, section 3.1).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from hf_tinyformer.errors import DataError

LOGITS_AT_ONCE = 2**24
"""Logits turned to float32 at once: 64 MiB, whatever the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one model on one text."""

    loss: float
    """Mean negative log-likelihood of a token, in nats."""

    perplexity: float
    """exp(loss): the number of equally likely tokens that would be as hard to guess."""

    bits_per_byte: float
    """Bits that the model needs for a byte of the text, summed over tokens, per byte."""

    num_tokens: int
    """Tokens predicted."""

    num_bytes: int
    """Bytes of the text, in UTF-8."""

    hidden_bytes: int = 0
    """Those of them behind unknown tokens. The model was never asked to spell them, so with any,
    `bits_per_byte` is too low to be compared with a tokenizer's that hides none."""


def summarize_losses(
    loss_sum: float, num_tokens: int, num_bytes: int, hidden_bytes: int = 0
) -> Evaluation:
    """Turn a sum of token losses into figures.

    Args:
        loss_sum: Sum of the tokens' negative log-likelihoods, in nats.
        num_tokens: Tokens in that sum.
        num_bytes: Bytes of the text that the tokens spell.
        hidden_bytes: Bytes of it that unknown tokens stand for.

    Raises:
        DataError: If there was no token to predict, or no byte.
    """
    if num_tokens < 1 or num_bytes < 1:
        raise DataError(
            f"the text to evaluate has {num_tokens} tokens to predict and {num_bytes} bytes, but "
            "at least 1 of each is needed. Give a longer text."
        )
    loss = loss_sum / num_tokens
    return Evaluation(
        loss=loss,
        # exp overflows a float past 709; a loss of NaN stays NaN.
        perplexity=math.inf if loss > 709 else math.exp(loss),
        bits_per_byte=loss_sum / math.log(2) / num_bytes,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        hidden_bytes=hidden_bytes,
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off, and put the model's own mode back afterwards."""
    was_training = model.training
    model.eval()
    # FSDP2 gathers weights into memory that training writes to again, which it may not if they are
    # tensors of inference mode.
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    try:
        with torch.no_grad() if is_sharded else torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each label.

    Args:
        logits: `(..., vocab_size)`, any float type; taken to float32 piece by piece, since all of
            it at once would be the largest tensor of the evaluation.
        labels: `(...)`, int64; -100 where nothing is predicted.

    Returns:
        Float32 losses in nats, of the shape of `labels`; 0 where nothing is predicted.
    """
    vocab_size = logits.shape[-1]
    rows, targets = logits.reshape(-1, vocab_size), labels.reshape(-1)
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    step = max(1, LOGITS_AT_ONCE // vocab_size)
    for start in range(0, len(targets), step):
        piece = slice(start, start + step)
        losses[piece] = cross_entropy(rows[piece].float(), targets[piece], reduction="none")
    return losses.reshape(labels.shape)


def sum_losses(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device | str,
    *,
    autocast: Callable[[], AbstractContextManager[object]] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[float, int]:
    """Add up the losses of all tokens, so that several processes can add their sums.

    Args:
        model: A causal language model; its training mode is the same afterwards.
        batches: Each with `input_ids` `(batch, sequence)`, `shift_labels` of the same shape (the
            next token, or -100) and, where documents are packed, `position_ids`.
        device: Where the model lies.
        autocast: Makes the context of the forward pass, such as `accelerator.autocast`. Without
            one the weights' own precision holds.
        on_progress: Told after each batch that 1 more is done.

    Returns:
        The sum of negative log-likelihoods in nats, and the number of tokens in it.
    """
    loss_sum = 0.0
    num_tokens = 0
    with evaluation_mode(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items()}
            labels = inputs.pop("shift_labels")
            with autocast() if autocast else nullcontext():
                # Packed documents are masked apart only while no cache is made.
                logits = model(**inputs, use_cache=False).logits
            # On the CPU, since not every accelerator has float64.
            loss_sum += token_losses(logits, labels).cpu().double().sum().item()
            num_tokens += int((batch["shift_labels"] != -100).sum())
            if on_progress:
                on_progress(1)
    return loss_sum, num_tokens


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    num_bytes: int,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[object]] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate a model on prepared batches, such as those of a validation split.

    Args:
        model: A causal language model; its training mode is the same afterwards.
        batches: As for `sum_losses`.
        num_bytes: Bytes of the text that the batches spell.
        device: Where the model lies.
        autocast: As for `sum_losses`.
        on_progress: Told after each batch that 1 more is done.

    Raises:
        DataError: If the batches hold nothing to predict.
    """
    loss_sum, num_tokens = sum_losses(
        model, batches, device, autocast=autocast, on_progress=on_progress
    )
    return summarize_losses(loss_sum, num_tokens, num_bytes)
