"""All that it takes to make a token store, as one value that can travel to other processes."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hf_tinyformer.data.store.part_writing import encode_part
from hf_tinyformer.data.store.preparation import prepare_token_store
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import read_part
from hf_tinyformer.data.text.parts import Part
from hf_tinyformer.data.tokenization.fast_encoding import DocumentEncoder
from hf_tinyformer.data.tokenization.tokenizer import load_tokenizer
from hf_tinyformer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class StoreJob:
    """One store to make: of which corpus, by which tokenizer, where."""

    folder: Path
    """Where the store will stand."""

    tokenizer_dir: Path
    """Folder of the tokenizer, made before."""

    config: DataConfig
    """The corpus."""

    parts: Sequence[Part]
    """All of it, planned once."""

    rules: Any
    """See `preparation.encode_part`."""

    facts: Mapping[str, Any]
    """See `preparation.prepare_token_store`."""

    working_dir: Path = field(default_factory=Path.cwd)
    """Where relative paths begin, wherever the process runs."""

    def encode(self, parts: Sequence[Part]) -> None:
        """Encode some parts; those that are there already are left alone.

        Args:
            parts: Of this job. No other process may encode the same ones at the same time.

        Raises:
            DataError: If a document cannot be read or stored.
        """
        with contextlib.chdir(self.working_dir):
            encoder = DocumentEncoder(load_tokenizer(self.tokenizer_dir))
            read = partial(read_part, self.config)
            for part in parts:
                encode_part(self.folder, part, encoder=encoder, read=read, rules=self.rules)

    def seal(self, on_progress: Callable[[int, int, int], None] | None = None) -> None:
        """Encode the parts that are not there, and give the store its name.

        Args:
            on_progress: Told the parts done, all parts, and the bytes of text encoded.

        Raises:
            DataError: If a document cannot be read or stored, or a split has too few tokens.
        """
        with contextlib.chdir(self.working_dir):
            prepare_token_store(
                self.folder,
                tokenizer=load_tokenizer(self.tokenizer_dir),
                parts=self.parts,
                read=partial(read_part, self.config),
                facts=self.facts,
                rules=self.rules,
                on_progress=on_progress,
            )


def _share_cores(workers: int) -> None:
    """Let each process encode with its share of the cores only."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["RAYON_NUM_THREADS"] = str(threads)


def run_job(
    job: StoreJob,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> None:
    """Make a store with processes of this machine.

    Args:
        job: What to make.
        workers: Processes. One encodes with all cores, but reads files with one.
        on_progress: Told the parts done, all parts, and the bytes of text encoded by this process.

    Raises:
        DataError: If a document cannot be read or stored, a split has too few tokens, or a process
            is killed.
    """
    if workers > 1:
        pool = ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),
            initializer=_share_cores,
            initargs=(workers,),
        )
        light = replace(job, parts=())  # it travels with every task
        with pool:
            try:
                tasks = [pool.submit(light.encode, [part]) for part in job.parts]
                for done, task in enumerate(as_completed(tasks), 1):
                    task.result()
                    if on_progress is not None:
                        on_progress(done, len(tasks), 0)
            except BrokenProcessPool:
                raise DataError(
                    f"--workers is {workers}, but one of these processes was killed, perhaps for "
                    "want of memory. Take fewer; the same command goes on from here."
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    job.seal(on_progress)
