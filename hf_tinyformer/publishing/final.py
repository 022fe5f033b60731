"""Write `final/`: the folder that any Hugging Face program loads.

Weights, configuration, tokenizer, the model's own source files and a card. The folder is loaded
again before it gets its name, so a folder with that name has shown that it gives the same logits.
"""

import ast
import importlib.resources
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_tinyformer.artifacts import MANIFEST_NAME, hash_file, read_file_hashes, write_folder
from hf_tinyformer.data.tokenization.tokenizer import check_ids, write_tokenizer_files
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.inference.chat import find_end_of_turn
from hf_tinyformer.inference.evaluation import evaluation_mode
from hf_tinyformer.inference.generation import (
    TEMPERATURE,
    TOP_K,
    TOP_P,
    encode_prompt,
    generate_text,
    join_texts,
)
from hf_tinyformer.publishing.card import CardFacts, render_card

CURVE_NAME = "loss.png"
INDEX_NAME = "model.safetensors.index.json"
SAMPLE_TOKENS = 100
SAMPLE_SEED = 0
LOCAL_KEYS = ("_name_or_path", "name_or_path", "_commit_hash")
"""What transformers may write of where a model came from."""


def model_room() -> Path:
    """Return the folder of the installed model room, whose files a checkpoint carries."""
    return Path(str(importlib.resources.files("hf_tinyformer.model")))


def _sibling_imports(source: str) -> set[str]:
    return {
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    }


def list_code_files(modules: Iterable[str]) -> list[Path]:
    """List the model room's files that some modules need: themselves and all they import.

    Args:
        modules: Names of modules of the room, as in an `auto_map`.

    Returns:
        Paths, sorted by name.

    Raises:
        ArtifactError: If the room has no such module.
    """
    found: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module in found:
            continue
        path = model_room() / f"{module}.py"
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing, but the model's auto_map needs it. "
                "Install hf-tinyformer again."
            )
        found[module] = path
        pending += _sibling_imports(path.read_text(encoding="utf-8"))
    return [found[module] for module in sorted(found)]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def modules_in_auto_map(folder: Path) -> set[str]:
    """Name the modules that the `auto_map` of a folder's configuration and tokenizer point to."""
    modules = set()
    for name in ("config.json", "tokenizer_config.json"):
        settings = _read_json(folder / name) if (folder / name).is_file() else {}
        for target in settings.get("auto_map", {}).values():
            # A tokenizer has two entries, slow and fast, of which one may be null.
            for reference in target if isinstance(target, list) else [target]:
                if reference:
                    modules.add(reference.rpartition(".")[0])
    return modules


def _write_code(folder: Path) -> None:
    for path in list_code_files(modules_in_auto_map(folder)):
        (folder / path.name).write_bytes(path.read_bytes())


