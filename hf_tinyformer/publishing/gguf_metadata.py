"""What a GGUF file says of its tokenizer and its origin, beyond what transformers reads of it.

transformers takes vocabulary and merges from the file, and cuts text before merging in the way of
the architecture. The file names the way in `tokenizer.ggml.pre`, and that decides here.
"""

from pathlib import Path
from typing import Any

from hf_tinyformer.data.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenizer_training import split_pattern
from hf_tinyformer.errors import ExportError

_DIGITS_APART = r"\p{N}"
_LLAMA3_PATTERN = split_pattern(TokenizerConfig())
_QWEN2_PATTERN = split_pattern(TokenizerConfig(digits=1))

GGUF_CUTS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "dbrx": _LLAMA3_PATTERN,
    "llama-bpe": _LLAMA3_PATTERN,
    "qwen2": _QWEN2_PATTERN,
}
"""llama.cpp's name for a way to cut, and the pattern to cut by. Where it is none, or digits only,
GPT-2's own pattern comes next."""

TAKES_WORDS_WHOLE = ("llama-bpe",)
"""Where a word that is a token is taken without merging."""

KEYS = (
    "general.license",
    "general.languages",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.add_bos_token",
)


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Read the keys that are used here, those that are there."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {key: fields[key].contents() for key in KEYS if key in fields}


def _cut_as_told(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    pattern = GGUF_CUTS[name]
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern is None:
        return gpt2
    if pattern == _DIGITS_APART:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def mend_gguf_tokenizer(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Make a tokenizer that transformers read from a GGUF file cut as the file says.

    Args:
        tokenizer: The tokenizer; changed in place.
        metadata: From `read_gguf_metadata`.

    Raises:
        ExportError: If the file names a way to cut that is not known here.
    """
    from tokenizers.processors import TemplateProcessing

    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return  # SentencePiece, which transformers rebuilds whole
    name = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if name not in GGUF_CUTS:
        raise ExportError(
            f"tokenizer.ggml.pre is {name}, but only {', '.join(GGUF_CUTS)} are known here, so the "
            "tokenizer cannot be read exactly. Take the checkpoint that the file was made from."
        )
    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token
    backend.pre_tokenizer = _cut_as_told(name)
    backend.model.ignore_merges = name in TAKES_WORDS_WHOLE
    if metadata.get("tokenizer.ggml.add_bos_token") and bos is not None:
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.bos_token_id)],
        )
