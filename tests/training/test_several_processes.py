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


SHARDED = """
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
config = TrainConfig(mixed_precision=PRECISION, compile=COMPILE)
accelerator = build_accelerator(config, cpu=True)
model = TinyFormerForCausalLM(TinyFormerConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=16, position_embedding_type=POSITIONS))
whole = sum(p.numel() for p in model.parameters())
called, optimizers = prepare_model(model, config, accelerator, sequence_length=16)
ids = torch.arange(16)[None]
batch = {"input_ids": ids, "use_cache": False}
labels = {"shift_labels": ids, "num_items_in_batch": torch.tensor(16)}
"""


def sharded(*, precision: str = "fp32", compiled: bool = False, positions: str = "rope") -> str:
    settings = f"PRECISION, COMPILE, POSITIONS = {precision!r}, {compiled}, {positions!r}"
    return settings + SHARDED


def run_in_two(body: str, tmp_path: Path) -> list[str]:
    """Run a script in two processes that part at its end, and return the lines that they tell."""
    script = tmp_path / "body.py"
    script.write_text(
        f"""
import os, time
from datetime import timedelta
from pathlib import Path
import torch
from accelerate import PartialState
from tiny_training import TinyFormerConfig, TinyFormerForCausalLM, TrainConfig
from tiny_training import build_accelerator, build_room
from hf_tinyformer.errors import TinyFormerError
from hf_tinyformer.training import loop, trackers
from hf_tinyformer.training.preparation import prepare_model
from hf_tinyformer.training.processes import Processes, leave_together
folder = Path({str(tmp_path)!r})
# In one write, so that the two processes' lines stay apart.
tell = lambda text: os.write(1, f"told {{text}}\\n".encode())
{body}
leave_together()
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [*TORCHRUN, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"told (.*)", done.stdout)


def test_each_process_holds_half_of_a_sharded_model(tmp_path: Path) -> None:
    body = """
mine = sum(p.to_local().numel() for p in model.parameters())
tell(f"{mine} of {whole}")
"""
    lines = run_in_two(sharded() + body, tmp_path)

    held = [tuple(map(int, line.split(" of "))) for line in lines]
    assert len(held) == 2
    # Rows of a matrix are dealt out whole, and 64, 48, 32 and 16 are even.
    assert [2 * mine for mine, _ in held] == [whole for _, whole in held]


def test_a_sharded_model_in_bf16_adds_up_its_gradients_in_float32(tmp_path: Path) -> None:
    body = """
batch["input_ids"] = ids + 13 * accelerator.process_index
with accelerator.no_sync(called):
    accelerator.backward(called(**batch, **labels).loss)
batch["input_ids"] += 7
loss = called(**batch, **labels).loss
accelerator.backward(loss)
gradients = [p.grad.full_tensor() for p in model.parameters()]
finer = [bool((g != g.bfloat16()).any()) for g in gradients]
tell(f"{loss.dtype} {all(finer)}")
"""
    lines = run_in_two(sharded(precision="bf16") + body, tmp_path)

    assert lines == ["torch.float32 True"] * 2


def test_a_sharded_model_is_evaluated_between_compiled_steps(tmp_path: Path) -> None:
    body = """
accelerator.backward(called(**batch, **labels).loss)
for optimizer in optimizers:
    optimizer.step()
with torch.no_grad():
    tell(model(**batch).logits.isfinite().all())
"""
    # Generating code takes a minute, and is nothing of ours.
    eager = "import functools\ntorch.compile = functools.partial(torch.compile, backend='eager')\n"
    setting = sharded(compiled=True, positions="learned")

    assert run_in_two(eager + setting + body, tmp_path) == ["True", "True"]


def test_a_sharded_run_that_stopped_before_an_evaluation_goes_on_with_it(tmp_path: Path) -> None:
    body = """
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
room = build_room(folder / os.environ["RANK"])
settings = {"max_steps": 2, "warmup_steps": 0, "evaluate_every": 1, "sample_tokens": 3}
usual = loop.Interruption
loop.Interruption = type(
    "Impatient", (usual,), {"requested": property(lambda self: True, lambda self, value: None)}
)
tell(room.train(folder / "run", **settings).status)
loop.Interruption = usual
tell(room.train(folder / "run", **settings).status)
"""
    lines = run_in_two(body, tmp_path)

    assert sorted(lines) == ["finished"] * 2 + ["interrupted"] * 2


def test_the_others_wait_longer_for_the_main_process_than_for_a_message(tmp_path: Path) -> None:
    body = """
PartialState(cpu=True, timeout=timedelta(seconds=2))
processes = Processes(build_accelerator(TrainConfig(mixed_precision="fp32"), cpu=True))
tell(processes.main_first(lambda: time.sleep(5) or 7, what="sleep"))
"""
    assert run_in_two(body, tmp_path) == ["7", "7"]


def test_a_tracker_that_is_not_there_stops_every_process(tmp_path: Path) -> None:
    body = """
def refuse(name):
    raise ImportError(f"No module named {name!r}")
trackers.import_module = refuse
room = build_room(folder / os.environ["RANK"])
try:
    room.train(folder / "run", tracker="wandb")
except TinyFormerError as error:
    tell(f"{type(error).__name__}: {error}")
"""
    config_error, training_error = sorted(run_in_two(body, tmp_path))

    assert config_error.startswith("ConfigError: train.tracker is wandb")
    assert training_error.startswith("TrainingError: process 0 could not open the metrics and the")


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
    losses = read_losses(folder / "runs" / "torchrun")
    assert losses == pytest.approx(losses_of_one, rel=CLOSE)
    assert losses[:12] == pytest.approx(losses_of_one[:12], rel=1e-6)  # before they drift apart


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
