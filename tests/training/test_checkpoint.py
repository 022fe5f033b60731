import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import killed_at
from torch import nn

from hf_tinyformer.errors import ArtifactError, TrainingError
from hf_tinyformer.training.checkpoint import (
    TrainingState,
    check_identity,
    load_optimizers,
    load_weights,
    model_tensors,
    optimizer_tensors,
    read_state,
    verify_checkpoint,
    weight_names,
    write_checkpoint,
)
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.optimizer import build_optimizers
from hf_tinyformer.training.rotation import Checkpoints

IDENTITY = {"seed": 1, "model": {"hidden_size": 4}}


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(3.0))


def trained(seed: int = 0, optimizer: str = "muon"):
    """A model whose optimizers have state."""
    torch.manual_seed(seed)
    model = Tiny()
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for each in optimizers:
        each.step()
    return model, optimizers


def save(run_dir: Path, step: int, *, keep_last: int = 2, best_step: int | None = None) -> None:
    model, optimizers = trained(seed=step)
    Checkpoints(run_dir).save(
        TrainingState(step=step, best_step=best_step, best_loss=1.5, seconds=2.0),
        weights=model_tensors(model),
        optimizer_state=optimizer_tensors(model, optimizers),
        identity=IDENTITY,
        keep_last=keep_last,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ignore(text: str) -> None:
    pass


def test_tied_weights_are_stored_once_under_the_first_name():
    assert weight_names(Tiny()) == ["table", "embed.weight", "layers.0.weight", "layers.0.bias"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_model_and_optimizers_come_back_bit_for_bit(tmp_path: Path, optimizer: str):
    model, optimizers = trained(0, optimizer)
    state = TrainingState(step=7, best_step=3, best_loss=0.1, bad_steps=[5], scaler={"scale": 2.0})
    path = tmp_path / "step-000007"
    write_checkpoint(
        path,
        weights=model_tensors(model),
        optimizer_state=optimizer_tensors(model, optimizers),
        state=state,
        identity=IDENTITY,
    )

    torch.manual_seed(9)
    twin = Tiny()
    twin_optimizers = build_optimizers(twin, TrainConfig(optimizer=optimizer))
    load_weights(twin, path)
    load_optimizers(twin, twin_optimizers, path)

    assert read_state(path, IDENTITY) == state
    assert twin.head.weight is twin.embed.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    before, after = optimizer_tensors(model, optimizers), optimizer_tensors(twin, twin_optimizers)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_optimizer_state_is_named_by_kind_and_parameter():
    names = set(optimizer_tensors(*trained()))

    assert "momentum_buffer/layers.0.weight" in names
    assert {f"{kind}/embed.weight" for kind in ("step", "exp_avg", "exp_avg_sq")} <= names


def test_numbers_that_are_not_finite_are_never_saved(tmp_path: Path):
    model, _ = trained()
    with torch.no_grad():
        model.layers[0].weight[1, 2] = float("inf")

    with pytest.raises(TrainingError, match=r"layers\.0\.weight holds numbers that are not finite"):
        Checkpoints(tmp_path).save(
            TrainingState(step=1),
            weights=model_tensors(model),
            optimizer_state={},
            identity={},
            keep_last=1,
        )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_is_told_with_sizes_and_leaves_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 1)
    before = contents(tmp_path)

    def refuse(tensors, path, metadata=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_tinyformer.training.checkpoint.save_file", refuse)
    with pytest.raises(ArtifactError, match=r"No space left.* needs 0\.0 MB, and .* MB are free"):
        save(tmp_path, 2)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path):
    run_dir = tmp_path / "file"
    run_dir.write_text("")

    with pytest.raises(
        ArtifactError, match=r"step-000001 could not be written \(.*Not a directory"
    ):
        save(run_dir, 1)


def test_the_first_key_that_differs_is_named_with_both_values(tmp_path: Path):
    saved = {"seed": 1, "model": {"hidden_size": 4, "layers": [1, 2]}}
    check_identity(tmp_path, saved, {"model": {"layers": (1, 2), "hidden_size": 4}, "seed": 1})

    with pytest.raises(ArtifactError, match=r"model\.hidden_size is 8, but .* written with 4"):
        check_identity(tmp_path, saved, {"seed": 1, "model": {"hidden_size": 8, "layers": [1, 2]}})
    with pytest.raises(ArtifactError, match="seed is not set, but"):
        check_identity(tmp_path, saved, {"model": saved["model"]})


def test_what_nobody_sets_is_not_asked_to_be_set_back(tmp_path: Path):
    with pytest.raises(
        ArtifactError, match=r"data\.tokens is b.*Give it the text and the settings"
    ):
        check_identity(tmp_path, {"data": {"tokens": "a"}}, {"data": {"tokens": "b"}})


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path):
    save(tmp_path, 1)
    other = Tiny()
    other.layers[0] = nn.Linear(4, 3)

    with pytest.raises(ArtifactError, match=r"layers\.0\.bias has shape \(4,\).* has \(3,\)"):
        load_weights(other, Checkpoints(tmp_path).path(1))


def test_state_for_a_parameter_that_is_not_there_is_refused(tmp_path: Path):
    save(tmp_path, 1)
    other = Tiny()
    other.layers = nn.ModuleList()

    with pytest.raises(ArtifactError, match=r"state for layers\.0\.\w+, but the model has no such"):
        load_optimizers(
            other, build_optimizers(other, TrainConfig()), Checkpoints(tmp_path).path(1)
        )


def first_save(run_dir: Path) -> None:
    save(run_dir, 1)


