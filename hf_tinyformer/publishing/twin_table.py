"""The table of native twins: stock architectures that compute what our blocks compute.

One entry a twin, read in both directions by `twins.py`: which of our shapes it has room for, what
our settings are called there, which of its settings must have one value for the numbers to be ours,
and how the weights are named and laid out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.positions import sinusoidal_positions

Weights = dict[str, Tensor]

POSITION_TABLE = "model.embeddings.positions.weight"
OPT_OFFSET = 2
"""OPT's table of positions begins with two rows that no token uses."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A stock architecture, and what its settings and weights are called by us."""

    architecture: str
    """transformers' `model_type`."""

    class_name: str
    """The stock class for causal language modelling."""

    shape: Mapping[str, tuple[Any, ...]]
    """Our settings that the architecture fixes, with the values it has room for; a stock model
    that is read gets the first, unless `choices` says which."""

    settings: Mapping[str, str]
    """Their setting to ours of the same meaning."""

    choices: Mapping[str, tuple[str, Mapping[Any, Any]]] = field(default_factory=dict)
    """Their setting to ours, and their values to ours; written is the first that has ours."""

    constants: Mapping[str, Any] = field(default_factory=dict)
    """Their settings that must have one value for the numbers to be ours."""

    bias_key: str | None = None
    """Their one switch for all biases. `always`: they have biases and no switch."""

    names: Mapping[str, str]
    """Parts of our weights' names to theirs."""

    write_weights: Callable[[Weights, TinyFormerConfig], Weights] | None = None
    """Lays our weights, under our names, out as theirs are."""

    read_weights: Callable[[Weights, TinyFormerConfig], Weights] | None = None
    """The way back."""

    even_heads: bool = False
    """Whether the stock configuration demands that the heads divide the width."""

    def model_class(self) -> Any:
        """Return the stock class."""
        import transformers

        return getattr(transformers, self.class_name)


_ALIKE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "attention_dropout",
    "initializer_range",
    "tie_word_embeddings",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_COMMON = {name: name for name in _ALIKE}
_GROUPED = {"intermediate_size": "intermediate_size", "num_key_value_heads": "num_key_value_heads"}
_ROTARY = {**_COMMON, **_GROUPED, "rope_parameters": "rope_parameters", "head_dim": "head_dim"}
_LLAMA = {**_ROTARY, "rms_norm_eps": "norm_eps", "attention_bias": "attention_bias"}

