"""Prepare a token store with many processes or machines, as a `datatrove` pipeline.

    encode: task r of n encodes parts r, r + n, r + 2n, ...     each part whole or not at all
    seal:   one task checks that all parts are there            the store gets its name

The tasks share only a folder that all of them see. Nothing is told from one to the next: a task
that was killed is started again and skips the parts that are there. The same stages run under
datatrove's executors for one machine, for Slurm and for Ray, and give the store that one process
gives, byte for byte.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hf_tinyformer.data.corpus import DataConfig, Part, read_part
from hf_tinyformer.data.fast_encoding import DocumentEncoder
from hf_tinyformer.data.preparation import encode_part, prepare_token_store
from hf_tinyformer.data.tokenizer import load_tokenizer
from hf_tinyformer.errors import ConfigError

ExecutorName = Literal["local", "slurm", "ray"]

_MOST_TASKS = 1_000
"""Slurm takes about as many in an array; a task may have many parts."""

_TASKS_A_WORKER = 4
"""On one machine: enough that a worker with short parts takes over from one with long ones."""

_OURS = (
    "pipeline",
    "tasks",
    "workers",
    "depends",
    "depends_job_id",
    "logging_dir",
    "skip_completed",
)


@dataclass(frozen=True)
class StoreJob:
    """What every task of a preparation must know. Travels to other machines by pickle."""

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
    """Where the configuration's relative paths begin."""

    def encoder(self) -> DocumentEncoder:
        """Make what encodes, once in each process."""
        return DocumentEncoder(load_tokenizer(self.tokenizer_dir))

    def encode(
        self,
        part: Part,
        encoder: DocumentEncoder,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Encode one part, unless it is there already."""
        encode_part(
            self.folder,
            part,
            encoder=encoder,
            read=partial(read_part, self.config),
            rules=self.rules,
            on_bytes=on_bytes,
        )

    def seal(self, on_progress: Callable[[int, int, int], None] | None = None) -> None:
        """Encode what is missing still, and give the store its name."""
        prepare_token_store(
            self.folder,
            tokenizer=load_tokenizer(self.tokenizer_dir),
            parts=self.parts,
            read=partial(read_part, self.config),
            facts=self.facts,
            rules=self.rules,
            on_progress=on_progress,
        )


@dataclass
class EncodeParts:
    """The first stage, as datatrove calls it."""

    job: StoreJob

    def __call__(self, _data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Encode this task's share of the parts."""
        with contextlib.chdir(self.job.working_dir):
            encoder = self.job.encoder()
            for part in self.job.parts[rank::world_size]:
                self.job.encode(part, encoder)

    def __repr__(self) -> str:
        return f"encode {len(self.job.parts)} parts of {self.job.folder}"


@dataclass
class SealStore:
    """The second stage: one task."""

    job: StoreJob

    def __call__(self, _data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Make the parts a store."""
        assert (rank, world_size) == (0, 1)
        with contextlib.chdir(self.job.working_dir):
            self.job.seal()

    def __repr__(self) -> str:
        return f"seal {self.job.folder}"


def _executor_class(name: ExecutorName) -> Any:
    try:
        if name == "local":
            from datatrove.executor.local import LocalPipelineExecutor as Executor
        elif name == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor as Executor
        else:
            import ray  # noqa: F401 - datatrove asks for it only when it runs
            from datatrove.executor.ray import RayPipelineExecutor as Executor
    except ImportError as error:
        missing = "ray" if error.name == "ray" else "'hf-tinyformer[scale]'"
        raise ConfigError(
            f"--executor is {name}, but {error.name} is not installed. "
            f"Run `pip install {missing}`, or leave --executor out."
        ) from None
    return Executor


def _check_options(name: ExecutorName, executor: Any, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(executor).parameters
    allowed = sorted(set(parameters) - set(_OURS))
    for key in options:
        if key not in allowed:
            raise ConfigError(
                f"--option has {key}, but datatrove's {name} executor takes "
                f"{', '.join(allowed) or 'none'}. Correct it."
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in (*_OURS, *options):
            raise ConfigError(
                f"--option {key} is not set, but datatrove's {name} executor needs it. "
                f"Add --option {key}=VALUE."
            )


def build_executor(
    name: ExecutorName,
    job: StoreJob,
    *,
    workers: int,
    tasks: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Build the executor of the last stage, which starts the first one before itself.

    Args:
        name: datatrove's executor: processes of this machine, a Slurm array, or a Ray cluster.
        job: What to prepare. Its folders must be seen by all machines.
        workers: Tasks at a time.
        tasks: Pieces that the parts are dealt into. Unset: one a part, up to a thousand, and on
            one machine up to four a worker.
        options: More arguments of the executor, such as `partition` and `time` for Slurm.

    Returns:
        A datatrove executor. Its `run` starts everything; under Slurm it returns when the jobs are
        in the queue.

    Raises:
        ConfigError: If a library is missing, or an option is wrong or missing.
    """
    executor = _executor_class(name)
    options = dict(options or {})
    _check_options(name, executor, options)
    most = workers * _TASKS_A_WORKER if name == "local" else _MOST_TASKS
    logs = job.folder.with_name(f"{job.folder.name}.logs")
    # Parts know themselves whether they are done. A note of datatrove's that a task is would be
    # wrong as soon as the corpus changes.
    shared = {"skip_completed": False, **options}
    encode = executor(
        pipeline=[EncodeParts(job)],
        tasks=tasks or max(1, min(len(job.parts), most)),
        workers=workers,
        logging_dir=str(logs / "encode"),
        **shared,
    )
    return executor(
        pipeline=[SealStore(job)],
        tasks=1,
        workers=1,
        logging_dir=str(logs / "seal"),
        depends=encode,
        **shared,
    )


def run_executor(executor: Any, job: StoreJob) -> bool:
    """Run all stages.

    Args:
        executor: From `build_executor`.
        job: What it prepares.

    Returns:
        Whether the store is there; if not, its tasks are waiting in a queue.

    Raises:
        DataError: If a task failed, with its first reason.
    """
    executor.run()
    return job.folder.is_dir()