def save_and_rotate(run_dir: Path) -> None:
    save(run_dir, 4, keep_last=1, best_step=2)


def save_again(run_dir: Path) -> None:
    save(run_dir, 3, keep_last=1, best_step=2)


def prepare_nothing(run_dir: Path) -> None:
    run_dir.mkdir()


def prepare_three(run_dir: Path) -> None:
    for step in (1, 2, 3):
        save(run_dir, step, keep_last=9, best_step=2)


def prepare_three_of_which_one_is_damaged(run_dir: Path) -> None:
    prepare_three(run_dir)
    (Checkpoints(run_dir).path(3) / "state.json").write_text("{}")


@pytest.mark.parametrize(
    ("prepare", "action", "fewest_points"),
    [
        (prepare_nothing, first_save, 9),
        (prepare_three, save_and_rotate, 13),
        (prepare_three, save_again, 2),
        (prepare_three_of_which_one_is_damaged, save_again, 9),
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_the_old_state_or_the_new(
    tmp_path: Path, prepare, action, fewest_points: int
):
    prepare(tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "end")
    action(tmp_path / "end")
    end = Checkpoints(tmp_path / "end")
    after = end.steps()
    possible = [
        None if path is None else contents(path)
        for path in (
            Checkpoints(tmp_path / "start").find_newest(ignore),
            end.find_newest(ignore),
        )
    ]
    point = 1
    while True:
        run_dir = tmp_path / f"killed-{point}"
        shutil.copytree(tmp_path / "start", run_dir)
        if not killed_at(point, lambda: action(run_dir)):  # noqa: B023
            break
        newest = Checkpoints(run_dir).find_newest(ignore)
        assert (None if newest is None else contents(newest)) in possible
        if prepare is prepare_three:
            verify_checkpoint(Checkpoints(run_dir).path(2))  # the best one outlives every kill
        action(run_dir)
        assert Checkpoints(run_dir).steps() == after
        assert contents(Checkpoints(run_dir).path(after[-1])) == possible[1]
        Checkpoints(run_dir).find_newest(ignore)
        assert not list((run_dir / "checkpoints").glob(".*"))
        point += 1
    assert point > fewest_points


def test_the_newest_are_kept_and_the_best_of_each(tmp_path: Path):
    for step, best_step in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5)]:
        save(tmp_path, step, keep_last=2, best_step=best_step)

    assert Checkpoints(tmp_path).steps() == [5, 6, 7]


def test_falling_back_finds_the_best_of_the_older_state_too(tmp_path: Path):
    for step, best_step in [(1, 1), (2, 1), (3, 3)]:
        save(tmp_path, step, keep_last=2, best_step=best_step)
    # Step 2 is kept, and it speaks of step 1 as the best.
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]


def test_an_older_checkpoint_that_is_damaged_is_set_aside_and_stops_no_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=3)
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.path(2) / "state.json").write_text("")

    for step in (4, 5):
        save(tmp_path, step, keep_last=3)

    assert checkpoints.steps() == [3, 4, 5]
    assert (checkpoints.folder / "step-000002.corrupt").is_dir()
    assert [text.count("state.json has 0 bytes") for text in caplog.messages] == [1]


def test_steps_are_compared_as_numbers(tmp_path: Path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep_last=1)

    assert Checkpoints(tmp_path).steps() == [1_000_000]


def damage_by_flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def damage_by_truncation(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damage_by_emptying(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [damage_by_flip, damage_by_truncation, damage_by_emptying, Path.unlink]
)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_next_older_taken(
    tmp_path: Path, name: str, damage
):
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoints = Checkpoints(tmp_path)
    damage(checkpoints.path(2) / name)
    messages: list[str] = []

    assert checkpoints.find_newest(messages.append) == checkpoints.path(1)
    assert len(messages) == 1
    assert name in messages[0]
    assert "step-000002.corrupt" in messages[0]
    assert (checkpoints.folder / "step-000002.corrupt").is_dir()


def test_a_file_of_another_step_is_found_out(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoints = Checkpoints(tmp_path)
    shutil.copy(checkpoints.path(1) / "model.safetensors", checkpoints.path(2))

    assert checkpoints.find_newest(ignore) == checkpoints.path(1)


def test_a_renamed_checkpoint_is_found_out(tmp_path: Path):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.path(1).rename(checkpoints.path(5))
    messages: list[str] = []

    assert checkpoints.find_newest(messages.append) is None
    assert "says that it is step 1, but its name says 5" in messages[0]


def test_a_flipped_bit_anywhere_is_found_in_the_right_file(tmp_path: Path):
    save(tmp_path, 1)
    path = Checkpoints(tmp_path).path(1)
    flips = 0
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 7):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            with pytest.raises(ArtifactError, match=file.name):
                verify_checkpoint(path)
            flips += 1
        file.write_bytes(content)
    verify_checkpoint(path)
    assert flips > 300


def test_a_run_is_moved_aside_to_the_next_free_name(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    for expected in ("checkpoints.old", "checkpoints.old-2"):
        save(tmp_path, 1)
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        assert checkpoints.move_aside() == tmp_path / expected
        assert (tmp_path / expected / "metrics.jsonl").is_file()
    assert checkpoints.move_aside() is None


def test_the_state_is_readable_json(tmp_path: Path):
    save(tmp_path, 1, best_step=1)

    content = json.loads((Checkpoints(tmp_path).path(1) / "state.json").read_text())
    assert content["state"]["step"] == 1
    assert content["identity"] == IDENTITY
