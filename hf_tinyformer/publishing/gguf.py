"""Write a model as GGUF, the format of llama.cpp, Ollama and LM Studio.

A GGUF file holds a stock architecture, so the model needs a native twin that llama.cpp knows. What
was written is read back three times, each by other code, before the folder gets its name:

1. every tensor by the `gguf` package: nothing moved by more than its storage rounds;
2. the model by transformers' own reader of GGUF files: the logits that those weights give;
3. the model by llama.cpp itself, where the package xllamacpp is installed: the probabilities, the
   cuts of texts, and in float32 the greedy text.
"""

import contextlib
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_tinyformer.artifacts import check_replaceable, write_folder
from hf_tinyformer.errors import ExportError
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.publishing.extras import require_libraries
from hf_tinyformer.publishing.gguf_file import read_about, read_arrays, write_gguf
from hf_tinyformer.publishing.gguf_layout import (
    DTYPES,
    Layout,
    check_architecture,
    rounding_bound,
)
from hf_tinyformer.publishing.gguf_vocabulary import read_vocabulary
from hf_tinyformer.publishing.llama_cpp import ask, has_llama_cpp
from hf_tinyformer.publishing.parity import (
    SAMPLE_TEXTS,
    Parity,
    allow_fraction,
    compute_logits,
    generate_greedily,
    probe_rows,
)
from hf_tinyformer.publishing.twins import find_twin, to_native

logger = logging.getLogger(__name__)

READER_TOLERANCE = 1e-5
"""For transformers' reader, as a fraction of the largest logit: the same weights, so float32's
rounding."""

LLAMA_CPP_TOLERANCE = 1e-5
"""For llama.cpp with float32 weights, as a fraction of the largest log-probability."""

GELU_TOLERANCE = 2e-3
"""The same where the feed-forward layer is a GELU, which llama.cpp looks up in a table of
float16."""

ROUNDING_TOLERANCE = 3
"""Added for weights of fewer digits, as a multiple of what rounding them changed: llama.cpp rounds
the activations that meet them to the same type, which moves logits about as far again."""

SCORED_PREFIXES = 24
LONGEST_ROW = 512
"""Tokens that llama.cpp makes room for, however long the context."""

GREEDY_TOKENS = 32

_UNREAD_BY_TRANSFORMERS = ("arcee",)


@dataclass(frozen=True)
class _Export:
    """What is about to be proven."""

    path: Path
    dtype: str
    layout: Layout
    native: Any
    """The twin, with the weights that the file holds."""

    tokenizer: Any
    mlp_type: str
    rows: list[list[int]]
    """Tokens to compare on."""

    changed: float
    """How far rounding the weights moved the logits."""


