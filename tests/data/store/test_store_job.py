"""What a pool of processes is sent, and what comes of it if one is killed."""

import pickle
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from hf_tinyformer.data.store import store_job
from hf_tinyformer.data.store.store_job import StoreJob, run_job
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.parts import Part
from hf_tinyformer.errors import DataError


class Pool:
    """Looks at what it is given, in this process."""

    def __init__(self, *_words: Any, **_options: Any) -> None:
        self.sizes: list[int] = []
        pools.append(self)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def shutdown(self, **_options: Any) -> None:
        pass

    def submit(self, function: Any, *words: Any) -> Future[None]:
        self.sizes.append(len(pickle.dumps((function, words))))
        done: Future[None] = Future()
        done.set_result(None)
        return done


class KilledPool(Pool):
    def submit(self, function: Any, *words: Any) -> Future[None]:
        if self.sizes:  # it may break before all tasks are given
            raise BrokenProcessPool
        done = super().submit(function, *words)
        done = Future()
        done.set_exception(BrokenProcessPool())
        return done


pools: list[Pool] = []


def job(folder: Path, num_parts: int) -> StoreJob:
    return StoreJob(
        folder=folder / "tokens",
        tokenizer_dir=folder / "tokenizer",
        config=DataConfig(files=["x"]),
        parts=[Part(f"corpus/{n:05d}", "corpus", {"n": n}) for n in range(num_parts)],
        rules=None,
        facts={},
    )


def test_a_task_carries_its_own_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_job, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(StoreJob, "seal", lambda self, on_progress: sealed.append(len(self.parts)))
    sealed: list[int] = []

    for num_parts in (2, 200):
        run_job(job(tmp_path, num_parts), workers=2)

    assert max(pools[-1].sizes) == max(pools[-2].sizes)
    assert len(pools[-1].sizes) == 200
    assert sealed == [2, 200]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_process_that_is_killed_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    monkeypatch.setattr(store_job, "ProcessPoolExecutor", KilledPool)

    with pytest.raises(DataError, match=r"^--workers is 8, but .* killed, .* Take fewer; .*$"):
        run_job(job(tmp_path, num_parts), workers=8)
