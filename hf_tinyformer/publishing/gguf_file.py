"""Write a GGUF file, and read its weights back.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the keys.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing.gguf_layout import Layout, storage_type
from hf_tinyformer.publishing.gguf_vocabulary import Vocabulary
from hf_tinyformer.publishing.native import read_card

_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""llama.cpp's numbers for what most weights are stored in."""


@dataclass(frozen=True)
class About:
    """What a model's card says that a GGUF file has a place for."""

    name: str
    license: str | None
    languages: list[str]
    tags: list[str]


def _as_strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def read_about(checkpoint: Path) -> About:
    """Read a model's card, if there is one.

    Args:
        checkpoint: Folder of a model.

    Raises:
        ExportError: If the card is not UTF-8, or what stands between its lines of --- not YAML.
    """
    content = read_card(checkpoint)
    front = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise ExportError(
            f"{checkpoint / 'README.md'} begins with lines that are not YAML: "
            f"{' '.join(str(error).split())[:200]}. Mend what stands between the lines of ---."
        ) from None
    data = data if isinstance(data, dict) else {}
    title = re.search(r"^# (.+)$", content, flags=re.MULTILINE)
    licenses = _as_strings(data.get("license"))
    return About(
        name=title[1].strip() if title else checkpoint.resolve().name,
        license=licenses[0] if licenses else None,
        languages=_as_strings(data.get("language")),
        tags=_as_strings(data.get("tags")),
    )


def _setting(config: Any, *names: str) -> Any:
    return next(
        (found for name in names if (found := getattr(config, name, None)) is not None), None
    )


def _add_about(writer: Any, about: About, dtype: str) -> None:
    writer.add_type("model")
    writer.add_name(about.name)
    if about.license:
        writer.add_license(about.license)
    if about.languages:
        writer.add_languages(about.languages)
    if about.tags:
        writer.add_tags(about.tags)
    writer.add_file_type(_FILE_TYPES[dtype])
    if dtype == "q8_0":
        import gguf

        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_sizes(writer: Any, layout: Layout) -> None:
    config = layout.config
    heads = config.num_attention_heads
    head_dim = _setting(config, "head_dim") or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(_setting(config, "intermediate_size", "n_inner"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(_setting(config, "num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    epsilon = _setting(config, "layer_norm_eps", "norm_epsilon", "layer_norm_epsilon")
    if epsilon is None:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(epsilon)
    if layout.architecture == "stablelm":
        writer.add_parallel_residual(False)
    rope = _setting(config, "rope_parameters")
    if rope is not None:
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope.get("rope_type") == "linear":
            import gguf

            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pattern_name)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(False)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def write_gguf(
    path: Path,
    layout: Layout,
    arrays: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    about: About,
    dtype: str,
) -> dict[str, str]:
    """Write a GGUF file.

    Args:
        path: Where.
        layout: The twin's architecture and configuration.
        arrays: Its weights by llama.cpp's names, float32.
        vocabulary: The tokenizer.
        about: What the card says.
        dtype: A key of `DTYPES`.

    Returns:
        From the name of each tensor to the name of ggml's type that it was stored in.
    """
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture)
    _add_about(writer, about, dtype)
    _add_sizes(writer, layout)
    _add_vocabulary(writer, vocabulary)
    storage = {name: storage_type(name, array.shape, dtype) for name, array in arrays.items()}
    for name, array in arrays.items():
        kind = gguf.GGMLQuantizationType[storage[name]]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    factors = layout.rope_factors()
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return storage


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a GGUF file's weights back.

    Args:
        path: The file.

    Returns:
        Float32 arrays by llama.cpp's names.
    """
    import gguf

    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
