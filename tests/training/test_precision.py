import pytest
import torch

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.training import precision
from hf_tinyformer.training.precision import choose_precision, supports_bf16_matmul

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
