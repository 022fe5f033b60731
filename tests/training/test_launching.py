import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import words_for, write_corpus

from hf_tinyformer.training.launching import several_processes_command

ON_CPU = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LAUNCHER = ["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "train.py", "a.yaml"]


def command(environment, launcher_words=LAUNCHER):
    return several_processes_command(
        ["train.py", "a.yaml"], environment=environment, launcher_words=launcher_words
    )


@pytest.mark.parametrize(
    "words",
    [LAUNCHER, ["accelerate", "launch", "--num_processes=2", "--cpu", "train.py", "a.yaml"]],
)
def test_two_processes_asked_for_are_started(words):
    assert command(ON_CPU, words) == [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "train.py", "a.yaml"),
    ]


def test_processes_that_torchrun_started_are_left_alone():
    started = ON_CPU | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}

    assert command(started) is None


def test_one_process_is_left_alone():
    assert command({"ACCELERATE_USE_CPU": "True"}) is None
    assert command({}) is None
    assert command(ON_CPU, ["accelerate", "launch", "--num_processes", "1", "train.py"]) is None


def test_a_gpu_launch_is_left_alone():
    assert command(ON_CPU | {"ACCELERATE_USE_CPU": "False"}) is None


def test_another_parent_is_left_alone():
    assert command(ON_CPU, launcher_words=None) is None


@pytest.mark.slow
def test_accelerate_launch_on_two_cpu_processes_trains_in_two(tmp_path: Path):
    write_corpus(tmp_path / "texts")
    config = tmp_path / "empty.yaml"
    config.write_text("{}\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    train = [str(Path(__file__).parents[2] / "train.py"), str(config)]

    done = subprocess.run(
        [*launch, *train, *words_for(tmp_path, "train.max_steps=3")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = (done.stdout + done.stderr).splitlines()
    assert [line.split()[1] for line in told if line.startswith("processes")] == ["2"]
    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 3
