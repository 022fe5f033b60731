"""Native twins: rename our weights into a stock architecture, and a stock model into ours.

A twin opens every program that knows the stock architecture, with no code of ours. What the table
in `twin_table.py` does not say cannot be expressed, and is refused by the name of its setting;
nothing is approximated.

A bias that we lack and the twin has is written as zeros, and so is a table of positions for a model
without positions: adding zero changes no number.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from hf_tinyformer.errors import ExportError
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.publishing.twin_table import TWINS, Twin, Weights

FREE_IN_TRAINING = ("hidden_dropout",)
"""Settings that may stand for several of theirs, since they change no number of a trained model."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def _room_for(twin: Twin, config: TinyFormerConfig) -> dict[str, tuple[Any, ...]]:
    """List, for each of our settings that a twin restricts, the values it has room for."""
    room = dict(twin.shape)
    for ours, values in twin.choices.values():
        room[ours] = tuple(dict.fromkeys(values.values()))
    # What a twin has no setting for has one value.
    width, heads = config.hidden_size, config.num_attention_heads
    fixed = {"num_key_value_heads": heads, "head_dim": width / heads}
    if twin.bias_key is None:
        fixed |= {"attention_bias": False, "mlp_bias": False}
    known = twin.settings.values()
    room |= {key: (value,) for key, value in fixed.items() if key not in known}
    if twin.even_heads and width % heads:
        room["num_attention_heads"] = ("a divisor of hidden_size",)
    return room


def _misfits(twin: Twin, config: TinyFormerConfig) -> dict[str, tuple[Any, ...]]:
    room = _room_for(twin, config)
    return {key: values for key, values in room.items() if getattr(config, key) not in values}


def _weigh(key: str) -> int:
    """Say how far a misfit sets two architectures apart, to name the one that is nearest."""
    return {"use_qk_norm": 2}.get(key, 3 if key.endswith(("_type", "_placement")) else 1)


def find_twin(config: TinyFormerConfig) -> Twin:
    """Find the stock architecture with the same numbers.

    Args:
        config: A model's configuration.

    Returns:
        The first entry of the table with room for it.

    Raises:
        ExportError: If there is none; names the settings that stand between the model and the
            stock architecture nearest to it.
    """
    if not config.is_causal:
        raise ExportError(
            "model.is_causal is False, but every native twin predicts from what stands before. "
            "Export a causal language model."
        )
    nearest = min(TWINS, key=lambda twin: sum(map(_weigh, _misfits(twin, config))))
    misfits = _misfits(nearest, config)
    if not misfits:
        return nearest
    ours = " and ".join(f"model.{key} is {getattr(config, key)}" for key in misfits)
    theirs = " and ".join(
        f"{key} {' or '.join(map(str, values))}" for key, values in misfits.items()
    )
    raise ExportError(
        f"{ours}, but no stock architecture computes that: {nearest.class_name}, the nearest, "
        f"has {theirs}. Use the checkpoint as it is, with the hf-tinyformer package or "
        "trust_remote_code=True."
    )


def _stock_settings(twin: Twin, config: TinyFormerConfig) -> dict[str, Any]:
    settings = {theirs: getattr(config, ours) for theirs, ours in twin.settings.items()}
    for theirs, (ours, values) in twin.choices.items():
        settings[theirs] = next(
            value for value, meaning in values.items() if meaning == getattr(config, ours)
        )
    settings.update(twin.constants)
    if twin.bias_key not in (None, "always"):
        settings[str(twin.bias_key)] = config.attention_bias or config.mlp_bias
    usual = (config.head_dim or 0) * config.num_attention_heads == config.hidden_size
    if usual and "head_dim" not in twin.model_class().config_class.__dataclass_fields__:
        settings.pop("head_dim", None)  # these derive it, and only an unusual one must be said
    if settings.get("rope_parameters") is not None:
        # Stable LM would turn a quarter of each head otherwise.
        settings["rope_parameters"] = {
            **settings["rope_parameters"],
            **({"partial_rotary_factor": 1.0} if twin.architecture == "stablelm" else {}),
        }
    return settings


def stock_config(config: TinyFormerConfig) -> Any:
    """Translate a configuration into its twin's.

    Raises:
        ExportError: If it has no twin.
    """
    twin = find_twin(config)
    return twin.model_class().config_class(
        **_stock_settings(twin, config), architectures=[twin.class_name], dtype=config.dtype
    )


def _rename(weights: Weights, names: Mapping[str, str]) -> Weights:
    # In one pass and longest first, or a new name could be taken for an old one.
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, longest_first))})(?![^.])")
    return {pattern.sub(lambda m: names[m[1]], name): tensor for name, tensor in weights.items()}


def _add_zero_biases(weights: Weights) -> Weights:
    """Give every projection that lacks a bias one of zeros."""
    added = {}
    for name, tensor in weights.items():
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("_proj.weight") and bias not in weights:
            added[bias] = tensor.new_zeros(len(tensor))
    return {**weights, **added}


