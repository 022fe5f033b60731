"""What a GGUF file says of its model and its tokenizer, in transformers' terms.

transformers reads the weights of such files exactly, but of the rest only a part: not every width,
epsilon, bias and stretch of rotary positions, nor how text is cut before it is merged. All of that
stands in the file, and is taken from there.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the keys.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_training import split_pattern
from hf_tinyformer.errors import ExportError
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.publishing.twin_table import TWINS
from hf_tinyformer.publishing.twins import stock_config

ARCHITECTURES = ("llama", "qwen3", "gpt2", "starcoder2", "stablelm")
"""Those that llama.cpp calls as transformers does, and computes alike."""

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

BEGINS_TEXTS = ("llama-bpe",)
"""Where a text begins with the first special token if the file does not say."""

CONTROL, USER_DEFINED = 3, 4
"""llama.cpp's types of tokens that are never cut: special ones, and others."""


@dataclass(frozen=True)
class GgufFile:
    """The words of a GGUF file, and the names of its tensors."""

    fields: dict[str, Any]
    tensors: frozenset[str]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for what the weights are."""
        return str(self.fields["general.architecture"])

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a setting of the architecture."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def number(self, name: str, default: float | None = None) -> float:
        """Look up a number, which the file has in float32, as the shortest that means the same."""
        import numpy as np

        found = self.get(name, default)
        if found is None:
            raise ExportError(
                f"the GGUF file has no {self.architecture}.{name}, but a model needs it. "
                "Take another file."
            )
        return float(str(np.float32(found)))


def read_gguf(path: Path) -> GgufFile:
    """Read what a file says, all but its weights."""
    import gguf

    reader = gguf.GGUFReader(path)
    return GgufFile(
        fields={name: field.contents() for name, field in reader.fields.items()},
        tensors=frozenset(tensor.name for tensor in reader.tensors),
    )


def _refuse(key: str, value: Any, rule: str) -> ExportError:
    return ExportError(
        f"the GGUF file's {key} is {value}, but {rule}, so this model cannot be read exactly. "
        "Take the checkpoint that the file was made from."
    )


def _check(file: GgufFile, head_dim: int) -> None:
    harmless = {
        "attention.sliding_window": 0,
        "expert_count": 0,
        "use_parallel_residual": False,
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
    }
    for key, value in harmless.items():
        if (found := file.get(key, value)) != value:
            raise _refuse(f"{file.architecture}.{key}", found, f"our blocks compute {value}")
    if any(name.startswith("rope_freqs") for name in file.tensors):
        raise _refuse("rope_freqs", "a table", "our angles follow from their settings")


def _read_rope(file: GgufFile) -> dict[str, Any] | None:
    if file.get("rope.freq_base") is None and file.architecture == "gpt2":
        return None
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": file.number("rope.freq_base", 10_000.0),
    }
    kind = file.get("rope.scaling.type", "none")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": file.number("rope.scaling.factor")}
    elif kind != "none":
        raise _refuse("rope.scaling.type", kind, "none and linear are known here")
    return rope


def read_stock_config(file: GgufFile) -> Any:
    """Translate what a file says of its model into the stock configuration.

    Raises:
        ExportError: If the model is none that our blocks compute; names the key.
    """
    if file.architecture not in ARCHITECTURES:
        # First of all: other architectures do not even have all of the numbers below.
        raise _refuse(
            "general.architecture", file.architecture, f"we know {', '.join(ARCHITECTURES)}"
        )
    heads, width = int(file.get("attention.head_count")), int(file.get("embedding_length"))
    head_dim = int(file.get("attention.key_length", width // heads))
    _check(file, head_dim)
    twin = next(twin for twin in TWINS if twin.architecture == file.architecture)
    shape = {ours: values[0] for ours, values in twin.shape.items()}
    shape |= {ours: next(iter(values.values())) for ours, values in twin.choices.values()}
    rms = shape["norm_type"] == "rmsnorm"
    config = TinyFormerConfig(
        **shape,
        vocab_size=len(file.fields["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=int(file.get("feed_forward_length")),
        num_hidden_layers=int(file.get("block_count")),
        num_attention_heads=heads,
        num_key_value_heads=int(file.get("attention.head_count_kv", heads)),
        head_dim=head_dim,
        max_position_embeddings=int(file.get("context_length")),
        rope_parameters=_read_rope(file),
        norm_eps=file.number(f"attention.layer_norm_{'rms_' if rms else ''}epsilon"),
        attention_bias=any(name.endswith("attn_output.bias") for name in file.tensors),
        mlp_bias=any(name.endswith("ffn_up.bias") for name in file.tensors),
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.fields.get("tokenizer.ggml.padding_token_id"),
    )
    return stock_config(config)


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


def _build_backend(file: GgufFile, name: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = file.fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in file.fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in TAKES_WORDS_WHOLE)
    )
    backend.pre_tokenizer = _cut_as_told(name)
    backend.decoder = decoders.ByteLevel()
    types = file.fields.get("tokenizer.ggml.token_type", ())
    for token, kind in zip(tokens, types, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            whole = AddedToken(token, normalized=False, special=kind == CONTROL)
            backend.add_special_tokens([whole]) if kind == CONTROL else backend.add_tokens([whole])
    return backend


def _frame(file: GgufFile, name: str, named: dict[str, str]) -> Any | None:
    """Say what stands around a text: llama.cpp's two flags, or what it does without them."""
    from tokenizers.processors import TemplateProcessing

    around: dict[str, list[str]] = {"bos": [], "eos": []}
    ids = {}
    for kind, by_default in (("bos", name in BEGINS_TEXTS), ("eos", False)):
        token = named.get(f"{kind}_token")
        wanted = file.fields.get(f"tokenizer.ggml.add_{kind}_token", by_default)
        if wanted and token is not None:
            around[kind] = [token]
            ids[token] = file.fields[f"tokenizer.ggml.{kind}_token_id"]
    if not ids:
        return None
    first = [*around["bos"], "$A", *around["eos"]]
    second = [f"{part}:1" for part in (*around["bos"], "$B", *around["eos"])]
    return TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=list(ids.items())
    )


def read_gguf_tokenizer(file: GgufFile) -> Any | None:
    """Build the tokenizer that a file describes.

    Args:
        file: From `read_gguf`.

    Returns:
        The tokenizer; `None` for SentencePiece, which transformers rebuilds whole.

    Raises:
        ExportError: If the file names a way to cut that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    if file.fields.get("tokenizer.ggml.model") != "gpt2":
        return None
    name = file.fields.get("tokenizer.ggml.pre", "gpt-2")
    if name not in GGUF_CUTS:
        raise _refuse("tokenizer.ggml.pre", name, f"only {', '.join(GGUF_CUTS)} are known here")
    backend = _build_backend(file, name)
    named = {
        ours: file.fields["tokenizer.ggml.tokens"][index]
        for ours, theirs in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        )
        if (index := file.fields.get(f"tokenizer.ggml.{theirs}")) is not None
    }
    backend.post_processor = _frame(file, name, named)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        chat_template=file.fields.get("tokenizer.chat_template"),
        model_max_length=int(file.get("context_length")),
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
