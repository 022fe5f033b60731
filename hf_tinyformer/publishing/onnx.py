"""Write a model as ONNX, which onnxruntime runs without torch and transformers.

The folder holds two graphs that share their weights: `model.onnx` with a cache of keys and values,
and `model_without_cache.onnx`. It gets its name only after onnxruntime has given the checkpoint's
logits with both.
"""

import itertools
import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hf_tinyformer.artifacts import check_replaceable, write_folder
from hf_tinyformer.data.tokenization.tokenizer import write_tokenizer_files
from hf_tinyformer.errors import ExportError
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.publishing.extras import require_libraries
from hf_tinyformer.publishing.onnx_graphs import cache_names, save_graphs, trace_graph
from hf_tinyformer.publishing.parity import (
    Parity,
    allow_fraction,
    compute_logits,
    generate_greedily,
    probe_rows,
)

logger = logging.getLogger(__name__)

CACHED_NAME, UNCACHED_NAME = "model.onnx", "model_without_cache.onnx"
TOLERANCE = 1e-5
"""Allowed difference as a fraction of the largest logit: ten times what float32 rounds away."""

GREEDY_TOKENS = 32


class OnnxModel:
    """One of the two graphs, run by onnxruntime on numpy arrays.

    Args:
        path: A graph that `export_onnx` wrote.
        config: The model's configuration, for the shape of an empty cache.
    """

    def __init__(self, path: Path, config: Any) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own optimizations
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._num_layers = config.num_hidden_layers
        self._heads, self._head_dim = config.num_key_value_heads, config.head_dim
        self.has_cache = len(self._session.get_outputs()) > 1

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, past: list[np.ndarray] | None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Compute logits.

        Args:
            input_ids: New tokens, int64, shape `(batch, sequence)`.
            attention_mask: 1 for real tokens, int64, shape `(batch, past + sequence)`.
            past: What the last call returned, or None at first.

        Returns:
            Logits of shape `(batch, sequence, vocab_size)`, and all keys and values so far.
        """
        sequence = input_ids.shape[1]
        positions = np.maximum(attention_mask.cumsum(-1) - 1, 0)[:, -sequence:]
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions,
        }
        if self.has_cache:
            empty = np.zeros((len(input_ids), self._heads, 0, self._head_dim), np.float32)
            past = past or [empty] * (2 * self._num_layers)
            names = cache_names("past_key_values", self._num_layers)
            feed |= dict(zip(names, past, strict=True))
        logits, *present = self._session.run(None, feed)
        return logits, present

    def generate(self, row: Sequence[int], max_new_tokens: int) -> tuple[list[int], np.ndarray]:
        """Continue a row with the likeliest token each time.

        Args:
            row: Token ids of the prompt.
            max_new_tokens: Tokens to add.

        Returns:
            The tokens added, and the logits each was chosen from.
        """
        tokens, past, new = list(row), None, list(row)
        chosen = []
        for _ in range(max_new_tokens):
            mask = np.ones((1, len(tokens)), np.int64)
            logits, past = self.run(np.array([new], np.int64), mask, past)
            chosen.append(logits[0, -1])
            tokens.append(int(chosen[-1].argmax()))
            new = tokens[-1:] if self.has_cache else tokens
        return tokens[len(row) :], np.stack(chosen)


def _pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, rows))
    input_ids = np.full((len(rows), longest), pad, np.int64)
    mask = np.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = 1
    return input_ids, mask


def _compare_batch(
    onnx_model: OnnxModel, rows: Sequence[Sequence[int]], expected: Sequence[np.ndarray], p: Parity
) -> None:
    input_ids, mask = _pad_left(rows, pad=0)
    logits, _ = onnx_model.run(input_ids, mask, None)
    for row, ours, theirs in zip(rows, expected, logits, strict=True):
        p.compare(ours, theirs[-len(row) :], f"onnxruntime, for {len(rows)} padded rows,")


def _compare_pieces(
    onnx_model: OnnxModel, row: Sequence[int], expected: np.ndarray, p: Parity
) -> None:
    past: list[np.ndarray] | None = None
    cuts = sorted({0, min(3, len(row)), min(4, len(row)), len(row)})
    for start, stop in itertools.pairwise(cuts):
        mask = np.ones((1, stop), np.int64)
        logits, past = onnx_model.run(np.array([row[start:stop]], np.int64), mask, past)
        p.compare(expected[start:stop], logits[0], "onnxruntime, reading with its cache,")


def _compare_greedy(onnx_model: OnnxModel, model: Any, row: Sequence[int], p: Parity) -> int:
    room = min(GREEDY_TOKENS, model.config.max_position_embeddings - len(row))
    if room < 1:
        return 0
    expected = generate_greedily(model, row, room)
    found, logits = onnx_model.generate(row, len(expected))
    for step, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours == theirs:
            continue
        if logits[step, theirs] - logits[step, ours] <= 2 * p.tolerance:
            return step  # a tie within rounding; from here on the texts have different pasts
        raise ExportError(
            f"onnxruntime chose token {theirs} at step {step} of a greedy text, but generate chose "
            f"{ours}. Nothing was written; please report this with the checkpoint's config.json."
        )
    return len(expected)


def _prove(folder: Path, model: Any, rows: list[list[int]]) -> dict[str, Any]:
    expected = [compute_logits(model, row) for row in rows]
    parity = Parity(tolerance=allow_fraction(expected, TOLERANCE))
    greedy = 0
    for name in (CACHED_NAME, UNCACHED_NAME):
        onnx_model = OnnxModel(folder / name, model.config)
        for row, logits in zip(rows, expected, strict=True):
            _compare_batch(onnx_model, [row], [logits], parity)
        _compare_batch(onnx_model, rows, expected, parity)
        if onnx_model.has_cache:
            _compare_pieces(onnx_model, rows[0], expected[0], parity)
        greedy = _compare_greedy(onnx_model, model, rows[0][:8], parity)
    return {
        "tolerance": parity.tolerance,
        "largest_difference": parity.largest_difference,
        "positions": parity.positions,
        "greedy_tokens": greedy,
        "runtime": f"onnxruntime {version('onnxruntime')}",
    }


def _check_model(model: Any, checkpoint: Path) -> None:
    if model.config.model_type != "tinyformer":
        raise ExportError(
            f"{checkpoint} is a {model.config.model_type}, but --to onnx writes TinyFormers. "
            "Turn it into one first: tinyformer import."
        )
    rope = (model.config.rope_parameters or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ExportError(
            f"rope_parameters.rope_type is {rope}, whose angles depend on how long the text is, "
            "but a graph of ONNX is the same for every text. Export with another rope_type."
        )


def _write_config(config: Any, folder: Path) -> None:
    settings = json.loads(config.to_json_string())
    for name in ("auto_map", "_name_or_path"):  # there is no code beside it, and it came from here
        settings.pop(name, None)
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def export_onnx(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint as ONNX, whole and proven or not at all.

    Args:
        checkpoint: Folder of a TinyFormer, such as `runs/demo/final`.
        out: Where the export will stand; an older export is replaced.

    Returns:
        What is in `export.json`: what was compared, the tolerance, the largest difference seen.

    Raises:
        ExportError: If a library is missing, the model has no ONNX form, or onnxruntime does not
            give the checkpoint's logits.
        ArtifactError: If the checkpoint cannot be loaded, or `out` holds something else.
    """
    check_replaceable(out, kind="export")
    require_libraries(("onnx", "onnxscript", "onnxruntime"), extra="onnx", purpose="--to onnx")
    model, tokenizer = load_checkpoint(checkpoint)
    _check_model(model, checkpoint)
    rows = probe_rows(model, tokenizer)
    record: dict[str, Any] = {"format": "onnx", "architecture": "tinyformer", "dtype": "float32"}
    with write_folder(out, kind="export", facts=record) as staging:
        graphs = {}
        # Eager attention: products and a softmax, which every runtime has, and no branches on size.
        attention = model.config._attn_implementation
        model.set_attn_implementation("eager")
        for name, has_cache in ((CACHED_NAME, True), (UNCACHED_NAME, False)):
            logger.info("tracing %s", name)
            graphs[name] = trace_graph(model, has_cache=has_cache)
        model.set_attn_implementation(attention)
        save_graphs(graphs, staging)
        _write_config(model.config, staging)
        write_tokenizer_files(tokenizer, staging)
        logger.info("comparing with onnxruntime")
        record |= _prove(staging, model, rows)
        record["versions"] = {name: version(name) for name in ("torch", "transformers", "onnx")}
        text = json.dumps(record, indent=2) + "\n"
        (staging / "export.json").write_text(text, encoding="utf-8")
    return record
