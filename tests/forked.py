"""Run something in a child process that may be killed at any of its fault points."""

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from hf_tinyformer import artifacts


def _fork() -> int:
    with warnings.catch_warnings():
        # From 3.12 on Python warns of forking beside threads. The children here only touch files.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def killed_at(fault_point: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that SIGKILLs itself at a fault point, counted from 1.

    Returns:
        True if it was killed there, False if it came to its end before.
    """
    child = _fork()
    if child == 0:
        passed = iter(range(1, 10_000))

        def fault(point: str) -> None:
            if next(passed) == fault_point:
                os.kill(os.getpid(), signal.SIGKILL)

        artifacts.fault = fault
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed, see its traceback above"
    return False
