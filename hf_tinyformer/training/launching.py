"""Start as many CPU processes as `accelerate launch` was asked for.

`accelerate launch --cpu --num_processes 2` starts one process and says nothing, unless MPI is
installed and a hostfile is given (accelerate 1.15, `simple_launcher`). It leaves traces, though:
a port for the processes to meet at, and its own command line.
"""

import os
import sys
from collections.abc import Mapping, Sequence

import psutil


def _asked_for(launcher_words: Sequence[str]) -> int:
    for word, following in zip(launcher_words, [*launcher_words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            number = value or following
            return int(number) if number.isdigit() else 1
    return 1


def several_processes_command(
    program: Sequence[str],
    *,
    environment: Mapping[str, str] = os.environ,
    launcher_words: Sequence[str] | None = None,
) -> list[str] | None:
    """Give the command that starts the processes that are missing.

    Args:
        program: The script and its words, as in `sys.argv`.
        environment: Environment variables of this process.
        launcher_words: The command line of the parent process; `None` looks it up.

    Returns:
        Words for `os.execv`, which run the same program under torchrun in the number of processes
        asked for; `None` if nothing is missing.
    """
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    # The launcher sets the port only for more than one process, torchrun and MPI set the others.
    alone = "MASTER_PORT" in environment and not {"WORLD_SIZE", "LOCAL_RANK"} & environment.keys()
    if not (on_cpu and alone):
        return None
    if launcher_words is None:
        parent = psutil.Process().parent()
        launcher_words = parent.cmdline() if parent is not None else []
    count = _asked_for(launcher_words)
    if count < 2:
        return None
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(count), *program]
