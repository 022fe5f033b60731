import os
import signal
import subprocess
import sys
import time

import pytest

from hf_tinyformer.training.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_handler_goes_back(number):
    before = signal.getsignal(number)

    with Interruption() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), number)
        time.sleep(0)  # the handler runs between two bytecodes
        assert interruption.requested

    assert signal.getsignal(number) is before


def test_signals_close_together_are_one_request():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert interruption.requested


def test_a_later_second_signal_ends_the_process_at_once():
    program = """
import os, signal
from hf_tinyformer.training import interruption
interruption.SAME_REQUEST_SECONDS = 0.0
with interruption.Interruption():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert done.returncode == -signal.SIGTERM
    assert done.stdout == b""
