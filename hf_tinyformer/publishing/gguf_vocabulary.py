"""A tokenizer in the terms of llama.cpp, which cuts text with code of its own.

llama.cpp knows a byte-level tokenizer by its tokens, its merges and the *name* of the pattern that
merges may not cross, and one of characters with bytes for the rest as SentencePiece. It runs no
normalizer and knows no other pattern than those it has names for, so a tokenizer that needs more is
refused: it would cut text in another way without a word.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing.gguf_metadata import GGUF_CUTS, TAKES_WORDS_WHOLE

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

SPACE = "\u2581"
"""What SentencePiece writes for a space. In a text it would be taken for one."""

_NO_MERGE = "\u00ff \u00ff"
"""A merge for those who have none, since llama.cpp wants one: of bytes 255, which no text has."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """`tokenizer.ggml.model`: `gpt2` merges bytes, `llama` (SentencePiece) characters."""

    pattern_name: str
    """`tokenizer.ggml.pre`: what merges may not cross."""

    tokens: list[str]
    """By id; as many as the model has."""

    types: list[int]
    """Of each token."""

    merges: list[str]
    """In the order in which they apply: two tokens with a space between. For `gpt2`."""

    scores: list[float]
    """Which token wins. For `llama`."""

    special_ids: dict[str, int]
    """From `bos`, `eos`, `pad`, `unk` to the id, for those there are."""

    add_bos: bool
    """Whether a prompt begins with `<s>`."""

    add_eos: bool
    """Whether a prompt ends with `</s>`."""

    chat_template: str | None
    """Jinja template that turns a conversation into a prompt."""


def _refuse(what: str, rule: str) -> ExportError:
    return ExportError(
        f"the tokenizer {what}, but {rule}, so it would cut text in another way. "
        "Export with --to onnx or --to native, which keep the tokenizer."
    )


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List the steps of a pre-tokenizer, without settings that cut nothing."""
    if part is None:
        return []
    steps = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _find_pattern(rules: dict[str, Any]) -> str | None:
    """Read the pattern that merges may not cross, in the words of `GGUF_CUTS`."""
    steps = _steps(rules["pre_tokenizer"])
    if steps == [_GPT2] or (steps == [_BYTES] and not rules["model"]["merges"]):
        return None  # where nothing merges, no pattern matters
    if steps == [_DIGITS, _GPT2]:
        return r"\p{N}"
    if len(steps) == 2 and steps[0]["type"] == "Split" and steps[1] == _BYTES:
        split = steps[0]
        if split["behavior"] == "Isolated" and not split["invert"]:
            return str(split["pattern"].get("Regex"))
    kinds = " and ".join(step["type"] for step in steps) or "nothing"
    raise _refuse(f"cuts text by {kinds}", "llama.cpp has no equal of that")


def _pattern_name(rules: dict[str, Any]) -> str:
    pattern = _find_pattern(rules)
    takes_words_whole = bool(rules["model"].get("ignore_merges"))
    for name, known in GGUF_CUTS.items():
        if known == pattern and (name in TAKES_WORDS_WHOLE) == takes_words_whole:
            return name
    raise _refuse(
        f"cuts text by the pattern {pattern}",
        "llama.cpp knows patterns by name and has none for it",
    )


def _check_rules(rules: dict[str, Any]) -> None:
    model = rules["model"]
    if rules["normalizer"] is not None:
        raise _refuse(
            f"rewrites text first ({rules['normalizer']['type']})",
            "llama.cpp runs no normalizer",
        )
    if model["type"] != "BPE":
        raise _refuse(f"is a {model['type']} model", "llama.cpp has no equal of ours")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refuse(f"has {key} {model[key]!r}", "llama.cpp's BPE has no such thing")
    for token in rules["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            if token[key]:
                raise _refuse(
                    f"has {key} for {token['content']!r}", "llama.cpp cuts it out as it is"
                )


def _is_of_characters(rules: dict[str, Any]) -> bool:
    """Tell a tokenizer of characters, with bytes for the rest, from one of bytes."""
    model = rules["model"]
    if (rules["decoder"] or {}).get("type") == "ByteLevel":
        return False
    if model.get("byte_fallback") and not model["merges"] and rules["pre_tokenizer"] is None:
        return SPACE not in model["vocab"]
    raise _refuse("has tokens of characters", "llama.cpp merges bytes")


def _frame(tokenizer: Any) -> tuple[bool, bool]:
    """Find out what is put around a prompt."""
    inside = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    framed = tokenizer("a", verbose=False)["input_ids"]
    for add_bos, begin in ((False, []), (True, [tokenizer.bos_token_id])):
        for add_eos, end in ((False, []), (True, [tokenizer.eos_token_id])):
            if framed == [*begin, *inside, *end]:
                return add_bos, add_eos
    raise _refuse(
        f"puts {framed} around a text of {inside}",
        f"llama.cpp puts {tokenizer.bos_token} before and {tokenizer.eos_token} after it at most",
    )


def read_vocabulary(tokenizer: Any, vocab_size: int) -> Vocabulary:
    """Translate a tokenizer.

    Args:
        tokenizer: A fast tokenizer.
        vocab_size: Rows of the model's token table; ids beyond the tokenizer's get tokens that
            stand for nothing.

    Returns:
        What llama.cpp needs in order to cut text as the tokenizer does.

    Raises:
        ExportError: If llama.cpp would cut text in another way.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_rules(rules)
    of_characters = _is_of_characters(rules)
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, index in rules["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
        if of_characters:
            tokens[index] = SPACE if token == " " else token
            types[index] = BYTE if _BYTE_TOKEN.fullmatch(token) else NORMAL
    for token in rules["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    add_bos, add_eos = _frame(tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    merges = [m if isinstance(m, str) else " ".join(m) for m in rules["model"]["merges"]]
    return Vocabulary(
        model="llama" if of_characters else "gpt2",
        pattern_name="default" if of_characters else _pattern_name(rules),
        tokens=tokens,
        types=types,
        merges=[] if of_characters else merges or [_NO_MERGE],
        scores=[0.0] * vocab_size if of_characters else [],
        special_ids={name: index for name, index in ids.items() if index is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=tokenizer.chat_template or None,
    )
