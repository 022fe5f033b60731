"""How llama.cpp names, orders and stores the weights of the twins that it knows.

Sources: the `gguf` package's table of names; llama.cpp's `convert_hf_to_gguf.py` for what is
permuted, transposed and kept in float32; its model files for what each architecture computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_tinyformer.errors import ExportError
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""From the word of the command line to the name of ggml's type."""

BLOCK = 32
"""Weights of a row that share a scale in q8_0."""


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp computes for an architecture, where it is less than transformers does."""

    mlp_type: str
    """The one feed-forward kind."""

    has_biases: bool = True
    """Whether it reads biases of the projections."""

    turns_neighbours: bool = False
    """Whether rotary pairs are neighbours, as in the paper, and not the halves of a head."""

    reads_tied_head: bool = True
    """Whether it takes the token table for a head that is not there."""

    rope_types: tuple[str, ...] = ("default", "linear")
    """Stretched rotary positions that it computes as transformers does."""


ARCHITECTURES = {
    "llama": Architecture(
        "swiglu", turns_neighbours=True, rope_types=("default", "linear", "llama3")
    ),
    "qwen3": Architecture("swiglu", has_biases=False),
    "arcee": Architecture("relu2", has_biases=False, turns_neighbours=True),
    "starcoder2": Architecture("gelu"),
    "stablelm": Architecture("swiglu", has_biases=False, reads_tied_head=False),
    "gpt2": Architecture("gelu"),
}
"""The twins that llama.cpp knows."""


def check_architecture(twin: str, config: TinyFormerConfig) -> Architecture:
    """Refuse a model whose twin llama.cpp does not know, or computes in another way.

    Args:
        twin: Name of the stock architecture.
        config: The model's configuration.

    Raises:
        ExportError: If llama.cpp would not give the model's numbers.
    """
    known = ARCHITECTURES.get(twin)
    if known is None:
        raise ExportError(
            f"the model's twin is {twin}, but llama.cpp knows {', '.join(ARCHITECTURES)} of the "
            "twins. Export with --to native or --to onnx."
        )
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    wrong = {
        f"model.mlp_type is {config.mlp_type}": config.mlp_type != known.mlp_type,
        f"rope_parameters.rope_type is {rope}": rope not in known.rope_types,
        f"model.attention_bias is {config.attention_bias}": config.attention_bias
        and not known.has_biases,
        f"model.mlp_bias is {config.mlp_bias}": config.mlp_bias and not known.has_biases,
    }
    for setting, is_wrong in wrong.items():
        if is_wrong:
            raise ExportError(
                f"{setting}, but llama.cpp computes {twin} with {known.mlp_type}, "
                f"{'with or without' if known.has_biases else 'without'} biases and rope_type "
                f"{' or '.join(known.rope_types)}. Export with --to native or --to onnx."
            )
    return known


def _pair_neighbours(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows so that rotary pairs stand side by side.

    Args:
        tensor: Weight or bias of a query or key projection, `num_heads * head_dim` rows.
        num_heads: Number of heads.
    """
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _pair_halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Undo `_pair_neighbours`."""
    pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class Layout:
    """From the weights of a twin to those of a GGUF file, and back."""

    architecture: str
    """Name of the twin, which is llama.cpp's too."""

    config: Any
    """The twin's configuration."""

    def name_of(self, name: str) -> str:
        """Translate the name of a weight of the twin."""
        import gguf

        kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(kinds[self.architecture], self.config.num_hidden_layers)
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name  # every weight of the known twins has one
        return str(found)

    def _num_turned_heads(self, name: str) -> int | None:
        """Return a projection's number of heads if llama.cpp orders its rows in another way."""
        if not ARCHITECTURES[self.architecture].turns_neighbours:
            return None
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        return next(
            (getattr(self.config, key) for part, key in heads.items() if part in name), None
        )

    def _is_sideways(self, name: str) -> bool:
        # GPT-2's layers in transformers multiply from the other side.
        return self.architecture == "gpt2" and ".c_" in name and name.endswith(".weight")

    def _leaves_head_out(self) -> bool:
        reads_tied_head = ARCHITECTURES[self.architecture].reads_tied_head
        return bool(self.config.tie_word_embeddings and reads_tied_head)

    def write(self, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Turn the twin's weights into llama.cpp's.

        Args:
            weights: The twin's state dict.

        Returns:
            Float32 arrays by llama.cpp's names. A tied head is left out where llama.cpp knows how.
        """
        arrays = {}
        for name, tensor in weights.items():
            if name == "lm_head.weight" and self._leaves_head_out():
                continue
            heads = self._num_turned_heads(name)
            if heads is not None:
                tensor = _pair_neighbours(tensor, heads)
            if self._is_sideways(name):
                tensor = tensor.T
            arrays[self.name_of(name)] = tensor.float().contiguous().numpy()
        return arrays

    def read(
        self, arrays: Mapping[str, np.ndarray], like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Turn llama.cpp's weights into the twin's.

        Args:
            arrays: Float32 arrays by llama.cpp's names.
            like: The twin's state dict, for its names.

        Returns:
            Float32 tensors by the twin's names, without a tied head.
        """
        weights = {}
        for name in like:
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            tensor = torch.from_numpy(arrays[self.name_of(name)].copy())
            if self._is_sideways(name):
                tensor = tensor.T.contiguous()
            heads = self._num_turned_heads(name)
            weights[name] = tensor if heads is None else _pair_halves(tensor, heads)
        return weights

    def rope_factors(self) -> np.ndarray | None:
        """Return by how much each rotary pair turns more slowly, for Llama 3's stretched form."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "llama3":
            return None
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config)
        column = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32)
        plain = 1.0 / rope["rope_theta"] ** (column / self.config.head_dim)
        return (plain / stretched).float().numpy()


def storage_type(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """Choose how a tensor is stored.

    Norms, biases and tables of positions stay in float32: they are small, and llama.cpp adds and
    multiplies them in float32. A row that q8_0 cannot divide into blocks is stored in float16.

    Args:
        name: llama.cpp's name.
        shape: Of the array, rows first.
        dtype: A key of `DTYPES`.

    Returns:
        Name of ggml's type.
    """
    if len(shape) == 1 or name.startswith("position_embd"):
        return "F32"
    if dtype == "q8_0" and shape[-1] % BLOCK:
        return "F16"
    return DTYPES[dtype]


def rounding_bound(array: np.ndarray, storage: str) -> np.ndarray:
    """Bound what storing an array may change.

    Args:
        array: What was stored, float32.
        storage: Name of ggml's type.

    Returns:
        The largest possible change of each element.
    """
    size = np.abs(array.astype(np.float64))
    if storage == "F32":
        return np.zeros_like(size)
    if storage == "F16":  # 11 digits; below 2^-14 they are steps of 2^-24
        return size * 2.0**-11 + 2.0**-25
    if storage == "BF16":  # 8 digits
        return size * 2.0**-8
    # A step is the block's largest number divided by 127, kept in float16: half a step away, and
    # up to 127 times the error of the step.
    steps = size.reshape(-1, BLOCK).max(axis=1, keepdims=True) / 127
    bound = steps / 2 + 127 * (steps * 2.0**-11 + 2.0**-25)
    return np.broadcast_to(bound, (len(bound), BLOCK)).reshape(size.shape)