def _write_generation_config(folder: Path, model: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    # Longer texts than the context would ask a learned table for positions that it does not have.
    length = max(1, min(128, model.config.max_position_embeddings // 2))
    end_of_turn = find_end_of_turn(tokenizer) if tokenizer.chat_template else None
    ends = sorted({tokenizer.eos_token_id, end_of_turn} - {None})
    GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        top_p=TOP_P,
        max_new_tokens=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def scrub_settings(folder: Path) -> None:
    """Take out of a folder's settings what transformers wrote of where they came from."""
    for path in folder.glob("*.json"):
        settings = _read_json(path)
        if any(key in settings for key in LOCAL_KEYS):
            kept = {key: value for key, value in settings.items() if key not in LOCAL_KEYS}
            text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def write_model_files(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write what loads: weights, configuration, tokenizer and the model's own source files.

    Args:
        folder: An existing folder.
        model: A TinyFormer, unwrapped.
        tokenizer: Its tokenizer.

    Raises:
        ArtifactError: If a source file that the checkpoint needs is missing.
    """
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        # safetensors makes files that only their owner may read.
        shutil.copymode(folder / "config.json", weights)
    write_tokenizer_files(tokenizer, folder)
    scrub_settings(folder)
    _write_code(folder)


def _check_pair(model: Any, tokenizer: Any) -> None:
    check_ids(tokenizer, model.config.vocab_size, "the run")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(model.config, name), getattr(tokenizer, name)
        if ours != theirs:
            raise ArtifactError(
                f"model.{name} is {ours}, but the tokenizer's {name} is {theirs}. "
                "Use the tokenizer that the model was trained with."
            )


def _compute_logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    with evaluation_mode(model):
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def verify_final(folder: Path, model: Any, tokenizer: Any) -> None:
    """Load a folder as a user would, and compare it with the model and tokenizer it was made from.

    Args:
        folder: A folder that `write_final` writes.
        model: The model it was written from.
        tokenizer: Its tokenizer.

    Raises:
        ArtifactError: If a weight, a logit, a token or a source file is not the same.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=model.dtype,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=model.config._attn_implementation,
    ).to(model.device)
    length = min(64, model.config.max_position_embeddings)
    input_ids = torch.arange(length, device=model.device)[None] % model.config.vocab_size
    text = "The quick brown fox, 빠른 여우 \U0001f98a\n\tjumps."
    loaded_tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    same = {
        "logits": torch.equal(
            _compute_logits(model, input_ids), _compute_logits(loaded, input_ids)
        ),
        "tokens": tokenizer(text, verbose=False) == loaded_tokenizer(text, verbose=False),
        "source files": all(
            (folder / path.name).read_bytes() == path.read_bytes()
            for path in list_code_files(modules_in_auto_map(folder))
        ),
    }
    for what, is_same in same.items():
        if not is_same:
            raise ArtifactError(
                f"{folder} gives other {what} than the model it was written from. "
                "Nothing was published; please report this with the run's config.yaml."
            )


def check_weights(folder: Path, weights: Collection[str], *, owner: str, advice: str) -> None:
    """Check that weights are whole, and that an index names none but them.

    Args:
        folder: Where they lie.
        weights: Names of files.
        owner: Whose they are, for the message.
        advice: What to do, for the message.

    Raises:
        ArtifactError: If a file is cut or of another format, or an index names one too many.
    """
    from safetensors import SafetensorError, safe_open

    for name in weights:
        try:
            with safe_open(folder / name, framework="pt") as stream:
                stream.keys()
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{owner} has a {name} that is no whole safetensors file: {error}. {advice}"
            ) from None
    if not (folder / INDEX_NAME).is_file():
        return
    try:
        shards = set(_read_json(folder / INDEX_NAME)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{owner} has a {INDEX_NAME} that names no files of weights. {advice}"
        ) from None
    for name in sorted(shards - set(weights), key=str):
        raise ArtifactError(
            f"{owner} has a {INDEX_NAME} that names {name!r}, but no such weights. {advice}"
        )


def check_hashes(folder: Path, weights: Collection[str], *, advice: str) -> None:
    """Check weights against the manifest of their folder, if it has one.

    Args:
        folder: Where they lie. Its other files may have been edited.
        weights: Names of files.
        advice: What to do, for the message.

    Raises:
        ArtifactError: If a file is not the one that the manifest vouches for.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return
    known = read_file_hashes(folder)
    for name in weights:
        if known.get(name, {}).get("sha256") != hash_file(folder / name):
            raise ArtifactError(
                f"{folder / name} does not have the SHA-256 that {MANIFEST_NAME} says. {advice} "
                f"If you changed it on purpose, remove {MANIFEST_NAME}."
            )


def _make_sample(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    text = generate_text(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS, seed=SAMPLE_SEED)
    has_tokens = bool(tokenizer(prompt, verbose=False)["input_ids"])
    return {
        # `generate` cannot go on with no token at all, so the token is named that ours begins with.
        "start": prompt if has_tokens else tokenizer.decode(encode_prompt(tokenizer, prompt)),
        "text": join_texts(tokenizer, prompt, text),
        "tokens": SAMPLE_TOKENS,
        "seed": SAMPLE_SEED,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
    }


def write_final(
    folder: Path,
    *,
    model: Any,
    tokenizer: Any,
    card_facts: CardFacts,
    curve: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder to load and to publish, whole or not at all.

    Args:
        folder: Where it will stand; an older one is replaced.
        model: The trained TinyFormer for causal language modelling, unwrapped.
        tokenizer: The tokenizer it was trained with.
        card_facts: What the model card says.
        curve: The picture of the loss, copied as `loss.png` if there is such a file.
        facts: JSON values for the manifest, such as what the folder was made from.

    Raises:
        ArtifactError: If model and tokenizer do not belong together, if a file that a checkpoint
            needs is missing, or if the folder, loaded again, is not the same model.
    """
    _check_pair(model, tokenizer)
    has_curve = curve is not None and curve.is_file()
    sample = _make_sample(model, tokenizer, card_facts.sample_prompt)
    with write_folder(folder, kind="final", facts=dict(facts or {})) as staging:
        write_model_files(staging, model, tokenizer)
        _write_generation_config(staging, model, tokenizer)
        if curve is not None and has_curve:
            shutil.copyfile(curve, staging / CURVE_NAME)
        card = render_card(
            card_facts,
            config=model.config,
            num_parameters=model.num_parameters(),
            sample=sample,
            has_curve=has_curve,
        )
        (staging / "README.md").write_text(card, encoding="utf-8")
        verify_final(staging, model, tokenizer)