def _compare_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], storage: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Read a file's tensors back and compare them with what they were made from.

    Args:
        path: The file.
        arrays: What was to be stored, float32.
        storage: In which of ggml's types.

    Returns:
        What is stored, float32.

    Raises:
        ExportError: If a tensor is missing, or moved by more than its type rounds.
    """
    stored = read_arrays(path)
    for name, array in arrays.items():
        found = stored.get(name)
        if found is None or found.shape != array.shape:
            raise ExportError(
                f"{name} is {'missing from' if found is None else found.shape} {path.name}, but "
                f"{array.shape} was to be stored. Nothing was written; please report this."
            )
        moved = np.abs(found.astype(np.float64) - array)
        if not (moved <= rounding_bound(array, storage[name])).all():
            raise ExportError(
                f"{name} is {moved.max():.3g} off in {path.name}, but {storage[name]} rounds by "
                f"{rounding_bound(array, storage[name]).max():.3g} at most. Nothing was written; "
                "please report this."
            )
    return stored


def _compare_reader(export: _Export) -> dict[str, Any]:
    """Compare with what transformers makes of the file."""
    expected = [compute_logits(export.native, row) for row in export.rows]
    parity = Parity(tolerance=allow_fraction(expected, READER_TOLERANCE))
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that nothing switches off
        model = type(export.native).from_pretrained(
            export.path.parent,
            gguf_file=export.path.name,
            config=export.native.config,
            dtype=torch.float32,
        )
    for row, logits in zip(export.rows, expected, strict=True):
        parity.compare(logits, compute_logits(model.eval(), row), "transformers' reader of GGUF")
    return {
        "reader": f"transformers {version('transformers')}",
        "tolerance": parity.tolerance,
        "largest_difference": parity.largest_difference,
        "positions": parity.positions,
    }


def _log_probabilities(model: Any, row: list[int]) -> np.ndarray:
    logits = torch.from_numpy(compute_logits(model, row))
    return logits.log_softmax(dim=-1).numpy()


def _compare_cuts(export: _Export, cuts: list[list[int]]) -> None:
    for text, found in zip(SAMPLE_TEXTS, cuts, strict=True):
        expected = export.tokenizer(text, verbose=False)["input_ids"]
        if found != expected:
            raise ExportError(
                f"llama.cpp cuts {text[:20]!r} into {found[:8]}, but the tokenizer into "
                f"{expected[:8]}. Nothing was written; please report this with tokenizer.json."
            )


def _compare_greedy(export: _Export, prompt: list[int], found: list[int], tolerance: float) -> int:
    """Compare greedy texts and return how many tokens are the same."""
    expected = generate_greedily(export.native, prompt, GREEDY_TOKENS)
    for step, (ours, theirs) in enumerate(zip(expected, found, strict=False)):
        if ours == theirs:
            continue
        scores = _log_probabilities(export.native, [*prompt, *expected[:step]])[-1]
        if export.dtype == "f32" and scores[ours] - scores[theirs] > 2 * tolerance:
            raise ExportError(
                f"llama.cpp chose token {theirs} at step {step} of a greedy text, but transformers "
                f"chose {ours}. Nothing was written; please report this."
            )
        return step  # from here on the texts have different pasts
    return min(len(expected), len(found))


def _compare_llama_cpp(export: _Export) -> dict[str, Any]:
    """Compare with what llama.cpp makes of the file."""
    config, rows = export.native.config, export.rows
    # One question a prefix, so a few of them: every length up to a dozen, then the whole rows.
    prefixes = [rows[0][:stop] for stop in range(1, min(len(rows[0]), SCORED_PREFIXES // 2) + 1)]
    prefixes = (prefixes + rows)[:SCORED_PREFIXES]
    context = min(config.max_position_embeddings, LONGEST_ROW)
    # llama.cpp keeps room for the token that it is asked for.
    prefixes = [row[: context - 1] for row in prefixes]
    prompt = rows[0][:8]
    room = min(GREEDY_TOKENS, context - len(prompt))
    answers = ask(
        export.path,
        context=context,
        vocab_size=config.vocab_size,
        texts=SAMPLE_TEXTS,
        rows=prefixes,
        prompt=prompt,
        max_new_tokens=max(0, room),
    )
    _compare_cuts(export, answers.tokens)
    expected = [_log_probabilities(export.native, row)[-1:] for row in prefixes]
    fraction = GELU_TOLERANCE if export.mlp_type == "gelu" else LLAMA_CPP_TOLERANCE
    tolerance = allow_fraction(expected, fraction) + ROUNDING_TOLERANCE * export.changed
    parity = Parity(tolerance=tolerance)
    for ours, theirs in zip(expected, answers.scores, strict=True):
        parity.compare(ours, theirs[None], "llama.cpp")
    return {
        "runtime": f"llama.cpp of xllamacpp {version('xllamacpp')}",
        "tolerance": parity.tolerance,
        "largest_difference": parity.largest_difference,
        "positions": parity.positions,
        "texts_cut_alike": len(SAMPLE_TEXTS),
        "greedy_tokens": _compare_greedy(export, prompt, answers.greedy, parity.tolerance),
        "tokens_per_second": round(answers.tokens_per_second, 1),
    }


def _largest_change(original: list[np.ndarray], native: Any, rows: list[list[int]]) -> float:
    pairs = zip(original, rows, strict=True)
    return max(float(np.abs(ours - compute_logits(native, row)).max()) for ours, row in pairs)


def _prove(export: _Export) -> dict[str, Any]:
    """Compare with every reader that is here; the last one's figures are the export's."""
    readers: dict[str, Any] = {}
    figures = {"tolerance": export.changed, "largest_difference": export.changed}
    if export.layout.architecture not in _UNREAD_BY_TRANSFORMERS:
        logger.info("comparing with transformers' reader")
        readers["transformers"] = figures = _compare_reader(export)
    if has_llama_cpp():
        logger.info("comparing with llama.cpp")
        readers["llama_cpp"] = figures = _compare_llama_cpp(export)
    else:
        logger.info("llama.cpp is not compared with: pip install 'hf-tinyformer[llamacpp]'")
    return {**readers, **{key: figures[key] for key in ("tolerance", "largest_difference")}}


def _file_name(name: str, dtype: str) -> str:
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    return f"{slug}-{dtype}.gguf"


def _check_model(model: Any, checkpoint: Path) -> None:
    if model.config.model_type != "tinyformer":
        raise ExportError(
            f"{checkpoint} is a {model.config.model_type}, but --to gguf writes TinyFormers. "
            "Turn it into one first: tinyformer import."
        )


def export_gguf(checkpoint: Path, out: Path, *, dtype: str = "f16") -> dict[str, Any]:
    """Write a checkpoint as GGUF, whole and proven or not at all.

    Args:
        checkpoint: Folder of a TinyFormer, such as `runs/demo/final`.
        out: Where the export will stand; an older export is replaced.
        dtype: What matrices are stored in: `f32`, `f16`, `bf16` or `q8_0`.

    Returns:
        What is in `export.json`: what was compared, the tolerances, the largest differences seen.

    Raises:
        ExportError: If a library is missing, llama.cpp does not know the model's twin or could not
            cut text as its tokenizer does, or a reader does not give the model's numbers.
        ArtifactError: If the checkpoint cannot be loaded, or `out` holds something else.
    """
    check_replaceable(out, kind="export")
    require_libraries(("gguf",), extra="gguf", purpose="--to gguf")
    if dtype not in DTYPES:
        raise ExportError(
            f"--dtype is {dtype}, but GGUF is written in {', '.join(DTYPES)}. Choose one of them."
        )
    model, tokenizer = load_checkpoint(checkpoint)
    _check_model(model, checkpoint)
    twin = find_twin(model.config).architecture
    check_architecture(twin, model.config)
    vocabulary = read_vocabulary(tokenizer, model.config.vocab_size)
    rows = probe_rows(model, tokenizer)
    original = [compute_logits(model, row) for row in rows]
    native = to_native(model)
    layout = Layout(twin, native.config)
    arrays = layout.write(native.state_dict())
    about = read_about(checkpoint)
    record: dict[str, Any] = {"format": "gguf", "architecture": twin, "dtype": dtype}
    with write_folder(out, kind="export", facts=record) as staging:
        path = staging / _file_name(about.name, dtype)
        storage = write_gguf(path, layout, arrays, vocabulary, about, dtype)
        stored = _compare_tensors(path, arrays, storage)
        # From here on the twin's weights are the stored ones, and the model's, which share memory.
        native.load_state_dict(layout.read(stored, native.state_dict()), strict=False)
        native.tie_weights()
        changed = _largest_change(original, native, rows)
        export = _Export(
            path, dtype, layout, native, tokenizer, model.config.mlp_type, rows, changed
        )
        record |= {
            "file": path.name,
            "bytes": path.stat().st_size,
            "stored_as": {kind: list(storage.values()).count(kind) for kind in DTYPES.values()},
            "largest_change_by_rounding": changed,
            **_prove(export),
            "versions": {name: version(name) for name in ("torch", "transformers", "gguf")},
        }
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (staging / "export.json").write_text(text, encoding="utf-8")
    return record
