"""Trace a model into ONNX graphs: with a cache of keys and values, and without.

Through `torch.export` and `torch.onnx`, not through the exporter of transformers, which calls
itself experimental and has another interface in each version. Names are those that optimum gave
its graphs, which other programs look for.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

OPSET_VERSION = 20
"""The first ONNX operator set with a GELU of its own."""

WEIGHTS_NAME = "model.onnx.data"
"""File beside the graphs that holds the weights of both."""

INPUT_NAMES = ("input_ids", "attention_mask", "position_ids")

# Sizes of the traced example: all different and none of 0 or 1, which torch.export takes for fixed.
_BATCH, _SEQUENCE, _PAST = 2, 3, 4


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """Name the keys and values of all layers: `past_key_values.0.key`, `past_key_values.0.value`.

    Args:
        prefix: `past_key_values` for inputs, `present` for outputs.
        num_layers: Number of layers.
    """
    return [f"{prefix}.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


class _WithoutCache(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.causal_lm = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        logits: Tensor = self.causal_lm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).logits
        return logits


class _WithCache(_WithoutCache):
    """Tokens and earlier keys and values in; logits and all keys and values out."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        cache = DynamicCache()
        cache.layers = [_filled_layer(key, value) for key, value in past]
        logits: Tensor = self.causal_lm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits, [(layer.keys, layer.values) for layer in cache.layers]


def _filled_layer(key: Tensor, value: Tensor) -> DynamicLayer:
    # Not `update`, which would join them to an empty tensor of one dimension.
    layer = DynamicLayer()
    layer.dtype, layer.device = key.dtype, key.device
    layer.keys, layer.values, layer.is_initialized = key, value, True
    return layer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what exporters say of themselves: absent torchvision, their own deprecations.

    Yields:
        Nothing.
    """
    noisy = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class _Example:
    """What a graph is traced with."""

    module: nn.Module
    inputs: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]


def _make_example(model: Any, *, has_cache: bool) -> _Example:
    config = model.config
    past = _PAST if has_cache else 0
    varies = torch.export.Dim.DYNAMIC
    ids = torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64)
    position_ids = torch.arange(past, past + _SEQUENCE).repeat(_BATCH, 1)
    inputs: tuple[Any, ...] = (ids, torch.ones(_BATCH, past + _SEQUENCE).long(), position_ids)
    shapes: tuple[Any, ...] = ({0: varies, 1: varies},) * 3
    if not has_cache:
        return _Example(_WithoutCache(model), inputs, shapes, list(INPUT_NAMES), ["logits"])
    layers = config.num_hidden_layers
    shape = (_BATCH, config.num_key_value_heads, _PAST, config.head_dim)
    pairs = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(layers)]
    pair_shapes = [({0: varies, 2: varies},) * 2] * layers
    return _Example(
        _WithCache(model),
        (*inputs, pairs),
        (*shapes, pair_shapes),
        [*INPUT_NAMES, *cache_names("past_key_values", layers)],
        ["logits", *cache_names("present", layers)],
    )


def _drop_assertions(program: Any) -> None:
    # ONNX has no assertions. A position outside a table fails in the look-up itself.
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        if str(node.target).startswith("aten._assert"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _axis_names(name: str) -> dict[int, str]:
    if name.startswith("past_key_values."):
        return {0: "batch_size", 2: "past_sequence_length"}
    if name.startswith("present."):
        return {0: "batch_size", 2: "total_sequence_length"}
    length = "total_sequence_length" if name == "attention_mask" else "sequence_length"
    return {0: "batch_size", 1: length}


def _tidy(model: Any) -> None:
    """Name the axes, and take out where in which file of this machine each node came from.

    Args:
        model: An `onnx_ir.Model`, changed in place.
    """
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    for value in [*model.graph.inputs, *model.graph.outputs]:
        dimensions: list[Any] = list(value.shape)
        for axis, axis_name in _axis_names(value.name).items():
            dimensions[axis] = axis_name
        value.shape = onnx_ir.Shape(dimensions)
    outside = {id(value) for value in [*model.graph.inputs, *model.graph.outputs]}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outside:
                value.shape = None  # in the tracer's own symbols; readers infer it anew
    ClearMetadataAndDocStringPass()(model)
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def trace_graph(model: Any, *, has_cache: bool) -> Any:
    """Turn a model into an ONNX graph whose batch and lengths are free.

    Args:
        model: A causal language model in float32, on the CPU, in evaluation mode.
        has_cache: Whether the graph takes earlier keys and values (none at first: length 0) and
            returns them with the new ones.

    Returns:
        An `onnx_ir.Model`.
    """
    example = _make_example(model, has_cache=has_cache)
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            example.module, example.inputs, dynamic_shapes=example.dynamic_shapes, strict=False
        )
        _drop_assertions(program)
        onnx_program = torch.onnx.export(
            program,
            input_names=example.input_names,
            output_names=example.output_names,
            opset_version=OPSET_VERSION,
            dynamo=True,
            verbose=False,
        )
    assert onnx_program is not None  # it is None only for the exporter before this one
    _tidy(onnx_program.model)
    return onnx_program.model


def save_graphs(graphs: dict[str, Any], folder: Path) -> None:
    """Write graphs that share one file of weights.

    Args:
        graphs: From file name to `onnx_ir.Model`. Weights that the first has, the others read from
            its file.
        folder: An existing folder.
    """
    import onnx_ir

    stored: dict[tuple[Any, ...], Any] = {}
    for name, graph in graphs.items():
        if not stored:
            onnx_ir.save(graph, folder / name, external_data=WEIGHTS_NAME)
            for value in onnx_ir.load(folder / name).graph.initializers.values():
                if isinstance(value.const_value, onnx_ir.ExternalTensor):
                    stored[_content(value.const_value)] = value.const_value
            continue
        # By content: where a weight was turned on its side beforehand, it has another name.
        for value in graph.graph.initializers.values():
            value.const_value = stored.get(_content(value.const_value), value.const_value)
        onnx_ir.save(graph, folder / name)


def _content(tensor: Any) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
