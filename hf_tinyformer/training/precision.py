"""Which number format the arithmetic uses on which device. Weights are float32 in every case."""

import functools
import os
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.training.config import TrainConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@functools.cache
def supports_bf16_matmul(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are faster than float32 ones on a device.

    On a CPU that takes instructions for it: AMX tiles, or AVX-512's, twice as fast as float32 on
    AMD's Zen 4 (docs/benchmarks.md). Without them oneDNN's bfloat16 is no faster, and autocast
    around it is slower (pytorch issues 86270 and 118499).

    Args:
        device: Where the matrices lie.

    Returns:
        True on CUDA from compute capability 8.0 on, and on CPUs with AMX or AVX512_BF16.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return False


def choose_precision(
    setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Literal["no", "bf16", "fp16"]:
    """Turn `train.mixed_precision` into the format to compute in.

    Args:
        setting: The user's word.
        device: Where training runs.

    Returns:
        Accelerate's name of it: `no` is float32. For `auto` bf16 where it is fast, else `no`.

    Raises:
        ConfigError: If fp16 is asked for on a CPU.
    """
    if setting == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.mixed_precision is fp16, but the device is a cpu, where float16 is not trained "
            "in. Set it to auto."
        )
    if setting == "fp32":
        return "no"
    if setting != "auto":
        return setting
    return "bf16" if supports_bf16_matmul(device) else "no"


def find_slow_precision(accelerator: Accelerator) -> str | None:
    """Find out whether a run computes in a format that its device has no instructions for.

    Args:
        accelerator: From `build_accelerator`.

    Returns:
        One line to warn with, or `None` if all is well or nobody has measured such a device.
    """
    device = accelerator.device
    if accelerator.mixed_precision != "bf16" or device.type not in ("cpu", "cuda"):
        return None
    if supports_bf16_matmul(device):
        return None
    return (
        f"train.mixed_precision is bf16, but this {device.type} has no instructions for it: a step "
        "takes many times as long as in fp32. Leave it at auto."
    )


def build_accelerator(config: TrainConfig, *, cpu: bool = False) -> Accelerator:
    """Make the accelerator that `train` takes, on the device and processes that are there.

    Args:
        config: The run's settings; only `mixed_precision` is read.
        cpu: Stay on the CPU even if there is a GPU.

    Returns:
        An Accelerator of resolved mixed precision.

    Raises:
        ConfigError: If the device cannot compute in the format asked for.
    """
    # Accelerate joins CPU processes into one run only if it is told that it is on the CPU.
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    cpu = cpu or asked or not torch.accelerator.is_available()
    # The device comes first: `auto` depends on it.
    device = PartialState(cpu=cpu).device
    precision = choose_precision(config.mixed_precision, device)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        _shard_if_asked(accelerator)
    if accelerator.is_fsdp2 and precision != "no":
        # Accelerate's own policy also rounds the loss, and sums gradients in 8 or 11 bits.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=_DTYPES[precision], reduce_dtype=torch.float32
        )
    return accelerator


def _shard_if_asked(accelerator: Accelerator) -> None:
    """Turn FSDP2 on for CPU processes that were launched with it.

    Accelerate reads the launcher's wish, but grants it to processes with GPUs only, and trains the
    others by DDP without a word (accelerate 1.15, `AcceleratorState`). FSDP2 itself runs on gloo.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    accelerator.state.distributed_type = DistributedType.FSDP
    # The state copies this one's value whenever it is looked up anew.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def name_precision(accelerator: Accelerator) -> Literal["fp32", "bf16", "fp16"]:
    """Name the format that a run computes in, as `train.mixed_precision` does.

    Args:
        accelerator: From `build_accelerator`.

    Returns:
        `fp32` for what Accelerate calls `no`.
    """
    names: dict[str, Literal["fp32", "bf16", "fp16"]] = {
        "no": "fp32",
        "bf16": "bf16",
        "fp16": "fp16",
    }
    return names[accelerator.mixed_precision]
