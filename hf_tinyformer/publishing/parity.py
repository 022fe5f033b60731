"""What an export proves itself with: texts, the numbers of both sides, and the rule for "same".

Two programs add the same products in another order, so their logits agree to a few units in the
last place of the largest ones, not to a fixed number of decimals. A tolerance is therefore a
fraction of the largest logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from hf_tinyformer.errors import ExportError
from hf_tinyformer.inference.evaluation import evaluation_mode
from hf_tinyformer.inference.generation import without_defaults

SAMPLE_TEXTS = (
    "Once upon a time there was a small house by the sea.",
    "모든 국민은 법 앞에 평등하다. 누구든지 성별·종교 또는 사회적 신분에 의하여",
    "def read_lines(path):\n    with open(path) as stream:\n        return list(stream)\n",
    "In 1989, 12,345 people didn't know it; by 2024 everyone's phone did!",
    "  세종대왕은 1443년에 훈민정음을 만들었다.\n\n 그 뜻은 \U0001f98a “바른 소리”이다.",
    "The",
)
"""English, Korean, code, numbers, blanks, signs; long and short."""


RANDOM_TOKENS = 256
"""Length of the row of random tokens, if the context is as long."""


@dataclass
class Parity:
    """How far the two sides may be apart, and how far they have been."""

    tolerance: float
    """Largest difference that is allowed between two logits."""

    largest_difference: float = 0.0
    """Largest difference seen."""

    positions: int = 0
    """Places of which all logits were compared."""

    def compare(self, ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
        """Compare the logits of some places.

        Args:
            ours: The checkpoint's, shape `(positions, vocab_size)`.
            theirs: The export's, same shape.
            what: Where they come from, for the message.

        Raises:
            ExportError: If a logit differs by more than the tolerance, or is not a number.
        """
        if ours.shape != theirs.shape:
            raise ExportError(
                f"{what} gives logits of shape {theirs.shape}, but the checkpoint {ours.shape}. "
                "Nothing was written; please report this with the checkpoint's config.json."
            )
        difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
        if not difference <= self.tolerance:  # also true of NaN
            raise ExportError(
                f"{what} gives logits that differ by {difference:.3g}, but at most "
                f"{self.tolerance:.3g} is rounding. Nothing was written; please report this with "
                "the checkpoint's config.json."
            )
        self.largest_difference = max(self.largest_difference, difference)
        self.positions += len(ours)


def probe_rows(model: Any, tokenizer: Any) -> list[list[int]]:
    """Choose what is compared: the sample texts, and random tokens over the whole vocabulary.

    Args:
        model: Gives the longest row.
        tokenizer: Its tokenizer.

    Returns:
        Token ids, at least one a row; the random ones come last.
    """
    longest = model.config.max_position_embeddings
    rows = [tokenizer(text, verbose=False)["input_ids"][:longest] for text in SAMPLE_TEXTS]
    generator = torch.Generator().manual_seed(0)
    size = (min(RANDOM_TOKENS, longest),)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator)
    return [*(row for row in rows if row), tokens.tolist()]


def compute_logits(model: Any, row: Sequence[int]) -> np.ndarray:
    """Compute the logits of every place of one row.

    Args:
        model: Any causal language model.
        row: Token ids.

    Returns:
        Float32, shape `(len(row), vocab_size)`.
    """
    input_ids = torch.tensor([list(row)], device=model.device)
    with evaluation_mode(model):
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0]
    return logits.float().cpu().numpy()


def allow_fraction(logits: Sequence[np.ndarray], fraction: float) -> float:
    """Turn a fraction of the largest logit, or of 1 if all are smaller, into a tolerance."""
    return fraction * max(1.0, *(float(np.abs(rows).max()) for rows in logits))


def generate_greedily(model: Any, row: Sequence[int], max_new_tokens: int) -> list[int]:
    """Continue a row with the likeliest token each time, by transformers' own `generate`.

    Args:
        model: Any causal language model. Of its generation_config only the special tokens count.
        row: Token ids of the prompt.
        max_new_tokens: Tokens to add; fewer if the text ends.

    Returns:
        The tokens added.
    """
    input_ids = torch.tensor([list(row)], device=model.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
    )
    with evaluation_mode(model), without_defaults(model):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=settings,
        )
    return list(output[0, len(row) :].tolist())
