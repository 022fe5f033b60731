"""Guess how a text goes on, and read the guess together with its newest token.

A text that repeats itself (code, quotations, a small model that walks in circles) goes on as it did
after the same tokens before (Saxena 2023, "Prompt Lookup Decoding"). The weights are read once for
the newest token and the guess, which is what a step's time goes into. Nothing but time depends on
the guess: each token is still chosen from the model's own logits, and a guess that comes true only
means that the logits after it are there already.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tinyformer.inference.decoder_kernel import DecoderKernel

MATCHED = 8
"""Tokens that must have been there before, in this order: a word or two of characters."""

WORTH = 2
"""Steps that a guess must save: reading it takes as long as two steps or a little more."""

LONGEST_PAUSE = 64
"""Steps without a guess, after guesses that were not worth it."""


class PromptLookup:
    """Takes the steps of one text."""

    def __init__(self, one: DecoderKernel, several: DecoderKernel, room: int) -> None:
        """Begin with no text.

        Args:
            one: Reads one token.
            several: Reads some tokens of the same text, with the same cache.
            room: Tokens for which the cache has room.
        """
        self._one, self._several = one, several
        self._room = room
        self._text: list[int] = []
        self._continued_at: dict[tuple[int, ...], int] = {}
        self._place: int | None = None
        self._guess: list[int] = []
        self._logits = torch.empty(0)
        self._came_true = 0
        self._pause = self._rest = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Append what is read elsewhere: the prompt."""
        for token in tokens:
            self._text.append(token)
            if len(self._text) >= MATCHED:
                matched = tuple(self._text[-MATCHED:])
                self._place = self._continued_at.get(matched)
                self._continued_at[matched] = len(self._text)

    def compute(self, token: int, slot: int, padding: Tensor | None) -> Tensor:
        """Compute the logits after one more token.

        Args:
            token: Follows all that was added or computed before.
            slot: Where it stands in the cache.
            padding: Slots before the text begins, `(1,)`.

        Returns:
            Shape `(1, vocab_size)`, good until the next step.
        """
        self.add([token])
        if self._came_true < len(self._guess) and self._guess[self._came_true] == token:
            self._came_true += 1
            return self._logits[self._came_true : self._came_true + 1]
        self._judge()
        self._guess, self._came_true = self._make_guess(slot), 0
        tokens = torch.tensor([token, *self._guess])
        if not self._guess:
            return self._one.compute(tokens, slot, padding)
        self._logits = self._several.compute(tokens, slot, padding)
        return self._logits[:1]

    def _judge(self) -> None:
        if not self._guess:
            self._rest = max(0, self._rest - 1)
        elif self._came_true >= WORTH:
            self._pause = self._rest = 0
        else:
            self._pause = self._rest = min(2 * self._pause + 1, LONGEST_PAUSE)

    def _make_guess(self, slot: int) -> list[int]:
        if self._place is None or self._rest:
            return []
        most = min(self._several.most_tokens, self._room - slot) - 1
        return self._text[self._place : self._place + max(0, most)]
