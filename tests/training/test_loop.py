import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Room, read_metrics, read_tensors

from hf_tinyformer.errors import ArtifactError, ConfigError, TrainingError
from hf_tinyformer.inference.evaluation import Evaluation
from hf_tinyformer.training import loop, precision
from hf_tinyformer.training.interruption import Interruption
from hf_tinyformer.training.metrics import NullReporter


class Recorder(NullReporter):
    def __init__(self):
        self.messages, self.steps, self.starts = [], [], []

    def on_message(self, text):
        self.messages.append(text)

    def on_step(self, metrics):
        self.steps.append(metrics)

    def on_start(self, **facts):
        self.starts.append(facts)


def assert_same_losses(first, second):
    for one, other in zip(first, second, strict=True):
        assert one["step"] == other["step"]
        assert one.get("learning_rate") == other.get("learning_rate")
        key = "loss" if "loss" in one else "validation_loss"
        assert one[key] == pytest.approx(other[key], rel=1e-6)


def test_a_run_leaves_metrics_curve_and_checkpoints(room: Room, tmp_path: Path):
    result = room.train(tmp_path, sample_tokens=5)

    assert (result.status, result.step) == ("finished", 6)
    assert result.tokens_seen == 6 * 8 * 16
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(tmp_path)
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4, 5, 6]
    evaluations = [x for x in lines if "validation_loss" in x]
    assert [x["step"] for x in evaluations] == [3, 6]
    assert all(isinstance(x["sample"], str) for x in evaluations)
    assert evaluations[0]["perplexity"] == pytest.approx(
        math.exp(evaluations[0]["validation_loss"])
    )
    assert result.checkpoint.name == "step-000006"
    assert result.best_checkpoint.name == f"step-{result.best_step:06d}"


def test_a_model_without_a_finite_loss_is_not_asked_for_a_sample(
    room: Room, tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch
):
    nothing = Evaluation(
        loss=math.nan, perplexity=math.nan, bits_per_byte=math.nan, num_tokens=1, num_bytes=1
    )
    monkeypatch.setattr(loop, "evaluate_split", lambda *_, **__: nothing)

    room.train(tmp_path, sample_tokens=5)

    evaluations = [x for x in read_metrics(tmp_path) if "validation_loss" in x]
    assert [x["sample"] for x in evaluations] == [None, None]


def test_the_loss_falls(room: Room, tmp_path: Path, no_figures: None):
    room.train(tmp_path, max_steps=40, evaluate_every=40, save_every_steps=0)

    losses = [x["loss"] for x in read_metrics(tmp_path) if "loss" in x]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("micro_batch_size", [8, 4])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_going_on_from_every_step_ends_in_the_same_bits(
    room: Room, tmp_path: Path, no_figures: None, micro_batch_size: int, optimizer: str
):
    settings = {
        "dropout": 0.1,
        "micro_batch_size": micro_batch_size,
        "optimizer": optimizer,
        "sample_tokens": 4,
        "save_every_steps": 1,
        "keep_last": 10,
    }
    whole = tmp_path / "whole"
    end = room.train(whole, **settings)
    assert len(list((whole / "checkpoints").glob("step-*"))) == 6

    for step in range(6):
        resumed = tmp_path / f"from-{step}"
        shutil.copytree(whole, resumed)
        for later in range(step + 1, 7):
            shutil.rmtree(resumed / "checkpoints" / f"step-{later:06d}")
        reporter = Recorder()
        result = room.train(resumed, reporter=reporter, **settings)
        assert reporter.starts[0]["start_step"] == step
        assert read_tensors(result.checkpoint) == read_tensors(end.checkpoint)
        assert read_metrics(resumed) == read_metrics(whole)


def test_a_finished_run_is_not_run_again(room: Room, tmp_path: Path, no_figures: None):
    first = room.train(tmp_path)
    before = read_tensors(first.checkpoint), read_metrics(tmp_path)

    reporter = Recorder()
    again = room.train(tmp_path, reporter=reporter)

    assert reporter.steps == []
    assert (again.step, again.best_step, again.status) == (6, first.best_step, "finished")
    assert (read_tensors(again.checkpoint), read_metrics(tmp_path)) == before


