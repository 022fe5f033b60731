"""Bring a model and its tokenizer back from a folder or from the Hub.

The classes are the installed packages'. Code that lies in a checkpoint is never run from here, and
weights are read from safetensors only, since unpickling a file runs whatever it says.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from hf_tinyformer.data.tokenization.tokenizer import check_ids, read_tokenizer
from hf_tinyformer.errors import ArtifactError, ConfigError

FILES_TO_LOAD = ["*.json", "*.safetensors", "*.jinja"]
"""What a load takes from the Hub: settings, weights and templates, no code."""

# httpx's or httpx2's, by version. One that is not a response, such as a proxy's, is no OSError.
_HTTP_ERROR: Any = HfHubHTTPError.__bases__[0]

UNREADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError),
    *(SafetensorError, StrictDataclassError, _HTTP_ERROR),
)
"""What transformers and huggingface_hub raise for files that are not as they should be."""


def describe(error: BaseException) -> str:
    """Say in one line, without a full stop, what went wrong.

    Args:
        error: One of `UNREADABLE`.
    """
    if isinstance(error, StrictDataclassError):
        # It tells which check failed, its cause which setting has what value.
        error = error.__cause__ or error
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _find(checkpoint: str | Path, revision: str | None) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(checkpoint), revision=revision, allow_patterns=FILES_TO_LOAD)
        )
    except HFValidationError:
        reason = "this is not of the form USER/NAME"
    except UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [describe(error)])[0].rstrip(".")
    raise ArtifactError(
        f"{checkpoint} is no folder here, and not to be had from the Hub either: {reason}. "
        "Point to a folder such as runs/demo/final, or to USER/NAME on the Hub."
    )


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        final = folder / "final"
        hint = "Point to a folder such as runs/demo/final."
        if (final / name).is_file():
            hint = f"Did you mean {final}?"
        raise ArtifactError(f"{folder} has no {name}, but a model's folder has one. {hint}")


def _require_all_weights(folder: Path, report: Mapping[str, Any]) -> None:
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(problem) or ()))
        if names:
            raise ArtifactError(
                f"{folder} has {len(names)} {problem.replace('_', ' ')}, {names[0]} among them: "
                "its weights are not those of its config.json. Take both from the same model."
            )


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        remedy = "Point to another folder or make this one again."
        if isinstance(error, ImportError):  # of a library for the weights' format
            remedy = "Install what is missing, or point to another folder."
        raise ArtifactError(f"{folder} cannot be loaded: {describe(error)}. {remedy}") from None


def _move(model: Any, device: torch.device | str) -> Any:
    try:
        return model.to(device)
    # Built without CUDA, torch asserts; of devices that others add it may know but the name.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"--device is {device}, but the model cannot be put there: {describe(error)}. "
            "Take cpu, or a device of this machine."
        ) from None


def load_checkpoint(
    checkpoint: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model, ours or any that transformers itself knows, and its tokenizer.

    Args:
        checkpoint: A folder such as `runs/demo/final`, or an id on the Hub.
        device: Where to put the model.
        dtype: What to hold the weights in; `auto` for what they were saved in.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        ArtifactError: If there is no such checkpoint, if it cannot be loaded as safe files, or if
            a weight is missing or left over.
        ConfigError: If the model cannot be put on the device.
    """
    from transformers import AutoModelForCausalLM

    folder = _find(checkpoint, revision)
    _require(folder, "config.json")
    with _one_line(folder):
        # False, not unset: unset asks on the terminal whether to run the checkpoint's code.
        # transformers fills missing weights with random ones, and passes over what is left.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    _require_all_weights(folder, report)
    tokenizer = load_tokenizer_of(folder)
    check_ids(tokenizer, model.get_input_embeddings().num_embeddings, str(folder))
    return _move(model, device).eval(), tokenizer


def load_tokenizer_of(checkpoint: str | Path, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a model, or the one that a run trained.

    Args:
        checkpoint: A folder such as `runs/demo/final` or `runs/demo/tokenizer`, or an id on the
            Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ArtifactError: If there is none, or it cannot be loaded.
    """
    folder = _find(checkpoint, revision)
    _require(folder, "tokenizer_config.json")
    with _one_line(folder):
        return read_tokenizer(folder)
