"""The training loss without the logits: rows of tokens are scored a few at a time.

For a vocabulary of some ten thousand tokens the logits of a batch, their copy in float32 and their
gradient are larger than all the rest of a training step. Here the gradient of some rows is taken
as soon as their logits are known, and both are forgotten (the order of work is that of Hsu et al.
2024, "Liger Kernel", section 3.2, in plain torch).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM

LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits that exist at a time, by the kind of device (others as a CPU): 16 MiB in float32, and 512
MiB on a GPU, where every further part reads and writes the weights' whole gradient once more, and
makes the compiler's work longer."""

IGNORED = -100
"""Label of a place that predicts nothing."""


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Say how many tokens are scored at a time, at least 1."""
    most = LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cpu"])
    return max(1, most // vocab_size)


class _TokenLoss(torch.autograd.Function):
    """Sum of the tokens' cross entropies; both gradients are computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Score rows.

        Args:
            ctx: Keeps the gradients.
            hidden_states: Shape `(rows, hidden_size)`, in the dtype to compute products in.
            weight: Of the output head, `(vocab_size, hidden_size)`, same dtype.
            labels: Shape `(rows,)`.
        """
        rows = rows_at_once(weight.shape[0], weight.device)
        total = hidden_states.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden_states)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for begin in range(0, len(labels), rows):
            part, targets = hidden_states[begin : begin + rows], labels[begin : begin + rows]
            is_counted = (targets != IGNORED)[:, None]
            places = targets.clamp(min=0)[:, None]
            scores = (part @ weight.t()).float().log_softmax(dim=-1)
            total -= (scores.gather(1, places) * is_counted).sum()
            # d loss / d logits is the probability, less one at the label.
            change = scores.exp_().scatter_add_(1, places, -torch.ones_like(scores[:, :1]))
            change = change.mul_(is_counted).to(part.dtype)
            gradient[begin : begin + rows] = change @ weight
            weight_gradient += change.t() @ part
        ctx.save_for_backward(gradient, weight_gradient.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients that are there already.

        Args:
            ctx: Holds them.
            factor: Gradient of the sum.
        """
        gradient, weight_gradient = ctx.saved_tensors
        factor = factor.to(gradient.dtype)
        return gradient * factor, weight_gradient * factor, None


def token_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross entropies of all tokens, without holding their logits.

    Products are in autocast's dtype if it is on, all else in float32, as in the model's own loss.

    Args:
        hidden_states: Shape `(batch, sequence, hidden_size)`.
        weight: Of the output head, `(vocab_size, hidden_size)`.
        labels: For each place the token that follows, -100 where none counts;
            `(batch, sequence)`.
    """
    device = hidden_states.device.type
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _TokenLoss.apply(  # type: ignore[no-untyped-call]
            hidden_states.flatten(0, 1).to(dtype), weight.to(dtype), labels.flatten()
        )
    return loss


class LossModel(nn.Module):
    """A causal language model that gives its loss and nothing else."""

    def __init__(self, model: TinyFormerForCausalLM) -> None:
        """Take the model; its parameters stay its own.

        Args:
            model: One whose output head is a plain layer.
        """
        super().__init__()
        self.model = model

    def forward(
        self, *, shift_labels: Tensor, num_items_in_batch: Tensor, **inputs: Any
    ) -> CausalLMOutputWithPast:
        """Compute the loss of a batch.

        Args:
            shift_labels: For each place the token that follows; `(batch, sequence)`.
            num_items_in_batch: Tokens that the sum is divided by.
            **inputs: For the model.

        Returns:
            An output with `loss` alone.
        """
        hidden_states = self.model.model(**inputs).last_hidden_state
        loss = token_loss(hidden_states, self.model.lm_head.weight, shift_labels)
        return CausalLMOutputWithPast(loss=loss / num_items_in_batch)
