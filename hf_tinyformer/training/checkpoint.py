"""A checkpoint: everything a run needs to go on, as safetensors and JSON, never pickle.

    checkpoints/step-000500/
        model.safetensors       float32 weights; tied weights stand there once
        optimizer.safetensors   `<kind>/<parameter name>`: exp_avg/model.norm.weight, ...
        state.json              TrainingState and the run's identity
        manifest.json           sizes and SHA-256 of the above, written last

Nothing in it depends on the number of processes. Random state is absent on purpose: every draw is a
function of seed and step (`randomness.py`), as are the batches and the learning rate.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from hf_tinyformer.artifacts import read_manifest, write_folder
from hf_tinyformer.errors import ArtifactError, TrainingError

KIND = "checkpoint"
MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
OPTIMIZER_STATE = {
    "Muon": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
}


@dataclass
class TrainingState:
    """Where a run stands after `step` optimizer steps."""

    step: int = 0
    """Steps taken; the next batch is that of this number."""

    evaluated_step: int = 0
    """The last step whose evaluation is part of this state."""

    best_step: int | None = None
    """Step with the lowest validation loss so far."""

    best_loss: float | None = None
    """That loss."""

    evaluations_without_improvement: int = 0
    """Evaluations since then, for early stopping."""

    bad_steps_in_a_row: int = 0
    """Steps just before this one that were skipped as not finite."""

    bad_steps: list[int] = field(default_factory=list)
    """Numbers of all skipped steps."""

    seconds: float = 0.0
    """Time spent training so far, over all starts of the run."""

    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 gradient scaler; empty without one."""


def weight_names(model: nn.Module) -> list[str]:
    """Name the weights and buffers to store, each tensor once however many names it has.

    Args:
        model: The bare model, not a wrapper.

    Returns:
        Names as in `model.state_dict()`, in its order.
    """
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return list(names.values())


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Collect the model's weights, whole on every process.

    Args:
        model: The bare model. Every process of a sharded run must call this.

    Returns:
        The tensors that `weight_names` names.
    """
    tensors = model.state_dict()
    return {name: _whole(tensors[name]) for name in weight_names(model)}


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Collect the optimizers' state by parameter name, whole on every process.

    Args:
        model: The bare model. Every process of a sharded run must call this.
        optimizers: Its optimizers.

    Returns:
        `<kind>/<parameter name>` to tensor; empty before the first step.
    """
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    tensors = {}
    for name, parameter in model.named_parameters():
        for kind, value in states.get(parameter, {}).items():
            tensors[f"{kind}/{name}"] = _whole(value)
    return tensors


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} holds numbers that are not finite, but {path.name} may only hold finite "
                "ones. Go on from the checkpoint before with a lower train.learning_rate."
            )


def _for_disk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_checkpoint(
    path: Path,
    *,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    state: TrainingState,
    identity: Mapping[str, Any],
) -> None:
    """Write one checkpoint, whole or not at all.

    Args:
        path: Its folder, which must not exist.
        weights: The tensors that `weight_names` names.
        optimizer_state: From `optimizer_tensors`.
        state: Where the run stands.
        identity: What makes the run this run, as JSON values.

    Raises:
        TrainingError: If a tensor holds a number that is not finite.
        ArtifactError: If the disk does not take it.
    """
    _require_finite(weights, path)
    _require_finite(optimizer_state, path)
    facts = {"step": state.step, "best_step": state.best_step, "best_loss": state.best_loss}
    size = sum(t.numel() * t.element_size() for t in [*weights.values(), *optimizer_state.values()])
    try:
        with write_folder(path, kind=KIND, facts=facts) as folder:
            save_file(_for_disk(weights), folder / MODEL_NAME, metadata={"format": "pt"})
            save_file(_for_disk(optimizer_state), folder / OPTIMIZER_NAME)
            text = json.dumps({"state": asdict(state), "identity": identity}, indent=2)
            (folder / STATE_NAME).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        # The folder above may be what could not be made.
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
        raise ArtifactError(
            f"{path} could not be written ({error}): it needs {size / 1e6:.1f} MB, and "
            f"{free / 1e6:.1f} MB are free. The checkpoints before it are whole. Make room and "
            "start the same command again."
        ) from error


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Read every byte of a checkpoint and compare it with the manifest.

    Args:
        path: Its folder.

    Returns:
        The manifest's facts: `step`, `best_step`, `best_loss`.

    Raises:
        ArtifactError: If it is missing or damaged, naming the file.
    """
    return read_manifest(path, kind=KIND, check_hashes=True)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


_FOLLOWS_FROM_SETTINGS = ("data.tokens", "tokenizer.fingerprint")
"""Keys of an identity that no user sets."""


def check_identity(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: The checkpoint, for the message.
        saved: The identity it was written with.
        current: The identity of the run that wants to go on from it.

    Raises:
        ArtifactError: Naming the first key that differs, with both values.
    """
    before = _flatten(dict(saved))
    # Through JSON, as the saved one went: tuples become lists, keys become strings.
    now = _flatten(json.loads(json.dumps(dict(current))))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old != new:
            back = f"Set {key} back to {old}"
            if key in _FOLLOWS_FROM_SETTINGS:
                back = "Give it the text and the settings under data: and tokenizer: that it had"
            raise ArtifactError(
                f"{key} is {new}, but {path} was written with {old}, and going on would mix two "
                f"runs. {back}, choose another name for the new run, or begin again with "
                "train.resume=never (older checkpoints are moved aside)."
            )


