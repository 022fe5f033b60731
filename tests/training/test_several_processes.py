"""Two gloo processes, launched as a user would, end where one process ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_run import words_for, write_corpus

from hf_tinyformer.inference.loading import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
DDP = [*ACCELERATE, str(CONFIGS / "cpu2.yaml")]
FSDP2 = [*ACCELERATE, str(CONFIGS / "fsdp2_cpu2.yaml")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHARING = {"DDP": "whole on each process (DDP)", "FSDP2": "shared out (FSDP2)"}

pytestmark = pytest.mark.slow


# Many micro-batches make a step long enough to be killed in.
LONG = ("train.max_steps=40", "train.global_batch_size=64", "train.evaluate_every=20")


def start(
    launch: list[str], words: list[str], script: Path = ROOT / "train.py"
) -> subprocess.Popen[str]:
    config = str(ROOT / "configs" / "note_16d.yaml")
    return subprocess.Popen(
        [*launch, str(script), config, "data.builtin=null", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(launch: list[str], words: list[str], script: Path = ROOT / "train.py") -> str:
    process = start(launch, words, script)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def kill_after(step: int, launch: list[str], words: list[str], run_dir: Path) -> None:
    process = start(launch, words)
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    # torchrun starts its workers in sessions of their own, so a signal to the group misses them.
    launcher = psutil.Process(process.pid)
    for victim in [launcher, *launcher.children(recursive=True)]:
        victim.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "final").exists()


def read_losses(run_dir: Path) -> list[float]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [r["loss"] if "loss" in r else r["validation_loss"] for r in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_corpus(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def losses_of_one(folder: Path) -> list[float]:
    finish([sys.executable], words_for(folder, "name=one", *LONG))
    return read_losses(folder / "runs" / "one")


# float32 sums in another order, over 40 steps.
CLOSE = 1e-5


@pytest.mark.parametrize(("kind", "launch"), [("DDP", DDP), ("FSDP2", FSDP2)])
def test_two_processes_killed_and_resumed_see_the_losses_of_one(
    kind: str, launch: list[str], folder: Path, losses_of_one: list[float]
) -> None:
    run_dir = folder / "runs" / kind
    words = words_for(folder, f"name={kind}", *LONG)
    kill_after(4, launch, words, run_dir)

    output = finish(launch, words)

    assert re.search(r"^processes +2$", output, re.MULTILINE)
    assert re.search(rf"^weights +{re.escape(SHARING[kind])}$", output, re.MULTILINE)
    assert re.search(r"^going on after step [1-9]", output, re.MULTILINE)
    assert read_losses(run_dir) == pytest.approx(losses_of_one, rel=CLOSE)
    model, tokenizer = load_checkpoint(run_dir / "final", device="cpu")
    assert sum(p.numel() for p in model.parameters()) > 10_000
    assert len(tokenizer) == model.config.vocab_size


def test_a_sharded_run_goes_on_in_one_process_and_the_other_way_round(
    folder: Path, losses_of_one: list[float]
) -> None:
    for name, first, second in (("from", FSDP2, [sys.executable]), ("to", [sys.executable], FSDP2)):
        words = words_for(folder, f"name={name}", *LONG)
        kill_after(4, first, words, folder / "runs" / name)
        output = finish(second, words)
        assert re.search(r"^going on after step [1-9]", output, re.MULTILINE)
        assert read_losses(folder / "runs" / name) == pytest.approx(losses_of_one, rel=CLOSE)


def test_each_process_holds_half_of_a_sharded_model(tmp_path: Path) -> None:
    script = tmp_path / "shards.py"
    script.write_text(
        """
import os
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.precision import build_accelerator
from hf_tinyformer.training.preparation import prepare_model
from hf_tinyformer.training.processes import leave_together
config = TrainConfig(mixed_precision="fp32")
accelerator = build_accelerator(config, cpu=True)
model = TinyFormerForCausalLM(TinyFormerConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=16))
whole = sum(p.numel() for p in model.parameters())
prepare_model(model, config, accelerator, sequence_length=16)
mine = sum(p.to_local().numel() for p in model.parameters())
# In one write, so that the two processes' lines stay apart.
os.write(1, f"held {mine} of {whole}\\n".encode())
leave_together()
""",
        encoding="utf-8",
    )
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    held = [tuple(map(int, pair)) for pair in re.findall(r"held (\d+) of (\d+)", done.stdout)]
    assert len(held) == 2
    # Rows of a matrix are dealt out whole, and 64, 48, 32 and 16 are even.
    assert [2 * mine for mine, _ in held] == [whole for _, whole in held]


def test_torchrun_trains_in_two_processes_and_they_part(
    folder: Path, losses_of_one: list[float], tmp_path: Path
) -> None:
    script = tmp_path / "then_look.py"
    script.write_text(
        f"""
import atexit, os, runpy
from torch import distributed
# A process that ends while it is still connected may abort: seldom, so look at the cause.
look = lambda: os.write(1, f"connected {{distributed.is_initialized()}}\\n".encode())
atexit.register(look)
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""",
        encoding="utf-8",
    )
    output = finish(TORCHRUN, words_for(folder, "name=torchrun", *LONG), script=script)

    assert re.findall(r"connected (\w+)", output) == ["False", "False"]
    assert re.search(r"^processes +2$", output, re.MULTILINE)
    assert read_losses(folder / "runs" / "torchrun") == pytest.approx(losses_of_one, rel=CLOSE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_machines_meet_at_an_address(folder: Path, losses_of_one: list[float]) -> None:
    port = free_port()
    words = words_for(folder, "name=machines", *LONG)
    machines = []
    for rank in ("0", "1"):
        launch = [*ACCELERATE, str(CONFIGS / "multi_node.yaml"), "--machine_rank", rank]
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        machines.append(start([*launch, "--num_processes", "2"], words))
    outputs = [machine.communicate(timeout=1200)[0] for machine in machines]

    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert re.search(r"^processes +2$", outputs[0], re.MULTILINE)
    assert read_losses(folder / "runs" / "machines") == pytest.approx(losses_of_one, rel=CLOSE)


FAKE_SLURM = {
    "scontrol": "echo 127.0.0.1; echo 127.0.0.2",
    # One task on each of two machines, both of them this one.
    "srun": 'SLURM_NODEID=1 "$@" >/dev/null 2>&1 & SLURM_NODEID=0 "$@" && wait $!',
}


def test_the_slurm_script_starts_one_launcher_on_each_machine(
    folder: Path, losses_of_one: list[float], tmp_path: Path
) -> None:
    for name, body in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    paths = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "GPUS": "1"}
    words = words_for(folder, "name=slurm", *LONG)

    done = subprocess.run(
        [
            "bash",
            "configs/slurm/train.sbatch",
            "configs/note_16d.yaml",
            "data.builtin=null",
            *words,
        ],
        cwd=ROOT,
        env={
            **os.environ,
            **slurm,
            "PATH": os.pathsep.join(paths),
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^processes +2$", done.stdout, re.MULTILINE)
    assert read_losses(folder / "runs" / "slurm") == pytest.approx(losses_of_one, rel=CLOSE)
