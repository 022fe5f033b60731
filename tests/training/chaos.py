"""Train in forked processes that are killed, and report what came of it as one JSON object.

A script, run by test_chaos.py: importing torch and transformers takes seconds, so it is done once,
before any torch computation, and every run is a fork of that state.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from tiny_training import Room, build_room, read_metrics, read_tensors
from transformers import GenerationMixin  # noqa: F401  imported lazily otherwise, in every child

from hf_tinyformer.training.metrics import MetricsLog

SETTINGS: dict[str, Any] = {
    "dropout": 0.1,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "max_steps": 48,
    "evaluate_every": 6,
    "save_every_steps": 4,
    "sample_tokens": 3,
}
KILL_AFTER = (2, None, 9, 15, None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_in_child(room: Room, run_dir: Path, environment: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        log = os.open(run_dir.parent / f"{run_dir.name}.log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
        os.dup2(log, 2)
        result = room.train(run_dir, **SETTINGS)
        rank = environment.get("RANK", "0")
        ending = {"status": result.status, "step": result.step}
        (run_dir / f"result-{rank}.json").write_text(json.dumps(ending))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start(room: Room, run_dir: Path, num_processes: int) -> list[int]:
    run_dir.mkdir(parents=True, exist_ok=True)
    if num_processes == 1:
        return [train_in_child(room, run_dir, {})]
    common = {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(num_processes)]
    return [train_in_child(room, run_dir, common | rank) for rank in ranks]


def finish(children: list[int]) -> bool:
    """Wait for all; say whether all ended well."""
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return all(status == 0 for status in statuses)


def wait_for_step(run_dir: Path, step: int) -> None:
    """Wait until the metrics have come as far as a step."""
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        # The last line may be half written.
        lines = metrics.read_text().splitlines()[:-1] if metrics.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.002)
    raise TimeoutError(f"{run_dir.name} never came to step {step}, see {run_dir.name}.log")


def kill_and_finish(room: Room, run_dir: Path, num_processes: int) -> int:
    """Kill the run again and again soon after some step, then let it end. Return the kills."""
    drawn = random.Random(num_processes)
    kills = 0
    for step in KILL_AFTER:
        children = start(room, run_dir, num_processes)
        if step is None:
            time.sleep(drawn.uniform(0.0, 0.2))  # while it starts or resumes
        else:
            wait_for_step(run_dir, step)
            time.sleep(drawn.uniform(0.0, 0.03))
        # Sometimes one process dies first and the others see it go.
        drawn.shuffle(children)
        for child in children:
            os.kill(child, signal.SIGKILL)
            time.sleep(drawn.choice([0.0, 0.05]))
        kills += not finish(children)
    if not finish(start(room, run_dir, num_processes)):
        raise RuntimeError((run_dir.parent / f"{run_dir.name}.log").read_text())
    return kills


def outcome(run_dir: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    last = run_dir / "checkpoints" / f"step-{SETTINGS['max_steps']:06d}"
    return read_tensors(last), read_metrics(run_dir)


def terminate(room: Room, run_dir: Path, num_processes: int) -> dict[str, Any]:
    """Send SIGTERM to the last process only, then let the run end with the same command."""
    children = start(room, run_dir, num_processes)
    wait_for_step(run_dir, 2)
    os.kill(children[-1], signal.SIGTERM)
    well = finish(children)
    endings = [json.loads(path.read_text()) for path in sorted(run_dir.glob("result-*.json"))]
    newest = max(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    return {
        "exited_well": well,
        "endings": endings,
        "newest": newest,
        "finished_later": finish(start(room, run_dir, num_processes)),
    }


def examine(room: Room, folder: Path, num_processes: int) -> dict[str, Any]:
    name = f"{num_processes}-processes"
    whole = folder / f"{name}-whole"
    if not finish(start(room, whole, num_processes)):
        raise RuntimeError((folder / f"{whole.name}.log").read_text())
    expected = outcome(whole)
    killed, stopped = folder / f"{name}-killed", folder / f"{name}-stopped"
    kills = kill_and_finish(room, killed, num_processes)
    terminated = terminate(room, stopped, num_processes)
    leftovers = [path.name for path in (killed / "checkpoints").iterdir() if path.name[0] == "."]
    return {
        "kills": kills,
        "killed_weights_equal": outcome(killed)[0] == expected[0],
        "killed_metrics_equal": outcome(killed)[1] == expected[1],
        "corrupt": len(list((killed / "checkpoints").glob("*.corrupt*"))),
        "leftovers": leftovers,
        "terminated": terminated,
        "terminated_weights_equal": outcome(stopped)[0] == expected[0],
        "terminated_metrics_equal": outcome(stopped)[1] == expected[1],
        "metrics": expected[1],
    }


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # forking, on Python 3.12 and later
    folder = Path(sys.argv[1])
    MetricsLog.draw = lambda self: None  # type: ignore[method-assign]  # slower than the rest
    room = build_room(folder / "room")
    report = {str(count): examine(room, folder, count) for count in (1, 2)}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
