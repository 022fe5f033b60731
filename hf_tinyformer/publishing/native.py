"""Write a model as its native twin: the stock architecture of transformers with the same logits.

What is written loads in every program that knows the stock architecture, with no code of ours. The
folder gets its name only after transformers' own class, loaded from it, has given the checkpoint's
logits and the checkpoint's text.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_tinyformer.artifacts import check_replaceable, write_folder
from hf_tinyformer.data.tokenization.tokenizer import write_tokenizer_files
from hf_tinyformer.errors import ExportError
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.publishing.final import scrub_settings
from hf_tinyformer.publishing.parity import (
    SAMPLE_TEXTS,
    Parity,
    allow_fraction,
    compute_logits,
    generate_greedily,
    probe_rows,
)
from hf_tinyformer.publishing.twin_table import Twin
from hf_tinyformer.publishing.twins import find_twin, to_native

TOLERANCE = 1e-5
"""Allowed difference as a fraction of the largest logit, some ten times what float32 rounds."""

GREEDY_TOKENS = 32


def _compare_greedy(ours: Any, theirs: Any, row: Sequence[int], tolerance: float) -> int:
    """Compare what two models write, and return the number of tokens that they share."""
    room = min(GREEDY_TOKENS, ours.config.max_position_embeddings - len(row))
    if room < 1:
        return 0
    expected = generate_greedily(ours, row, room)
    found = generate_greedily(theirs, row, room)
    if expected == found:
        return len(expected)
    step = next(i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b)
    logits = compute_logits(ours, [*row, *expected[:step]])[-1]
    # A tie within rounding is nobody's fault; from there on the texts have different pasts.
    if logits[expected[step]] - logits[found[step]] > 2 * tolerance:
        raise ExportError(
            f"the twin chose token {found[step]} at step {step} of a greedy text, but the "
            f"checkpoint chose {expected[step]}. Nothing was written; please report this with the "
            "checkpoint's config.json."
        )
    return step


def compare_models(ours: Any, theirs: Any, tokenizer: Any) -> dict[str, Any]:
    """Prove that two models give the same logits and write the same text.

    Args:
        ours: The model to compare with, float32.
        theirs: The other one, float32.
        tokenizer: The tokenizer of both.

    Returns:
        The tolerance, the largest difference seen, and how much was compared.

    Raises:
        ExportError: If they differ by more than rounding.
    """
    rows = probe_rows(ours, tokenizer)
    expected = [compute_logits(ours, row) for row in rows]
    parity = Parity(tolerance=allow_fraction(expected, TOLERANCE))
    for row, logits in zip(rows, expected, strict=True):
        parity.compare(logits, compute_logits(theirs, row), type(theirs).__name__)
    return {
        "tolerance": parity.tolerance,
        "largest_difference": parity.largest_difference,
        "positions": parity.positions,
        "greedy_tokens": _compare_greedy(ours, theirs, rows[0][:8], parity.tolerance),
    }


def compare_tokenizers(ours: Any, theirs: Any) -> None:
    """Prove that two tokenizers cut the sample texts alike and put the same tokens around them.

    Raises:
        ExportError: If they do not.
    """
    for text in SAMPLE_TEXTS:
        expected, found = (t(text, verbose=False)["input_ids"] for t in (ours, theirs))
        if expected != found:
            raise ExportError(
                f"the tokenizer cuts {text[:20]!r} into {found[:8]} once it is written and loaded "
                f"again, but {expected[:8]} was meant. Nothing was written; please report this."
            )


def _write_plain_tokenizer(tokenizer: Any, folder: Path) -> str | None:
    """Write the tokenizer without code of ours, and say what is lost by that."""
    write_tokenizer_files(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.pop("auto_map", None) is None:
        return None
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return (
        "Its tokens are letters of Hangul, and the plain tokenizer gives them back as they are: "
        'put syllables together with `unicodedata.normalize("NFC", text)`.'
    )


def _note_on_context(config: TinyFormerConfig, twin: Twin) -> str | None:
    baked = config.position_embedding_type in ("sinusoidal", "none")
    if not baked or "learned" not in twin.shape["position_embedding_type"]:
        return None
    return (
        "The original's positions have no end; the table written here ends at "
        f"{config.max_position_embeddings} tokens."
    )


_HOW_TO_LOAD = """\
## How to load it

These are the weights of {name} in transformers' own `{architecture}`: renamed, and
otherwise as they were. No code from this folder and no other package is needed:

```python
from transformers import pipeline

generate = pipeline("text-generation", "{name}")  # this folder, or its id on the Hub
print(generate({prompt})[0]["generated_text"])
```