def test_eight_micro_batches_of_one_equal_one_of_eight(
    room: Room, tmp_path: Path, no_figures: None
):
    one = room.train(tmp_path / "one", micro_batch_size=8)
    eight = room.train(tmp_path / "eight", micro_batch_size=1)

    assert_same_losses(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "eight"))
    first, second = (
        load_file(one.checkpoint / "model.safetensors"),
        load_file(eight.checkpoint / "model.safetensors"),
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_mean_over_the_tokens_of_the_global_batch(
    room: Room, tmp_path: Path, no_figures: None
):
    from hf_tinyformer.data.store.batches import TrainingBatches

    room.train(tmp_path, max_steps=3, micro_batch_size=2)

    batches = TrainingBatches(
        room.stores.train, sequence_length=16, global_batch_size=8, seed=1, mask_documents=True
    )
    batch = batches.batch(batches.rows(0))
    labels = batch.pop("shift_labels")
    logits = room.model()(**batch, use_cache=False).logits.double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def spoil_gradients(model, at):
    """Make one element of one gradient NaN at the given backward passes, counted from 0."""
    calls = iter(range(1000))

    def hook(gradient):
        if next(calls) in at:
            gradient = gradient.clone()
            gradient.view(-1)[0] = math.nan
        return gradient

    model.model.layers[0].mlp.down_proj.weight.register_hook(hook)
    return model


def spoil_loss(model, at):
    calls = iter(range(1000))

    def hook(module, arguments, output):
        if module.training and next(calls) in at:
            output.last_hidden_state = output.last_hidden_state * math.inf
        return output

    model.model.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("spoil", [spoil_gradients, spoil_loss])
def test_a_step_that_is_not_finite_never_reaches_the_weights(
    room: Room, tmp_path: Path, no_figures: None, spoil
):
    reporter = Recorder()
    result = room.train(
        tmp_path,
        model=spoil(room.model(), at={2}),
        reporter=reporter,
        save_every_steps=1,
        keep_last=10,
        evaluate_every=100,
    )

    folder = tmp_path / "checkpoints"
    assert read_tensors(folder / "step-000002") == read_tensors(folder / "step-000003")
    assert all(
        tensor.isfinite().all()
        for tensor in load_file(result.checkpoint / "model.safetensors").values()
    )
    state = json.loads((result.checkpoint / "state.json").read_text())["state"]
    assert (state["bad_steps"], state["bad_steps_in_a_row"]) == ([3], 0)
    line = read_metrics(tmp_path)[2]
    assert line["skipped"] is True
    assert line["not_finite"]
    assert any("Step 3 was skipped" in text for text in reporter.messages)


def test_too_many_bad_steps_in_a_row_stop_the_run(room: Room, tmp_path: Path, no_figures: None):
    with pytest.raises(TrainingError, match=r"step 5 has .*3 steps in a row.*max_bad_steps is 2"):
        room.train(tmp_path, model=spoil_loss(room.model(), at={2, 3, 4}), max_bad_steps=2)


def test_bad_steps_are_counted_across_a_restart(room: Room, tmp_path: Path, no_figures: None):
    settings = {"max_bad_steps": 2, "save_every_steps": 1, "evaluate_every": 100}
    with pytest.raises(TrainingError):
        room.train(tmp_path, model=spoil_loss(room.model(), at={2, 3, 4}), **settings)

    # The newest checkpoint is that of step 4, the second bad one: one more is too many.
    with pytest.raises(TrainingError, match="step 5 has loss"):
        room.train(tmp_path, model=spoil_loss(room.model(), at={0}), **settings)


def test_another_identity_is_refused_by_key(room: Room, tmp_path: Path, no_figures: None):
    room.train(tmp_path, identity={"data": {"tokens": "aaaa"}, "seed": 1})

    with pytest.raises(ArtifactError, match=r"data\.tokens is bbbb, but .* written with aaaa"):
        room.train(tmp_path, identity={"data": {"tokens": "bbbb"}, "seed": 1})


def test_resume_never_begins_again_and_keeps_the_old_run(
    room: Room, tmp_path: Path, no_figures: None
):
    first = room.train(tmp_path)
    old = read_tensors(first.checkpoint)

    reporter = Recorder()
    again = room.train(tmp_path, resume="never", reporter=reporter)

    assert len(reporter.steps) == 6
    assert read_tensors(again.checkpoint) == old
    aside = tmp_path / "checkpoints.old"
    assert (aside / "step-000006").is_dir()
    assert (aside / "metrics.jsonl").is_file()
    assert [x["step"] for x in read_metrics(tmp_path) if "loss" in x] == [1, 2, 3, 4, 5, 6]


def test_resume_from_a_path_moves_the_other_future_aside(
    room: Room, tmp_path: Path, no_figures: None
):
    settings = {"save_every_steps": 2, "keep_last": 9}
    end = room.train(tmp_path, **settings)
    before = read_tensors(end.checkpoint), read_metrics(tmp_path)

    named = tmp_path / "checkpoints" / "step-000002"
    again = room.train(tmp_path, resume=str(named), **settings)

    assert (tmp_path / "checkpoints.old" / "step-000006").is_dir()
    assert (read_tensors(again.checkpoint), read_metrics(tmp_path)) == before


def test_resume_from_another_run_goes_on_there(room: Room, tmp_path: Path, no_figures: None):
    end = room.train(tmp_path / "first", keep_last=9)

    named = tmp_path / "first" / "checkpoints" / "step-000004"
    other = room.train(tmp_path / "second", resume=str(named))

    assert read_tensors(other.checkpoint) == read_tensors(end.checkpoint)
    assert [x["step"] for x in read_metrics(tmp_path / "second") if "loss" in x] == [5, 6]


def test_a_named_checkpoint_of_another_run_is_refused_before_anything_moves(
    room: Room, tmp_path: Path, no_figures: None
):
    other = room.train(tmp_path / "other", identity={"seed": 2})
    room.train(tmp_path / "mine")
    before = sorted((tmp_path / "mine").rglob("*"))

    with pytest.raises(ArtifactError, match=r"seed is 1, but .*step-000006 was written with 2"):
        room.train(tmp_path / "mine", resume=str(other.checkpoint))

    assert sorted((tmp_path / "mine").rglob("*")) == before


def test_a_named_checkpoint_that_is_damaged_is_an_error(
    room: Room, tmp_path: Path, no_figures: None
):
    end = room.train(tmp_path)
    (end.checkpoint / "optimizer.safetensors").write_bytes(b"")

    with pytest.raises(ArtifactError, match=r"optimizer\.safetensors has 0 bytes"):
        room.train(tmp_path, resume=str(end.checkpoint))
    assert end.checkpoint.is_dir()


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_ends_the_same(
    room: Room, tmp_path: Path, no_figures: None
):
    end = room.train(tmp_path)
    before = read_tensors(end.checkpoint), read_metrics(tmp_path)
    weights = end.checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)

    reporter = Recorder()
    again = room.train(tmp_path, reporter=reporter)

    assert any("step-000006.corrupt" in text and "SHA-256" in text for text in reporter.messages)
    assert (read_tensors(again.checkpoint), read_metrics(tmp_path)) == before


