"""The settings under `tokenizer:` in a run's configuration."""

from dataclasses import dataclass, field
from typing import Literal

from hf_tinyformer.data.tokenization.chat_template import list_chat_tokens
from hf_tinyformer.data.tokenization.tokenizer_training import NUM_BYTES, list_special_tokens
from hf_tinyformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is cut into tokens."""

    kind: Literal["bpe", "jamo", "syllable", "word", "bytes"] = "bpe"
    """`bpe`: byte-level byte-pair encoding, lossless on every text. `jamo`: the same over the
    letters of Korean syllables, which come back composed. `syllable`: one token a character.
    `word`: one token a word between spaces, `<unk>` for words outside the vocabulary. `bytes`: one
    token a byte."""

    vocab_size: int = 4096
    """Tokens at most, special ones included. `bytes` has as many as there are."""

    train_bytes: int = 256_000_000
    """Bytes of text to learn from at most. Of a larger corpus, documents are chosen evenly."""

    path: str | None = None
    """Folder or Hub id of an existing tokenizer, used as it is instead of training one."""

    pattern: str = "gpt4"
    """Where `bpe` and `jamo` may not merge across: `gpt4`, `gpt2`, or a regular expression."""

    digits: int = 3
    """Digits that `gpt4` keeps together at most; 1 makes every digit a token of its own."""

    space_runs: bool = True
    """Let `gpt4` keep runs of spaces and line ends together, as in indented code."""

    byte_fallback: bool = True
    """Spell characters outside the vocabulary of `syllable` by their bytes; otherwise each is
    `<unk>`."""

    special_tokens: list[str] = field(default_factory=list)
    """Special tokens of your own, such as those of a chat template."""

    chat_template: str | None = None
    """How a conversation is written down: `chatml`, a Jinja file, or Jinja text."""

    add_bos_token: bool = True
    """Begin every document, and every prompt, with `<s>`."""

    add_eos_token: bool = True
    """End every document with `</s>`. Prompts never get one."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        special = len(list_special_tokens(self, self.list_extra_tokens()))
        whole = self.kind in ("bpe", "jamo") or (self.kind == "syllable" and self.byte_fallback)
        least = special + (NUM_BYTES if whole else 1)
        if self.path is None and self.kind != "bytes" and self.vocab_size < least:
            what = f"{NUM_BYTES} bytes" if whole else "one token of the text"
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}, but {self.kind} needs {least}: "
                f"{what} and {special} special tokens. Take 1024 or more."
            )
        if self.train_bytes < 1:
            raise ConfigError(
                f"tokenizer.train_bytes is {self.train_bytes}, but a tokenizer is learned from at "
                "least 1 byte. Leave it out, or take 256_000_000."
            )
        if self.digits < 1:
            raise ConfigError(
                f"tokenizer.digits is {self.digits}, but a number has at least 1. Take 1 or 3."
            )
        self._check_kind("bpe", "jamo", names=("pattern", "digits", "space_runs"))
        self._check_kind("syllable", names=("byte_fallback",))
        if self.pattern != "gpt4" and (self.digits != 3 or not self.space_runs):
            raise ConfigError(
                f"tokenizer.pattern is {self.pattern}, but tokenizer.digits and "
                "tokenizer.space_runs shape gpt4 only. Leave them out, or take pattern: gpt4."
            )
        for token in self.special_tokens:
            if len(token) < 2 or token != token.strip():
                raise ConfigError(
                    f"tokenizer.special_tokens has {token!r}, but a special token has at least 2 "
                    "characters, and neither the first nor the last is white space. Rename it."
                )

    def _check_kind(self, *kinds: str, names: tuple[str, ...]) -> None:
        """Reject settings that the kind would pass over."""
        for name in names:
            value = getattr(self, name)
            if self.kind not in kinds and value != getattr(type(self), name):
                raise ConfigError(
                    f"tokenizer.{name} is {value}, but tokenizer.kind is {self.kind}, and it "
                    f"shapes {' and '.join(kinds)} only. Leave it out, or take kind: {kinds[0]}."
                )

    def list_extra_tokens(self) -> list[str]:
        """List the special tokens beyond the usual ones: the template's and the user's."""
        return [*list_chat_tokens(self.chat_template), *self.special_tokens]
