"""Train, save, load and show tokenizers."""

from dataclasses import dataclass
from typing import Literal

from hf_tinyformer.errors import ConfigError

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is cut into tokens."""

    kind: Literal["bpe", "char"] = "bpe"
    """`bpe`: byte-level byte-pair encoding, lossless on every text. `char`: one token a character
    of the training text, `<unk>` for any other."""

    vocab_size: int = 4096
    """Tokens in all, special ones included. Used by `bpe`; `char` takes what the text has."""

    add_bos_token: bool = True
    """Begin every document, and every prompt, with `<s>`."""

    add_eos_token: bool = True
    """End every document with `</s>`. Prompts never get one."""

    def __post_init__(self) -> None:
        """Reject a vocabulary that cannot hold the bytes."""
        if self.kind == "bpe" and self.vocab_size < 259:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}, but byte-level BPE needs 259: "
                "256 bytes and 3 special tokens. Take 1024 or more."
            )
