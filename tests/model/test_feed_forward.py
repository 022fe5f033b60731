"""Feed-forward, against numbers worked by hand."""

import math

import pytest
import torch
from tiny_models import tiny_config

from hf_tinyformer.model.configuration_tinyformer import default_intermediate_size
from hf_tinyformer.model.feed_forward import TinyFormerGatedMLP, TinyFormerMLP, gelu, squared_relu


def test_gelu_is_the_tanh_form():
    # h = 1: 1/2 * (1 + tanh(sqrt(2/pi) * 1.044715)).
    expected = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))

    assert gelu(torch.tensor(1.0)).item() == pytest.approx(expected, abs=1e-6)
    assert gelu(torch.tensor(1.0)).item() != pytest.approx(0.8413447, abs=1e-4)  # the exact form


def test_squared_relu_squares_what_is_positive():
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_swiglu_gates_one_branch_with_the_other():
    mlp = TinyFormerGatedMLP(tiny_config(hidden_size=1, intermediate_size=1, head_dim=2))
    mlp.gate_proj.weight.data.fill_(2.0)
    mlp.up_proj.weight.data.fill_(3.0)
    mlp.down_proj.weight.data.fill_(5.0)

    # h = 1: silu(2) = 2 / (1 + e^-2), times 3, times 5.
    expected = 2 / (1 + math.exp(-2)) * 15
    assert mlp(torch.ones(1)).item() == pytest.approx(expected, rel=1e-6)


def test_mlp_is_two_layers_with_the_activation_between():
    mlp = TinyFormerMLP(
        tiny_config(hidden_size=1, intermediate_size=2, head_dim=2, mlp_type="relu2", mlp_bias=True)
    )
    mlp.up_proj.weight.data = torch.tensor([[2.0], [-1.0]])
    mlp.up_proj.bias.data = torch.tensor([1.0, 0.0])
    mlp.down_proj.weight.data = torch.tensor([[10.0, 100.0]])
    mlp.down_proj.bias.data = torch.tensor([0.5])

    # h = 1: up gives 3 and -1, squared ReLU 9 and 0, down 90 + 0.5.
    assert mlp(torch.ones(1)).item() == 90.5


def test_default_width_gives_every_kind_about_as_many_weights():
    assert default_intermediate_size(768, "gelu") == 3072
    assert default_intermediate_size(768, "relu2") == 3072
    assert default_intermediate_size(768, "swiglu") == 2048  # 3 * 2048 = 2 * 3072
    assert default_intermediate_size(384, "swiglu") == 1024
    assert default_intermediate_size(256, "swiglu") == 704  # 682.7 rounded up to 64s
    assert default_intermediate_size(32, "swiglu") == 88  # 85.3 rounded up to 8s