def test_a_lost_best_checkpoint_is_reported_and_another_best_is_sought(
    room: Room, tmp_path: Path, no_figures: None
):
    settings = {"keep_last": 9, "evaluate_every": 2, "save_every_steps": 1}
    room.train(tmp_path, **settings)
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 5, 6):
        shutil.rmtree(folder / f"step-{step:06d}")

    reporter = Recorder()
    again = room.train(tmp_path, reporter=reporter, **settings)

    assert any("step 2, is not here" in text for text in reporter.messages)
    assert again.best_step in (4, 6)
    assert again.best_checkpoint.is_dir()


def test_another_optimizer_is_refused(room: Room, tmp_path: Path, no_figures: None):
    room.train(tmp_path)

    with pytest.raises(ArtifactError, match=r"holds momentum_buffer.*AdamW needs.*optimizer"):
        room.train(tmp_path, optimizer="adamw")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite_is_never_the_best(
    room: Room, tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch, bad: float
):
    evaluate = loop.evaluate_split
    losses = iter([bad, 3.0, bad, 2.5])

    def evaluate_to(*arguments, **settings):
        return replace(evaluate(*arguments, **settings), loss=next(losses))

    monkeypatch.setattr(loop, "evaluate_split", evaluate_to)

    result = room.train(tmp_path, max_steps=8, evaluate_every=2, early_stopping_patience=2)

    assert (result.status, result.best_step, result.best_loss) == ("finished", 8, 2.5)


