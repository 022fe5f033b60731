import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data.store.prepare_by_executor import plan_job

from hf_tinyformer.data.store.distributed_preparation import build_executor, parse_options
from hf_tinyformer.data.store.store_job import StoreJob, run_job
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.data.text import parts
from hf_tinyformer.data.tokenization.tokenizer import save_tokenizer, train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ConfigError, DataError

pytest.importorskip("datatrove", reason="executors need hf-tinyformer[scale]")

SCRIPT = Path(__file__).with_name("prepare_by_executor.py")


def hash_files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    drawn = random.Random(0)
    words = ["하나", "둘", "셋", "red", "blue", "green", "ship", "sea", "sky", "1", "22", "333"]
    for number in range(24):
        lines = [
            json.dumps({"text": " ".join(drawn.choices(words, k=drawn.randint(5, 80)))})
            for _ in range(60)
        ]
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer_dir(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    lines = (texts / "00.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300),
        (json.loads(line)["text"] for line in lines),
        sequence_length=32,
    )
    save_tokenizer(tokenizer, folder, facts={})
    return folder


@pytest.fixture
def folder(tokenizer_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "PART_BYTES", parts.PART_BYTES)  # plan_job changes it


@pytest.fixture(scope="module")
def by_one_process(
    texts: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Files of the store that one process makes, by hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", parts.PART_BYTES)
        folder = tmp_path_factory.mktemp("one")
        shutil.copytree(tokenizer_dir, folder / "tokenizer")
        job = plan_job(texts, folder)
        assert len(job.parts) >= 6
        run_job(job)
    return hash_files(folder / "tokens")


@pytest.fixture
def job(texts: Path, folder: Path) -> StoreJob:
    return plan_job(texts, folder)


def start(texts: Path, folder: Path, executor: str, **options: object) -> subprocess.Popen[bytes]:
    words = [str(texts), str(folder), executor, json.dumps(options)]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(texts: Path, folder: Path, executor: str, **options: object) -> str:
    process = start(texts, folder, executor, **options)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output.decode()
    return output.decode()


def test_tasks_in_any_order_give_the_store_of_one_process(
    job: StoreJob, by_one_process: dict[str, str]
) -> None:
    # What the executors call: task r of 4, the last one first.
    encode, seal = (stage.pipeline[0] for stage in stages(build_executor("local", job, workers=1)))
    for rank in (3, 1, 0, 2):
        encode(None, rank=rank, world_size=4)
    assert not job.folder.exists()

    seal(None, rank=0, world_size=1)

    assert hash_files(job.folder) == by_one_process


def stages(executor: object) -> tuple[object, object]:
    return executor.depends, executor


def test_every_part_is_the_task_of_exactly_one_process(job: StoreJob) -> None:
    for world in (1, 2, 5, 100):
        dealt = [part.name for rank in range(world) for part in job.parts[rank::world]]
        assert sorted(dealt) == [part.name for part in job.parts]


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_store_of_one(
    job: StoreJob, by_one_process: dict[str, str]
) -> None:
    told: list[int] = []

    run_job(job, workers=2, on_progress=lambda done, _total, _bytes: told.append(done))

    assert hash_files(job.folder) == by_one_process
    assert told[: len(job.parts)] == list(range(1, len(job.parts) + 1))


@pytest.mark.slow
def test_a_pool_reports_what_is_wrong_with_the_text(texts: Path, folder: Path) -> None:
    shutil.copytree(texts, folder / "texts")
    with (folder / "texts" / "07.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")

    with pytest.raises(DataError, match=r"07\.jsonl:61"):
        run_job(plan_job(folder / "texts", folder), workers=2)


@pytest.mark.slow
def test_local_executor_killed_half_way_and_resumed_gives_the_store_of_one_process(
    texts: Path, folder: Path, by_one_process: dict[str, str]
) -> None:
    process = start(texts, folder, "local")
    written = folder / "tokens.partial" / "parts" / "corpus"
    deadline = time.monotonic() + 600
    while len(list(written.glob("[0-9]*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "tokens").exists()
    kept = {path: path.stat().st_mtime_ns for path in written.glob("[0-9]*/manifest.json")}
    assert kept

    finish(texts, folder, "local")

    assert hash_files(folder / "tokens") == by_one_process
    assert open_token_store(folder / "tokens", check_hashes=True).train.num_documents > 1000
    for path, time_before in kept.items():
        moved = folder / "tokens" / path.relative_to(folder / "tokens.partial")
        assert moved.stat().st_mtime_ns == time_before, "a part that was there was made again"


FAKE_SLURM = {
    # Runs each task of the array at once, as Slurm would on its nodes.
    "sbatch": """
        script="${@: -1}"
        array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        for id in $(seq 0 "${array:-0}"); do
            SLURM_ARRAY_TASK_ID=$id SLURM_JOB_ID=7 SLURM_NODELIST=node1 bash "$script" >>LOG 2>&1 \\
                || exit 1
        done
        echo "$@" >>CALLS
        echo Submitted batch job 7
    """,
    "srun": 'while [ "$1" != -n ]; do shift; done; shift 2; exec "$@"',
    "scontrol": "echo node1",
    "merge_stats": "true",
}


@pytest.mark.slow
def test_slurm_runs_the_array_and_then_the_seal(
    texts: Path,
    folder: Path,
    by_one_process: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = folder / "bin"
    commands.mkdir()
    for name, body in FAKE_SLURM.items():
        body = body.replace("LOG", str(folder / "log")).replace("CALLS", str(folder / "calls"))
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    paths = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(paths))

    finish(texts, folder, "slurm", time="01:00:00", partition="cpu", mem_per_cpu_gb=4)

    assert hash_files(folder / "tokens") == by_one_process
    script = (folder / "tokens.logs" / "encode" / "launch_script.slurm").read_text()
    for line in ("--partition=cpu", "--time=01:00:00", "--mem-per-cpu=4G", "--array=0-"):
        assert f"#SBATCH {line}" in script
    assert "dependency=afterok:7" in (folder / "calls").read_text().splitlines()[-2]


@pytest.mark.slow
def test_ray_gives_the_store_of_one_process(
    texts: Path, folder: Path, by_one_process: dict[str, str]
) -> None:
    pytest.importorskip("ray", reason="not among the requirements: pip install ray")

    finish(texts, folder, "ray", mem_per_cpu_gb=0.2)

    assert hash_files(folder / "tokens") == by_one_process


def test_options_are_yaml_and_times_stay_as_they_are_written() -> None:
    words = ["time=12:00:00", "mem_per_cpu_gb=4", "requeue=false", "env=[a: 1]", "quoted='1:30'"]

    assert parse_options(words) == {
        "time": "12:00:00",
        "mem_per_cpu_gb": 4,
        "requeue": False,
        "env": [{"a": 1}],
        "quoted": "1:30",
    }
    for word in ("time", "time={"):
        with pytest.raises(ConfigError, match=rf"--option is '{word}', but .* KEY=VALUE"):
            parse_options([word])


def test_slurm_needs_a_time_and_a_partition(job: StoreJob) -> None:
    with pytest.raises(ConfigError, match=r"--option time is not set.*Add --option time=VALUE"):
        build_executor("slurm", job, workers=4, options={"partition": "cpu"})


@pytest.mark.parametrize("key", ["partitoin", "pipeline", "depends"])
def test_an_option_that_the_executor_does_not_take_is_refused(job: StoreJob, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"--option has {key}.*start_method"):
        build_executor("local", job, workers=2, options={key: "cpu"})


def test_an_executor_deals_the_parts_into_tasks(job: StoreJob) -> None:
    encode, seal = stages(build_executor("local", job, workers=2))
    assert (encode.tasks, encode.workers, seal.tasks) == (min(8, len(job.parts)), 2, 1)

    options = {"time": "1:00:00", "partition": "cpu"}
    encode, _ = stages(build_executor("slurm", job, workers=100, options=options))
    assert (encode.tasks, encode.workers, encode.time) == (len(job.parts), 100, "1:00:00")

    encode, _ = stages(build_executor("local", job, workers=2, tasks=3))
    assert encode.tasks == 3


def test_a_library_that_is_missing_is_named(job: StoreJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--executor is ray, but ray.*pip install ray"):
        build_executor("ray", job, workers=2)

    monkeypatch.setitem(sys.modules, "datatrove.executor.local", None)
    with pytest.raises(ConfigError, match=r"pip install 'hf-tinyformer\[scale\]'"):
        build_executor("local", job, workers=2)
