import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory):
    """What chaos.py found: runs in one and in two processes, killed, stopped and left alone."""
    paths = [str(TESTS), str(TESTS.parent)]
    done = subprocess.run(
        [sys.executable, str(TESTS / "training" / "chaos.py"), tmp_path_factory.mktemp("chaos")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_runs_end_in_the_same_bits(report, processes: str):
    found = report[processes]
    assert found["kills"] == 5
    assert found["killed_weights_equal"]
    assert found["killed_metrics_equal"]
    assert found["corrupt"] == 0
    assert found["leftovers"] == []


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_to_one_process_stops_all_at_one_step_with_a_checkpoint(report, processes: str):
    found = report[processes]["terminated"]
    assert found["exited_well"]
    steps = {ending["step"] for ending in found["endings"]}
    assert len(steps) == 1
    assert {ending["status"] for ending in found["endings"]} == {"interrupted"}
    assert len(found["endings"]) == int(processes)
    assert found["newest"] == f"step-{steps.pop():06d}"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_stopped_runs_go_on_to_the_same_bits(report, processes: str):
    found = report[processes]
    assert found["terminated"]["finished_later"]
    assert found["terminated_weights_equal"]
    assert found["terminated_metrics_equal"]


def test_two_processes_have_the_losses_of_one(report):
    one, two = report["1"]["metrics"], report["2"]["metrics"]
    compared = 0
    for first, second in zip(one, two, strict=True):
        assert first["step"] == second["step"]
        for key in ("loss", "validation_loss", "bits_per_byte"):
            if key in first:
                assert first[key] == pytest.approx(second[key], rel=1e-6)
                compared += 1
        assert first.get("learning_rate") == second.get("learning_rate")
    assert compared == 48 + 2 * 8