In float32 its logits differ from the original's by {largest_difference:.2g} at most, over
{positions} places of text and random tokens ({tolerance:.2g} would be rounding), and its greedy
text is the same."""


def _add_older_names(folder: Path) -> None:
    """Say the rotary angles in the words of transformers 4 too, which other programs still read.

    They would pass over `rope_parameters` without a word, and turn by other angles.
    """
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    rope = settings.get("rope_parameters")
    if not rope:
        return
    rest = {key: value for key, value in rope.items() if key != "rope_theta"}
    settings["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rest:
        settings["partial_rotary_factor"] = rest.pop("partial_rotary_factor")
    settings["rope_scaling"] = rest if rest["rope_type"] != "default" else None
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def read_card(checkpoint: Path) -> str:
    """Read a model's card; it is empty if there is none.

    Args:
        checkpoint: Folder of a model.

    Raises:
        ExportError: If the file is not text in UTF-8.
    """
    card = checkpoint / "README.md"
    try:
        return card.read_text(encoding="utf-8") if card.is_file() else ""
    except UnicodeDecodeError as error:
        raise ExportError(
            f"{card} is not UTF-8 at byte {error.start}, but an export takes along what the card "
            "says. Save the file as UTF-8."
        ) from None


def _write_card(
    checkpoint: Path, folder: Path, record: Mapping[str, Any], notes: list[str]
) -> None:
    """Keep the model's card, and tell in the place of its loading how this folder loads."""
    content = read_card(checkpoint) or f"# {checkpoint.name}\n"
    name = re.search(r"^# (.+)$", content, flags=re.MULTILINE)
    prompt = re.search(r"generate\((\".*\")\)\[0\]", content)
    how = _HOW_TO_LOAD.format(
        name=name[1] if name else checkpoint.name, prompt=prompt[1] if prompt else '""', **record
    )
    section = "\n\n".join([how, *notes]) + "\n"
    old = re.compile(r"^## How to load it\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    if old.search(content):
        content = old.sub(lambda _: f"{section}\n", content, count=1)
    else:
        content = f"{content.rstrip()}\n\n{section}"
    (folder / "README.md").write_text(content, encoding="utf-8")


def _load_ours(checkpoint: Path) -> tuple[TinyFormerForCausalLM, Any]:
    model, tokenizer = load_checkpoint(checkpoint, dtype="auto")
    if not isinstance(model, TinyFormerForCausalLM):
        raise ExportError(
            f"{checkpoint} is a {model.config.model_type}, but --to native is for TinyFormers. "
            "Use it as it is: its architecture is transformers' own."
        )
    if model.config.position_embedding_type == "sinusoidal":
        # The table that is written would lose digits that the waves have in every precision.
        model = model.float()
    return model, tokenizer


def _prove(folder: Path, model: TinyFormerForCausalLM, tokenizer: Any) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    assert not any(report.values()), report
    record = compare_models(model.float(), loaded, tokenizer)
    compare_tokenizers(tokenizer, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    return record


def export_native(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint in the stock architecture that computes the same, or nothing at all.

    The weights keep their dtype; only a model with sinusoidal positions is written in float32.

    Args:
        checkpoint: Folder of a TinyFormer, such as `runs/demo/final`.
        out: Where the export will stand; an older export is replaced.

    Returns:
        What is in `export.json`: what was compared, the tolerance, the largest difference seen.

    Raises:
        ExportError: If the model has no twin, or the twin, loaded again, is not the same model.
        ArtifactError: If the checkpoint cannot be loaded, or `out` holds something else.
    """
    check_replaceable(out, kind="export")
    model, tokenizer = _load_ours(checkpoint)
    twin = find_twin(model.config)
    dtype = str(model.dtype).removeprefix("torch.")
    record: dict[str, Any] = {"format": "native", "architecture": twin.class_name, "dtype": dtype}
    with write_folder(out, kind="export", facts=record) as staging:
        to_native(model).save_pretrained(staging)
        for weights in staging.glob("*.safetensors"):
            # safetensors makes files that only their owner may read.
            shutil.copymode(staging / "config.json", weights)
        generation = checkpoint / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, staging / generation.name)
        notes = [_write_plain_tokenizer(tokenizer, staging), _note_on_context(model.config, twin)]
        scrub_settings(staging)
        _add_older_names(staging)
        record |= _prove(staging, model, tokenizer)
        record["versions"] = {name: version(name) for name in ("torch", "transformers")}
        text = json.dumps(record, indent=2) + "\n"
        (staging / "export.json").write_text(text, encoding="utf-8")
        _write_card(checkpoint, staging, record, [note for note in notes if note])
    return record
