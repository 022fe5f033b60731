"""Talk with a model that was tuned to conversations.

How turns are written down is the chat template's business, which travels with the tokenizer. The
model reads the whole conversation each time; when that no longer fits, the oldest turns are left
out, since a turn cut in half is nothing that the model has seen in training.
"""

from typing import Any

from hf_tinyformer.errors import ConfigError, DataError
from hf_tinyformer.inference.generation import generate_text

Message = dict[str, str]
"""`role`, which is system, user or assistant, and `content`."""

_MARK = "zzzturnzzz"


def find_end_of_turn(tokenizer: Any) -> int | None:
    """Find the token that the template puts behind what the assistant says, such as `<|im_end|>`.

    Args:
        tokenizer: A tokenizer with a chat template.

    Returns:
        Its id, or `None` if the turn ends in no special token.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    # Special by its entry, since all_special_ids has only the named ones, such as </s>.
    entry = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return int(ids[0]) if entry is not None and entry.special else None


class Conversation:
    """A conversation and the model that takes part in it.

    Args:
        model: A causal language model tuned to the tokenizer's chat template.
        tokenizer: Its tokenizer.
        system: What the model is told before the first turn, if the template has a place for it.

    Raises:
        ConfigError: If the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, *, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template, but a conversation is written down by one. "
                "Leave --chat out, or tune the model to conversations (docs/recipes/chat.md)."
            )
        self._model = model
        self._tokenizer = tokenizer
        end = find_end_of_turn(tokenizer)
        self._stop_token_ids = [] if end is None else [end]
        self._opening: list[Message] = []
        if system:
            self._opening = [{"role": "system", "content": system}]
        self.turns: list[Message] = []
        """What was said, without the system's words."""

    def forget(self) -> None:
        """Begin anew."""
        self.turns = []

    def _encode(self, turns: list[Message]) -> list[int]:
        from jinja2 import TemplateError

        try:
            encoded = self._tokenizer.apply_chat_template(
                self._opening + turns, add_generation_prompt=True, return_dict=True
            )
        except TemplateError as error:
            raise ConfigError(
                f"the chat template refuses this conversation: {error}. Change what is said."
            ) from None
        return list(encoded["input_ids"])

    def _fit(self, turns: list[Message], max_new_tokens: int) -> tuple[list[int], int]:
        """Leave out the oldest turns until there is room for an answer.

        Returns:
            The conversation's tokens, and how many new ones there is room for. The last new token
            is never read back, hence the + 1.
        """
        context = getattr(self._model.config, "max_position_embeddings", None)
        ids = self._encode(turns)
        if context is None:
            return ids, max_new_tokens
        room = min(max_new_tokens, max(1, context // 2))
        while len(ids) + room > context + 1 and len(turns) > 1:
            turns = turns[2:]  # a question with its answer
            ids = self._encode(turns)
        if len(ids) > context:
            raise DataError(
                f"the message makes {len(ids)} tokens, but the model reads {context} at once. "
                "Say it in fewer words."
            )
        return ids, min(max_new_tokens, context + 1 - len(ids))

    def reply(self, text: str, *, max_new_tokens: int = 128, **settings: Any) -> str:
        """Say something and get an answer. Both become part of the conversation.

        Args:
            text: What the user says.
            max_new_tokens: Most tokens to answer with; fewer where the context ends.
            **settings: `temperature`, `top_k`, `top_p`, `seed`, `streamer` of `generate_text`.

        Returns:
            The answer.

        Raises:
            ConfigError: If a setting is out of its range, or the template refuses the conversation.
            DataError: If the text alone is longer than what the model reads at once.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        ids, room = self._fit(turns, max_new_tokens)
        answer = generate_text(
            self._model,
            self._tokenizer,
            ids,
            max_new_tokens=room,
            stop_token_ids=self._stop_token_ids,
            **settings,
        ).strip()
        self.turns = [*turns, {"role": "assistant", "content": answer}]
        return answer