def test_a_best_loss_that_an_older_start_left_as_nan_is_beaten(
    room: Room, tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch
):
    read_state = loop.read_state

    def read_nan(*arguments):
        return replace(read_state(*arguments), best_step=1, best_loss=math.nan)

    settings = {"evaluate_every": 3, "save_every_steps": 1, "keep_last": 9}
    room.train(tmp_path, **settings)
    for step in range(3, 7):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:06d}")
    monkeypatch.setattr(loop, "read_state", read_nan)

    result = room.train(tmp_path, **settings)

    assert result.best_step in (3, 6)


def test_early_stop_ends_the_run_and_stays_stopped(room: Room, tmp_path: Path, no_figures: None):
    settings = {
        "max_steps": 30,
        "evaluate_every": 2,
        "early_stopping_patience": 2,
        # So high that the loss gets worse.
        "learning_rate": 3.0,
        "muon_learning_rate": 3.0,
        "warmup_steps": 4,
    }
    result = room.train(tmp_path, **settings)

    assert result.status == "early_stopped"
    assert result.best_step is not None
    assert result.step == result.best_step + 4
    assert result.best_checkpoint.is_dir()
    again = room.train(tmp_path, **settings)
    assert (again.status, again.step) == ("early_stopped", result.step)


def test_the_best_checkpoint_is_there_even_if_no_save_was_due(
    room: Room, tmp_path: Path, no_figures: None
):
    result = room.train(tmp_path, save_every_steps=0, evaluate_every=2, keep_last=1)

    assert result.best_checkpoint == tmp_path / "checkpoints" / f"step-{result.best_step:06d}"
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == sorted({f"step-{result.best_step:06d}", "step-000006"})


def test_a_request_to_stop_writes_a_checkpoint_before_a_due_evaluation(
    room: Room, tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch
):
    whole = room.train(tmp_path / "whole", dropout=0.1)

    class Impatient(Interruption):
        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked == 3  # at step 3, when an evaluation is due

        @requested.setter
        def requested(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Interruption", Impatient)
        stopped = room.train(tmp_path / "stopped", dropout=0.1)
    assert (stopped.status, stopped.step) == ("interrupted", 3)
    assert stopped.checkpoint.is_dir()
    assert not [x for x in read_metrics(tmp_path / "stopped") if "validation_loss" in x]

    again = room.train(tmp_path / "stopped", dropout=0.1)
    assert again.status == "finished"
    assert read_tensors(again.checkpoint) == read_tensors(whole.checkpoint)
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "whole")


def test_the_clock_asks_for_checkpoints_too(room: Room, tmp_path: Path, no_figures: None):
    room.train(
        tmp_path, save_every_steps=0, save_every_minutes=1e-9, keep_last=9, evaluate_every=100
    )

    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 6


def test_sampling_and_evaluating_do_not_disturb_training(
    room: Room, tmp_path: Path, no_figures: None
):
    quiet = room.train(tmp_path / "quiet", dropout=0.1, evaluate_every=6)
    busy = room.train(tmp_path / "busy", dropout=0.1, evaluate_every=1, sample_tokens=3)

    assert read_tensors(quiet.checkpoint) == read_tensors(busy.checkpoint)


