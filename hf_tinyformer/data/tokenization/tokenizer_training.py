"""The kinds of tokenizer, one function each.

`bpe` is byte-level byte-pair encoding: Sennrich et al. 2016, section 3.2, over bytes as in
Radford et al. 2019, section 2.2. `jamo` is the same over the letters of Korean syllables, so that a
word's stem and its ending part where they really do: 나는 can be 나 + 느 + ㄴ. `syllable` has one
token a character, `word` one a word between spaces, `bytes` one a byte.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_tinyformer.data.tokenization.bpe_training import train_bpe
from hf_tinyformer.data.tokenization.jamo import build_normalizer, decompose_syllables
from hf_tinyformer.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig

logger = logging.getLogger(__name__)

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "<s>", "</s>", "<unk>"
NUM_BYTES = 256
_BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]
WORD_PATTERN = r" ?\S+|\s"
"""A word of `word`: whatever stands between white space, with the one space before it."""


def split_pattern(config: "TokenizerConfig") -> str:
    """Return the regular expression of the pieces that no merge may leave.

    With the defaults this is GPT-4's pattern in the spelling of Llama 3, letter for letter, and
    with `digits: 1` Qwen 2's: other programs (llama.cpp among them) know a pattern by its text.
    """
    if config.pattern != "gpt4":
        return config.pattern
    number = r"\p{N}" if config.digits == 1 else rf"\p{{N}}{{1,{config.digits}}}"
    runs = (
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # signs, with the line ends after them
        r"\s*[\r\n]+",  # blank lines
        r"\s+(?!\S)",  # a run of spaces (indentation), less the one that begins the next word
        r"\s+",
    )
    return "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions
            r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with the one space or sign before it
            number,
            *(runs if config.space_runs else (r" ?[^\s\p{L}\p{N}]+", r"\s")),
        )
    )


def _build_cutter(config: "TokenizerConfig") -> Any:
    from tokenizers import Regex, pre_tokenizers

    if config.pattern == "gpt2":  # which ByteLevel has built in
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    try:
        pattern = Regex(split_pattern(config))
    except Exception as error:  # tokenizers raises no narrower one
        raise ConfigError(
            f"tokenizer.pattern is {config.pattern}, but it is no regular expression: {error}. "
            "Take gpt4, gpt2 or an expression in Oniguruma's syntax."
        ) from None
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _train_bpe(config: "TokenizerConfig", special: list[str], texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _build_cutter(config)
    backend.decoder = decoders.ByteLevel()
    train_bpe(backend, texts, vocab_size=config.vocab_size, special_tokens=special)
    if backend.get_vocab_size() < config.vocab_size:
        logger.warning(
            "tokenizer.vocab_size is %d, but the training text has pairs for %d tokens only; "
            "the tokenizer has that many.",
            config.vocab_size,
            backend.get_vocab_size(),
        )
    return backend


def _train_jamo(config: "TokenizerConfig", special: list[str], texts: Iterator[str]) -> "Tokenizer":
    backend = _train_bpe(config, special, map(decompose_syllables, texts))
    backend.normalizer = build_normalizer()
    return backend


def _train_syllable(
    config: "TokenizerConfig", special: list[str], texts: Iterator[str]
) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    names = _BYTE_NAMES if config.byte_fallback else []
    room = config.vocab_size - len(special) - len(names)
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:room]
    tokens = [*special, *names, *sorted(kept)]
    # BPE without merges leaves characters apart, ten times as fast as cutting with a pattern.
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            unk_token=None if names else UNK_TOKEN,
            byte_fallback=bool(names),
        )
    )
    fuse = decoders.Fuse()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), fuse]) if names else fuse
    backend.add_special_tokens(special)
    return backend


def _train_word(config: "TokenizerConfig", special: list[str], texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    # Where the letters of a special token are a whole word, the first is cut off: the word would be
    # the token itself.
    heads = [
        rf"{re.escape(token[0])}(?={re.escape(token[1:])}(?!\S))"
        for token in special
        if len(token.split()) == 1
    ]
    pattern = Regex("|".join((*heads, WORD_PATTERN)))
    backend = Tokenizer(models.WordLevel(vocab={UNK_TOKEN: 0}, unk_token=UNK_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def byte_letters() -> dict[str, int]:
    """Return GPT-2's table of letters for bytes, as ByteLevel writes them.

    A byte that prints stands for itself, the others for letters from U+0100 on.
    """
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printing]
    letters = [chr(byte) for byte in printing] + [chr(256 + index) for index in range(len(others))]
    return dict(zip(letters, printing + others, strict=True))


def _train_bytes(
    _config: "TokenizerConfig", special: list[str], texts: Iterator[str]
) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    for _ in texts:  # nothing to learn, but a broken corpus is found here as for every kind
        pass
    table = byte_letters()
    tokens = [*special, *sorted(table, key=table.__getitem__)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return backend


_TRAINERS: dict[str, Callable[["TokenizerConfig", list[str], Iterator[str]], "Tokenizer"]] = {
    "bpe": _train_bpe,
    "jamo": _train_jamo,
    "syllable": _train_syllable,
    "word": _train_word,
    "bytes": _train_bytes,
}
"""A new kind is a function here and a word in `TokenizerConfig.kind`."""


def list_special_tokens(config: "TokenizerConfig", more: list[str]) -> list[str]:
    """List the special tokens that a kind begins with: ids 0 `<pad>`, 1 `<s>`, 2 `</s>`, and so on.

    Args:
        config: Tells the kind, and whether it can meet what it does not know.
        more: Tokens after the usual ones, such as those of a chat.
    """
    has_unknown = config.kind == "word" or (config.kind == "syllable" and not config.byte_fallback)
    unknown = [UNK_TOKEN] if has_unknown else []
    return list(dict.fromkeys([PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, *unknown, *more]))


def _check_special_tokens(backend: "Tokenizer", special: list[str]) -> None:
    model = json.loads(backend.to_str())["model"]
    pieces = {"".join(merge) for merge in model.get("merges", ())}
    if model.get("byte_fallback"):
        pieces.update(_BYTE_NAMES)
    for token in special:
        if token in pieces:
            raise ConfigError(
                f"{token!r} is a special token, but also a piece of ordinary text, which would "
                "become the special token. Rename it in tokenizer.special_tokens, or take a "
                "tokenizer.pattern that cuts it apart; gpt4 cuts between letters and signs."
            )


def train_backend(
    config: "TokenizerConfig", special: list[str], texts: Iterator[str]
) -> "Tokenizer":
    """Learn the vocabulary and rules of a kind.

    Args:
        config: Which kind, how large.
        special: From `list_special_tokens`.
        texts: Documents without lone surrogates, read once.

    Raises:
        ConfigError: If the pattern does not work, or a special token is a piece of text as well.
    """
    backend = _TRAINERS[config.kind](config, special, texts)
    _check_special_tokens(backend, special)
    return backend
