"""What the processes of one run tell each other."""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from hf_tinyformer.errors import ConfigError, TrainingError

_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

SECONDS_BETWEEN_LOOKS = 0.1
"""How often a process looks whether the main one is done."""

_waits = itertools.count()  # as many on each process, which all take the same way


class Processes:
    """The processes that train together. On one process everything here is free."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Take the accelerator that the run was started with.

        Raises:
            ConfigError: If it shares the work in a way that the loop does not know.
        """
        kind = accelerator.distributed_type
        if kind not in _SUPPORTED and not accelerator.is_fsdp2:
            raise ConfigError(
                f"Accelerate's distributed_type is {kind}, but the loop knows one process, DDP and "
                "FSDP2 (fsdp_version: 2). Launch with a file from configs/accelerate/."
            )
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self.shards_model: bool = kind == DistributedType.FSDP

    @property
    def sharing(self) -> str:
        """How the weights lie, in words."""
        return "shared out (FSDP2)" if self.shards_model else "whole on each process (DDP)"

    def add(self, values: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """Add up numbers over all processes, in one message.

        Args:
            values: Numbers, or scalars on the device, as many on each process.

        Returns:
            Their sums, one-dimensional, on the device. Fetching them waits for it.
        """
        # Apple's GPUs have no float64, and only ever train in one process.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        scalars = [
            value.detach().to(dtype)
            if isinstance(value, torch.Tensor)
            # A kernel fills it in; a copy from the host would wait for the device.
            else torch.full((), value, dtype=dtype, device=self.device)
            for value in values
        ]
        total = torch.stack(scalars)
        if self.count > 1:
            distributed.all_reduce(total)
        return total

    def sum(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """Add up numbers over all processes, in one message.

        Args:
            values: As for `add`.

        Returns:
            Their sums.
        """
        sums: list[float] = self.add(values).tolist()
        return sums

    def _wait_for_main(self) -> None:
        """Wait until the main process has come here too, for hours if need be.

        In an all-reduce, whose time limit finds training that hangs, the others would be killed
        after half an hour (gloo) or ten minutes (NCCL), while the main one prepares a text.
        """
        store, key = _get_default_store(), f"main_first/{next(_waits)}"
        if self.is_main:
            store.set(key, "done")
        while not store.check([key]):
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def main_first(self, action: Callable[[], int], *, what: str) -> int:
        """Let the main process do something while the others wait, and share its answer.

        Args:
            action: What to do, giving an integer of less than 2**53.
            what: Its name, for the others' message if it fails.

        Returns:
            The main process's answer, on every process.

        Raises:
            TrainingError: On the other processes, if the main one failed. It raises its own error.
        """
        answer, error = 0, None
        if self.is_main:
            try:
                answer = action()
            except Exception as raised:
                error = raised
        if self.count > 1:
            self._wait_for_main()
            failed, answer_sum = self.sum([float(error is not None), float(answer)])
            answer = int(answer_sum)
            if failed and error is None:
                raise TrainingError(
                    f"process 0 could not {what}, so process {self.rank} of {self.count} stops "
                    "too. The message of process 0 says why."
                )
        if error is not None:
            raise error
        return answer


def leave_together() -> None:
    """End the processes' connections once all of them have come this far. Alone there are none.

    A process that just ends has its gloo threads cut off, now and then by an abort: a run that went
    well then reports failure (5 of 30 under torchrun with torch 2.13, none of 30 after this).
    """
    if distributed.is_initialized():
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()
