"""Prepare a token store with many processes or machines, as a `datatrove` pipeline.

    encode: task r of n encodes parts r, r + n, r + 2n, ...     each part whole or not at all
    seal:   one task checks that all parts are there            the store gets its name

The tasks share only a folder that all of them see. Nothing is told from one to the next: a task
that was killed is started again and skips the parts that are there. The same stages run under
datatrove's executors for one machine, for Slurm and for Ray, and give the store that one process
gives, byte for byte.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hf_tinyformer.data.store.store_job import StoreJob
from hf_tinyformer.errors import ConfigError

EXECUTORS = ("local", "slurm", "ray")

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


@dataclass
class EncodeParts:
    """The first stage, as datatrove calls it."""

    job: StoreJob

    def __call__(self, _data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Encode this task's share of the parts."""
        self.job.encode(self.job.parts[rank::world_size])

    def __repr__(self) -> str:
        return f"encode {len(self.job.parts)} parts of {self.job.folder}"


@dataclass
class SealStore:
    """The second stage: one task."""

    job: StoreJob

    def __call__(self, _data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Make the parts a store."""
        assert (rank, world_size) == (0, 1)
        self.job.seal()

    def __repr__(self) -> str:
        return f"seal {self.job.folder}"


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words; a value is read as YAML, so `2` is a number.

    A time such as `12:00:00`, which YAML 1.1 takes for a number to the base of 60, stays text.

    Raises:
        ConfigError: If a word has no `=`, or its value is not YAML.
    """
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            is_time = ":" in value and not value.lstrip().startswith(("[", "{", "'", '"'))
            options[key] = value if is_time else yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise ConfigError(f"--option is {word!r}, but it must be KEY=VALUE. Correct it.")
    return options


def _executor_class(name: str) -> Any:
    if name not in EXECUTORS:
        raise ConfigError(
            f"--executor is {name!r}, but datatrove has {', '.join(EXECUTORS)}. Take one of them."
        )
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


def _check_options(name: str, executor: Any, options: Mapping[str, Any]) -> None:
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
    name: str,
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


def run_executor(name: str, executor: Any) -> None:
    """Run both stages; under Slurm, put them into the queue.

    Args:
        name: As `build_executor` was given.
        executor: From `build_executor`.

    Raises:
        DataError: Under `local`, if a task could not read or store a document.
    """
    if name == "ray":
        import ray

        # Joins the cluster that RAY_ADDRESS names, or starts one on this machine.
        ray.init(ignore_reinit_error=True)
    executor.run()
