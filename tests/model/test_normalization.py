"""Normalization, against numbers worked by hand."""

import torch

from hf_tinyformer.model.normalization import TinyFormerLayerNorm, TinyFormerRMSNorm


def test_rmsnorm_divides_by_the_root_mean_square():
    norm = TinyFormerRMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])

    # mean of 9 and 16 is 12.5, its root 3.5355.
    expected = torch.tensor([3.0, 8.0]) / 12.5**0.5
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)


def test_layernorm_centres_and_scales():
    norm = TinyFormerLayerNorm(4, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 1.0, 1.0, 3.0])
    norm.bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0])

    # mean 3, deviations -2, 0, 0, 2: variance 8 / 4 = 2.
    expected = torch.tensor([-(2**0.5), 0.0, 5.0, 3 * 2**0.5])
    torch.testing.assert_close(norm(torch.tensor([1.0, 3.0, 3.0, 5.0])), expected)


def test_epsilon_keeps_a_zero_vector_finite():
    for norm in (TinyFormerRMSNorm(4, eps=1e-6), TinyFormerLayerNorm(4, eps=1e-6)):
        assert norm(torch.zeros(4)).tolist() == [0.0] * 4


def test_half_precision_squares_do_not_overflow():
    # 300 squared is 90000, beyond float16's 65504.
    hidden_states = torch.full((4,), 300.0, dtype=torch.float16)

    assert TinyFormerRMSNorm(4, eps=1e-6).half()(hidden_states).tolist() == [1.0] * 4


def test_output_keeps_the_models_dtype():
    for norm in (TinyFormerRMSNorm(4, eps=1e-6), TinyFormerLayerNorm(4, eps=1e-6)):
        hidden_states = torch.randn(3, 4, dtype=torch.bfloat16)
        assert norm.to(torch.bfloat16)(hidden_states).dtype == torch.bfloat16
