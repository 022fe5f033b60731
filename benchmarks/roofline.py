"""What this machine can do at most: matrix products and memory traffic.

python benchmarks/roofline.py

Everything else is read beside these figures: a step cannot be faster than its products, nor a token
written faster than the weights are read.
"""

import statistics
import time
from collections.abc import Callable

import torch


def _best_of(work: Callable[[], object], rounds: int = 7) -> float:
    """Return the seconds of the median round, after one that does not count."""
    work()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measure products of square matrices, in TFLOP/s."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_of(lambda: left @ right) / 1e12


def memory_rate(megabytes: int = 512) -> float:
    """Measure `a = b + s * c` over arrays that fit into no cache, in GB/s read and written."""
    count = megabytes * 1_000_000 // 4
    left, right, result = (torch.ones(count) for _ in range(3))
    seconds = _best_of(lambda: torch.add(left, right, alpha=3.0, out=result))
    return 3 * 4 * count / seconds / 1e9


def read_rate(megabytes: int) -> float:
    """Measure matrix times vector, in GB/s of the matrix: what writing one token is made of."""
    rows = megabytes * 1_000_000 // 4 // 1024
    matrix, vector = torch.randn(rows, 1024), torch.randn(1024)
    return 4 * matrix.numel() / _best_of(lambda: matrix @ vector, 31) / 1e9


def measure() -> dict[str, float]:
    """Measure all of them."""
    return {
        "fp32 TFLOP/s": matrix_rate(torch.float32),
        "bf16 TFLOP/s": matrix_rate(torch.bfloat16),
        "memory GB/s": memory_rate(),
        "matrix times vector of 4 MB, GB/s": read_rate(4),
        "matrix times vector of 42 MB, GB/s": read_rate(42),
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:36} {value:8.2f}")