def test_gradient_checkpointing_changes_nothing(room: Room, tmp_path: Path, no_figures: None):
    plain = room.train(tmp_path / "plain", dropout=0.1)
    thrifty = room.train(tmp_path / "thrifty", dropout=0.1, gradient_checkpointing=True)

    assert read_tensors(plain.checkpoint) == read_tensors(thrifty.checkpoint)


@pytest.fixture
def another_precision():
    """Let a test compute in another format than the others: a process has only one at a time."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_a_precision_that_the_cpu_has_no_instructions_for_is_warned_of(
    room: Room,
    tmp_path: Path,
    no_figures: None,
    another_precision: None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(precision, "supports_bf16_matmul", lambda device: False)
    reporter = Recorder()

    room.train(tmp_path, reporter=reporter, mixed_precision="bf16", max_steps=3)

    assert any("mixed_precision is bf16, but this cpu" in text for text in reporter.messages)


def test_bf16_arithmetic_trains_float32_weights(
    room: Room, tmp_path: Path, no_figures: None, another_precision: None
):
    result = room.train(tmp_path, mixed_precision="bf16", max_steps=20, evaluate_every=20)

    assert {t.dtype for t in load_file(result.checkpoint / "model.safetensors").values()} == {
        torch.float32
    }
    losses = [x["loss"] for x in read_metrics(tmp_path) if "loss" in x]
    assert losses[-1] < losses[0]


def test_a_batch_that_does_not_divide_is_refused_with_numbers(room: Room, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"micro_batch_size is 3, but it must divide the 8"):
        room.train(tmp_path, micro_batch_size=3)


def test_the_files_do_not_name_where_they_are(room: Room, tmp_path: Path, no_figures: None):
    result = room.train(tmp_path)

    for name in ("state.json", "manifest.json"):
        assert str(tmp_path) not in (result.checkpoint / name).read_text()


@pytest.fixture
def fp16_scaler(monkeypatch: pytest.MonkeyPatch):
    """Scale the loss as fp16 does, so high at first that float32 overflows too."""
    import tiny_training

    build = tiny_training.build_accelerator

    def build_with_scaler(config, *, cpu):
        accelerator = build(config, cpu=cpu)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
        return accelerator

    monkeypatch.setattr(tiny_training, "build_accelerator", build_with_scaler)


def test_steps_that_overflow_while_fp16_finds_its_scale_are_not_bad(
    room: Room, tmp_path: Path, no_figures: None, fp16_scaler: None
):
    result = room.train(tmp_path, max_steps=12, max_bad_steps=1, evaluate_every=12)

    lines = [x for x in read_metrics(tmp_path) if "loss" in x]
    skipped = [x["step"] for x in lines if x.get("skipped")]
    assert skipped[0] == 1
    assert len(skipped) < 4
    assert lines[-1]["loss"] < lines[0]["loss"]
    state = json.loads((result.checkpoint / "state.json").read_text())["state"]
    assert state["bad_steps"] == []
    assert state["scaler"]["scale"] == 2.0 ** (127 - len(skipped))


def test_the_fp16_scale_is_part_of_what_resumes(
    room: Room, tmp_path: Path, no_figures: None, fp16_scaler: None
):
    settings = {"max_steps": 8, "save_every_steps": 1, "keep_last": 10}
    end = room.train(tmp_path, **settings)
    before = read_tensors(end.checkpoint), read_metrics(tmp_path)
    for step in range(3, 9):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:06d}")

    again = room.train(tmp_path, **settings)

    assert (read_tensors(again.checkpoint), read_metrics(tmp_path)) == before


def test_scaled_gradients_move_the_weights_as_unscaled_ones(
    room: Room, tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch
):
    import tiny_training

    plain = room.train(tmp_path / "plain")
    build = tiny_training.build_accelerator

    def build_with_scaler(config, *, cpu):
        accelerator = build(config, cpu=cpu)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return accelerator

    monkeypatch.setattr(tiny_training, "build_accelerator", build_with_scaler)
    scaled = room.train(tmp_path / "scaled")

    # A power of two moves no bit of a mantissa.
    assert read_tensors(scaled.checkpoint) == read_tensors(plain.checkpoint)
