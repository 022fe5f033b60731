from types import SimpleNamespace

import pytest
import torch

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.training import precision
from hf_tinyformer.training.precision import (
    choose_precision,
    find_slow_precision,
    supports_bf16_matmul,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_takes_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool, chosen: str):
    monkeypatch.setattr(precision, "supports_bf16_matmul", lambda device: fast)

    assert choose_precision("auto", CPU) == chosen


@pytest.mark.parametrize(("setting", "chosen"), [("fp32", "no"), ("bf16", "bf16")])
def test_a_named_precision_is_taken_as_it_is(setting, chosen):
    assert choose_precision(setting, CPU) == chosen


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match=r"mixed_precision is fp16, but the device is a cpu"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_counts_as_fast_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], fast: bool
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    supports_bf16_matmul.cache_clear()

    assert supports_bf16_matmul(CPU) is fast
    supports_bf16_matmul.cache_clear()


def test_a_device_nobody_measured_counts_as_slow():
    assert not supports_bf16_matmul(torch.device("meta"))


@pytest.mark.parametrize(
    ("device", "mixed_precision", "fast", "warns"),
    [
        ("cpu", "bf16", False, True),
        ("cuda", "bf16", False, True),
        ("cpu", "bf16", True, False),
        ("cpu", "no", False, False),
        ("mps", "bf16", False, False),
    ],
)
def test_bf16_without_instructions_for_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, device: str, mixed_precision: str, fast: bool, warns: bool
):
    monkeypatch.setattr(precision, "supports_bf16_matmul", lambda device: fast)
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision=mixed_precision)

    warning = find_slow_precision(accelerator)

    assert bool(warning) is warns
    if warns:
        assert f"train.mixed_precision is bf16, but this {device} has no" in warning
