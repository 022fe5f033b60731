import builtins
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.training.figure import draw_losses, read_metrics, smooth
from hf_tinyformer.training.metrics import MetricsLog, NullReporter, Reporter, to_json_line
from hf_tinyformer.training.trackers import NoTracker, open_tracker


def write_lines(run_dir: Path, *records: dict) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(to_json_line(record) for record in records))


def open_log(run_dir: Path, step: int, evaluated_step: int) -> MetricsLog:
    return MetricsLog(run_dir, step=step, evaluated_step=evaluated_step, tracker=NoTracker())


def test_a_line_is_strict_json_and_keeps_what_was_not_finite():
    line = to_json_line({"step": 3, "loss": math.nan, "grad_norm": math.inf, "tokens": 7})

    record = json.loads(line, parse_constant=pytest.fail)
    assert record == {
        "step": 3,
        "loss": None,
        "grad_norm": None,
        "tokens": 7,
        "not_finite": {"loss": "nan", "grad_norm": "inf"},
    }


def test_lines_stand_in_the_file_as_soon_as_they_are_written(tmp_path: Path):
    with open_log(tmp_path, 0, 0) as log:
        log.write({"step": 1, "loss": 2.0})

        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_resuming_cuts_later_steps_undone_evaluations_and_a_torn_line(tmp_path: Path):
    write_lines(
        tmp_path,
        {"step": 1, "loss": 3.0},
        {"step": 1, "validation_loss": 3.1},
        {"step": 2, "loss": 2.0},
        {"step": 2, "validation_loss": 2.1},
        {"step": 3, "loss": 1.0},
    )
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')

    with open_log(tmp_path, step=2, evaluated_step=1) as log:
        log.write({"step": 2, "validation_loss": 2.2})

    steps, evaluations = read_metrics(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in steps] == [1, 2]
    assert [x["validation_loss"] for x in evaluations] == [3.1, 2.2]


def test_resuming_keeps_the_kept_bytes_as_they_are(tmp_path: Path):
    kept = '{"step":1,   "loss": 3.0, "odd": "é"}\n'
    (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 2, "loss": 2.0}\n', encoding="utf-8")

    with open_log(tmp_path, step=1, evaluated_step=0):
        pass

    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == kept


def test_a_sample_with_line_ends_of_unicode_stays_one_record(tmp_path: Path):
    sample = "a\x85b\u2028c\u2029d\r\ne"
    with open_log(tmp_path, 0, 0) as log:
        log.write({"step": 1, "validation_loss": 2.0, "sample": sample})
    with open_log(tmp_path, 1, 1) as log:
        log.write({"step": 2, "loss": 1.5})

    steps, evaluations = read_metrics(tmp_path / "metrics.jsonl")

    assert steps == [{"step": 2, "loss": 1.5}]
    assert [x["sample"] for x in evaluations] == [sample]


def test_smoothing_worked_by_hand():
    # The second value looks back over 1 + 1/10 steps: 4 + (0.7 - 4) / 1.1.
    np.testing.assert_allclose(smooth(np.array([4.0, 0.7]), span=2), [4.0, 1.0])
    # With span 1 each value stands for itself.
    np.testing.assert_allclose(smooth(np.array([4.0, 0.7]), span=1), [4.0, 0.7])


def test_smoothing_keeps_a_constant():
    np.testing.assert_allclose(smooth(np.full(9, 2.5), span=5), 2.5)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 1, "loss": math.nan}],
        [{"step": 1, "loss": 2.0}],
        [{"step": n, "loss": 9.0 / n} for n in range(1, 5001)]
        + [{"step": 5000, "validation_loss": 1.5}, {"step": 5001, "validation_loss": math.nan}],
    ],
)
def test_a_curve_is_drawn_from_whatever_is_there(tmp_path: Path, records: list):
    write_lines(tmp_path, *records)

    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")

    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_the_null_reporter_is_a_reporter():
    reporter: Reporter = NullReporter()

    reporter.on_start(total_steps=2, start_step=0, facts={})
    reporter.on_step({})
    reporter.on_evaluation({})
    reporter.on_message("")


def test_tensorboard_gets_the_numbers_inside_the_run_folder(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", run_dir=tmp_path, start_step=0, facts={})
    tracker.log({"step": 1, "loss": 2.5, "skipped": True})
    tracker.log({"step": 1, "validation_loss": 1.5, "sample": "hello"})
    tracker.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "validation/loss"]
    assert events.Scalars("train/loss")[0].value == 2.5


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))

    def refuse(module: str):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr("hf_tinyformer.training.trackers.import_module", refuse)

    with pytest.raises(ConfigError, match=rf"train\.tracker is {name}.*pip install {name}"):
        open_tracker(name, run_dir=tmp_path, start_step=0, facts={})


def test_no_tracker_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builtins, "__import__", pytest.fail)

    assert isinstance(open_tracker("none", run_dir=tmp_path, start_step=0, facts={}), NoTracker)
