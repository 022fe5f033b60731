"""Stands in for transformers' module of this name: starts the processes of a distributed test."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _get_distributed_device_type():
    return "cpu"


def _get_distributed_backend():
    return "gloo"


def _get_rank_device(rank):
    return torch.device("cpu")


def _set_rank_device(rank):
    pass


def _start_rank_processes(run, args, nprocs):
    mp.spawn(run, args=args, nprocs=nprocs)


def _join_and_run(rank, test, arguments, world_size, port):
    dist.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=world_size
    )
    try:
        test(rank, *arguments)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size):
    """Run a function in so many processes, with its rank as first argument."""

    def wrap(test):
        def run(*arguments):
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port = probe.getsockname()[1]
            mp.spawn(_join_and_run, args=(test, arguments, world_size, port), nprocs=world_size)

        return run

    return wrap
