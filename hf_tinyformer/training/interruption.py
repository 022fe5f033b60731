"""Ctrl-C and SIGTERM as a request: finish the step, write a checkpoint, say how to go on."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Launchers pass a Ctrl-C on to processes that already had it from the terminal. Signals this close
# together are one request; a second one after that means "at once".
SAME_REQUEST_SECONDS = 2.0


class Interruption:
    """Catches SIGINT and SIGTERM inside a `with` block and remembers that one came."""

    def __init__(self) -> None:
        """Catch nothing yet."""
        self.requested = False
        self._requested_at = 0.0
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._requested_at > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.requested:
            self.requested = True
            self._requested_at = now

    def __enter__(self) -> "Interruption":
        """Take over the signals, if this is the thread that may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