def read_state(path: Path, identity: Mapping[str, Any]) -> TrainingState:
    """Read where a run stood, after checking that it is this run.

    Args:
        path: A verified checkpoint.
        identity: What makes the run this run.

    Raises:
        ArtifactError: If the checkpoint is of another run.
    """
    content = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    check_identity(path, content["identity"], identity)
    return TrainingState(**content["state"])


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with a checkpoint's weights.

    Args:
        model: The bare model, of the checkpoint's shape.
        path: The checkpoint's folder, or any that holds `model.safetensors` and a manifest.

    Raises:
        ArtifactError: If the checkpoint is damaged or of another model.
    """
    verify_checkpoint(path)
    stored = load_file(path / MODEL_NAME)
    tensors = model.state_dict(keep_vars=True)
    wanted = {name: tuple(tensors[name].shape) for name in weight_names(model)}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArtifactError(
                f"{name} has shape {found.get(name, 'missing')} in {path / MODEL_NAME}, but the "
                f"model has {wanted.get(name, 'none')}. Load it with the config it was trained "
                "with."
            )
    with torch.no_grad():
        for name, tensor in stored.items():
            tensors[name].copy_(tensor)


def _check_optimizer_kinds(found: set[str], optimizer: Optimizer, name: str, path: Path) -> None:
    wanted = OPTIMIZER_STATE[type(optimizer).__name__]
    # A parameter that never had a gradient has no state, before and after.
    if found and found != wanted:
        raise ArtifactError(
            f"{path / OPTIMIZER_NAME} holds {', '.join(sorted(found))} for {name}, but "
            f"{type(optimizer).__name__} needs {', '.join(sorted(wanted))}. Set train.optimizer "
            "back to what the checkpoint was written with."
        )


def load_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], path: Path) -> None:
    """Fill optimizers with a checkpoint's state.

    Args:
        model: The bare model that the optimizers move.
        optimizers: Freshly built.
        path: A verified checkpoint.

    Raises:
        ArtifactError: If the state is of other optimizers or parameters.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path / OPTIMIZER_NAME).items():
        kind, _, name = key.partition("/")
        by_parameter.setdefault(name, {})[kind] = tensor
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        state = by_parameter.pop(name, {})
        if not state:
            continue
        if parameter not in owner:
            raise ArtifactError(
                f"{path / OPTIMIZER_NAME} holds state for {name}, but that parameter is not "
                "trained now. Train the parameters that the checkpoint was written with."
            )
        _check_optimizer_kinds(set(state), owner[parameter], name, path)
        owner[parameter].state[parameter] = {
            kind: _like(tensor, parameter) for kind, tensor in state.items()
        }
    if by_parameter:
        raise ArtifactError(
            f"{path / OPTIMIZER_NAME} holds state for {min(by_parameter)}, but the model has no "
            "such parameter. Load it with the config it was trained with."
        )


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(
            tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return tensor