def _build(model_class: Any, config: Any, weights: Weights, dtype: torch.dtype) -> Any:
    # Not model_class(config): that draws random weights first, and halves the precision of rotary
    # frequencies when it is cast.
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    lost = [name for names in report.values() for name in names]
    if lost:
        raise ExportError(
            f"{model_class.__name__} and our blocks disagree on {len(lost)} weights, {lost[0]} "
            "among them. Please report this with the checkpoint's config.json."
        )
    # It was made, not loaded from a place called None.
    model.name_or_path = model.config.name_or_path = ""
    return model.eval()


def to_native(model: TinyFormerForCausalLM) -> PreTrainedModel:
    """Build the stock model with the same logits.

    Args:
        model: A causal language model of ours.

    Returns:
        Its twin, in the same dtype, on the CPU, in evaluation mode. Weights that need no new layout
        share their memory with the model's.

    Raises:
        ExportError: If it has no twin.
    """
    twin, config = find_twin(model.config), model.config
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    native_config = stock_config(config)
    if twin.bias_key and getattr(native_config, twin.bias_key, True):
        weights = _add_zero_biases(weights)
    if twin.write_weights is not None:
        weights = twin.write_weights(weights, config)
    native: PreTrainedModel = _build(
        twin.model_class(), native_config, _rename(weights, twin.names), model.dtype
    )
    return native


def _refuse(key: str, value: Any, rule: str) -> ExportError:
    return ExportError(
        f"config.json's {key} is {value}, but {rule}, so this model cannot be read exactly. "
        "Use it with transformers as it is."
    )


def _read_rope(parameters: Any) -> dict[str, Any]:
    rope = dict(parameters)
    if any(isinstance(value, dict) for value in rope.values()):
        raise _refuse("rope_parameters", f"one set for each of {', '.join(rope)}", "we have one")
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial != 1:
        raise _refuse("rope_parameters.partial_rotary_factor", partial, "we turn whole heads")
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        known = f"we have {', '.join(ROPE_TYPES)}"
        raise _refuse("rope_parameters.rope_type", rope["rope_type"], known)
    return rope


def _check_constants(twin: Twin, stock: Any) -> None:
    for key, value in twin.constants.items():
        found = getattr(stock, key, value)
        if found != value:
            raise _refuse(key, found, f"our blocks compute what {value} means")
    for key, plain in (("layer_types", "full_attention"), ("no_rope_layers", 0)):
        others = {layer for layer in getattr(stock, key, None) or () if layer != plain}
        if others:
            raise _refuse(key, f"{others.pop()} for some layers", f"all of ours are {plain}")
    if getattr(stock, "quantization_config", None) is not None:
        raise _refuse("quantization_config", "set", "ours are plain weights")


def _read_settings(twin: Twin, stock: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {ours: values[0] for ours, values in twin.shape.items()}
    for theirs, ours in twin.settings.items():
        value = getattr(stock, theirs, None)
        if ours in settings and ours not in FREE_IN_TRAINING and settings[ours] != value:
            raise _refuse(theirs, value, f"{ours} is {settings[ours]} and must be the same")
        settings[ours] = value
    for theirs, (ours, values) in twin.choices.items():
        value = getattr(stock, theirs)
        if value not in values:
            known = " or ".join(map(str, values))
            raise _refuse(theirs, value, f"for a {twin.architecture} our blocks have {known}")
        settings[ours] = values[value]
    if twin.bias_key is not None:
        has_biases = bool(getattr(stock, twin.bias_key, True))
        settings["attention_bias"] = settings["mlp_bias"] = has_biases
    if settings.get("rope_parameters") is not None:
        settings["rope_parameters"] = _read_rope(settings["rope_parameters"])
    return settings


def our_config(stock: Any) -> TinyFormerConfig:
    """Translate a stock configuration into ours.

    Args:
        stock: Configuration of a stock causal language model.

    Returns:
        The configuration of ours that computes the same.

    Raises:
        ExportError: If there is none; names the setting that we have no equal of.
    """
    twins = {twin.architecture: twin for twin in TWINS}
    if stock.model_type not in twins:
        raise _refuse("model_type", stock.model_type, f"we can read {', '.join(twins)}")
    twin = twins[stock.model_type]
    _check_constants(twin, stock)
    settings = _read_settings(twin, stock)
    try:
        return TinyFormerConfig(**settings, dtype=stock.dtype)
    except (ValueError, TypeError, StrictDataclassError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ExportError(
            f"config.json cannot be read as ours: {cause} Use the model with transformers as it is."
        ) from None


def from_native(native: PreTrainedModel) -> TinyFormerForCausalLM:
    """Build our model with the same logits as a stock one.

    Args:
        native: A causal language model of one of the table's architectures.

    Returns:
        Our model, in the same dtype, on the CPU, in evaluation mode. Weights that need no new
        layout share their memory with the stock model's.

    Raises:
        ExportError: If our blocks cannot compute what it computes; names the setting.
    """
    config = our_config(native.config)
    twin = next(twin for twin in TWINS if twin.architecture == native.config.model_type)
    weights = {name: tensor.detach().cpu() for name, tensor in native.state_dict().items()}
    weights = _rename(weights, {theirs: ours for ours, theirs in twin.names.items()})
    if twin.read_weights is not None:
        weights = twin.read_weights(weights, config)
    model: TinyFormerForCausalLM = _build(TinyFormerForCausalLM, config, weights, native.dtype)
    return model