_TABLES = ("learned", "sinusoidal", "none")
"""Positions that can be written as a table."""
_SWIGLU = {"silu": "swiglu"}
# gelu_new is the same formula, written out.
_UNGATED = {"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "relu2": "relu2"}
_BLOCK = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def _shape(
    *positions: str, norm: str, placement: tuple[str, ...] = ("pre",), qk_norm: bool = False
) -> dict[str, tuple[Any, ...]]:
    return {
        "position_embedding_type": positions,
        "norm_type": (norm,),
        "norm_placement": placement,
        "use_qk_norm": (qk_norm,),
    }


def _write_positions(weights: Weights, config: TinyFormerConfig) -> Weights:
    """Bake positions that need no weights into a table as long as the context."""
    if config.position_embedding_type == "learned":
        return weights
    size = (config.max_position_embeddings, config.hidden_size)
    table = torch.zeros(size)
    if config.position_embedding_type == "sinusoidal":
        table = sinusoidal_positions(torch.arange(size[0]), size[1])
    tokens = weights["model.embed_tokens.weight"]
    return {**weights, POSITION_TABLE: table.to(tokens)}


def _is_projection(name: str) -> bool:
    return ".layers." in name and ("_proj" in name or ".qkv." in name)


def _transpose(weights: Weights) -> Weights:
    # GPT-2's layers multiply from the other side.
    return {
        name: tensor.T.contiguous() if _is_projection(name) and tensor.dim() == 2 else tensor
        for name, tensor in weights.items()
    }


def _write_gpt2(weights: Weights, config: TinyFormerConfig) -> Weights:
    weights = _write_positions(weights, config)
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [
            weights.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")
        ]
        weights[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return _transpose(weights)


def _read_gpt2(weights: Weights, config: TinyFormerConfig) -> Weights:
    weights = _transpose(weights)
    for name in [name for name in weights if ".qkv." in name]:
        parts = weights.pop(name).split(config.hidden_size)
        for part, tensor in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            weights[name.replace("qkv", part)] = tensor.contiguous()
    return weights


def _write_opt(weights: Weights, config: TinyFormerConfig) -> Weights:
    weights = _write_positions(weights, config)
    table = torch.nn.functional.pad(weights[POSITION_TABLE], (0, 0, OPT_OFFSET, 0))
    return {**weights, POSITION_TABLE: table}


def _read_opt(weights: Weights, config: TinyFormerConfig) -> Weights:  # noqa: ARG001
    return {**weights, POSITION_TABLE: weights[POSITION_TABLE][OPT_OFFSET:].contiguous()}


TWINS = (
    Twin(
        architecture="llama",
        class_name="LlamaForCausalLM",
        shape=_shape("rope", norm="rmsnorm"),
        settings={**_LLAMA, "mlp_bias": "mlp_bias"},
        choices={"hidden_act": ("mlp_type", _SWIGLU)},
        names=_BLOCK,
        even_heads=True,
    ),
    Twin(
        architecture="qwen3",
        class_name="Qwen3ForCausalLM",
        shape=_shape("rope", norm="rmsnorm", qk_norm=True),
        settings=_LLAMA,
        choices={"hidden_act": ("mlp_type", _SWIGLU)},
        constants={"sliding_window": None},
        names=_BLOCK,
    ),
    Twin(
        architecture="arcee",
        class_name="ArceeForCausalLM",
        shape=_shape("rope", norm="rmsnorm"),
        settings={**_LLAMA, "mlp_bias": "mlp_bias"},
        choices={"hidden_act": ("mlp_type", _UNGATED)},
        names=_BLOCK,
        even_heads=True,
    ),
    Twin(
        architecture="apertus",
        class_name="ApertusForCausalLM",
        shape=_shape("rope", norm="rmsnorm", qk_norm=True),
        settings=_LLAMA,
        choices={"hidden_act": ("mlp_type", _UNGATED)},
        names={"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"},
    ),
    Twin(
        architecture="smollm3",
        class_name="SmolLM3ForCausalLM",
        shape=_shape("none", norm="rmsnorm"),
        settings={
            name: ours
            for name, ours in {**_LLAMA, "mlp_bias": "mlp_bias"}.items()
            if name != "rope_parameters"
        },
        choices={"hidden_act": ("mlp_type", _SWIGLU)},
        # Every layer is one of those without rotary positions.
        constants={"no_rope_layer_interval": 1, "use_sliding_window": False},
        names=_BLOCK,
    ),
    Twin(
        architecture="starcoder2",
        class_name="Starcoder2ForCausalLM",
        shape=_shape("rope", norm="layernorm"),
        settings={
            **_ROTARY,
            "norm_epsilon": "norm_eps",
            "residual_dropout": "hidden_dropout",
            "embedding_dropout": "hidden_dropout",
        },
        choices={"hidden_act": ("mlp_type", _UNGATED)},
        constants={"sliding_window": None},
        bias_key="use_bias",
        names={**_BLOCK, "up_proj": "c_fc", "down_proj": "c_proj"},
    ),
    Twin(
        architecture="stablelm",
        class_name="StableLmForCausalLM",
        shape=_shape("rope", norm="layernorm"),
        settings={
            **_COMMON,
            **_GROUPED,
            "rope_parameters": "rope_parameters",
            "layer_norm_eps": "norm_eps",
            "hidden_dropout": "hidden_dropout",
        },
        choices={"hidden_act": ("mlp_type", _SWIGLU)},
        constants={"use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False},
        names=_BLOCK,
    ),
    Twin(
        architecture="gpt2",
        class_name="GPT2LMHeadModel",
        shape=_shape(*_TABLES, norm="layernorm"),
        settings={
            **{name: name for name in _ALIKE if name != "attention_dropout"},
            "n_inner": "intermediate_size",
            "layer_norm_epsilon": "norm_eps",
            "attn_pdrop": "attention_dropout",
            "embd_pdrop": "hidden_dropout",
            "resid_pdrop": "hidden_dropout",
        },
        choices={"activation_function": ("mlp_type", _UNGATED)},
        constants={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        bias_key="always",
        names={
            "model.embed_tokens": "transformer.wte",
            "model.embeddings.positions": "transformer.wpe",
            "model.layers": "transformer.h",
            "model.norm": "transformer.ln_f",
            "attention_norm": "ln_1",
            "mlp_norm": "ln_2",
            "self_attn.qkv": "attn.c_attn",
            "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
        },
        write_weights=_write_gpt2,
        read_weights=_read_gpt2,
    ),
    Twin(
        architecture="opt",
        class_name="OPTForCausalLM",
        shape={
            **_shape(*_TABLES, norm="layernorm", placement=("post", "pre")),
            "norm_eps": (1e-5,),  # OPT has no setting for it
        },
        settings={
            **{name: name for name in _ALIKE if name != "initializer_range"},
            "word_embed_proj_dim": "hidden_size",
            "ffn_dim": "intermediate_size",
            "init_std": "initializer_range",
            "dropout": "hidden_dropout",
        },
        choices={
            "activation_function": ("mlp_type", _UNGATED),
            "do_layer_norm_before": ("norm_placement", {False: "post", True: "pre"}),
        },
        constants={"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
        bias_key="enable_bias",
        names={
            "model.embed_tokens": "model.decoder.embed_tokens",
            "model.embeddings.positions": "model.decoder.embed_positions",
            "model.layers": "model.decoder.layers",
            "model.norm": "model.decoder.final_layer_norm",
            "attention_norm": "self_attn_layer_norm",
            "mlp_norm": "final_layer_norm",
            "o_proj": "out_proj",
            "mlp.up_proj": "fc1",
            "mlp.down_proj": "fc2",
        },
        write_weights=_write_opt,
        read_weights=_read_opt,
    ),
)
"""In the order in which they are tried."""
