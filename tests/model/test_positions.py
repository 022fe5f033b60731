"""Positions, against numbers worked by hand and the authors' own code."""

import math

import pytest
import torch
from reference import transformer as reference
from tiny_models import tiny_config

from hf_tinyformer.model.positions import (
    TinyFormerRotaryEmbedding,
    alibi_slopes,
    apply_rotary,
    relative_buckets,
    rotate_half,
    sinusoidal_positions,
)


def test_sinusoidal_row_matches_the_formula_worked_by_hand():
    # Position 3, width 4: frequencies 10000^0 = 1 and 10000^(-2/4) = 0.01.
    expected = torch.tensor([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)])

    torch.testing.assert_close(sinusoidal_positions(torch.tensor(3), 4), expected)


def test_sinusoidal_positions_go_on_without_end():
    far = sinusoidal_positions(torch.tensor([100_000]), 8)

    torch.testing.assert_close(
        far[0].double(), torch.from_numpy(reference.sinusoid(100_000, 8)), atol=1e-2, rtol=0
    )  # float32 knows an angle of 100000 radians to about 0.008


def test_a_right_angle_turns_each_pair():
    assert rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_rotary_turns_a_pair_by_its_position():
    # head_dim 2 has one pair, which turns by one radian per position.
    rotary = TinyFormerRotaryEmbedding(tiny_config(head_dim=2))
    query = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)
    cos, sin = rotary(query, torch.arange(3)[None])

    turned, _ = apply_rotary(query, query, cos, sin)

    expected = torch.tensor([[math.cos(p), math.sin(p)] for p in range(3)])
    torch.testing.assert_close(turned[0, 0], expected)


def test_rotary_scores_depend_on_distance_only():
    rotary = TinyFormerRotaryEmbedding(tiny_config())
    query, key = torch.randn(2, 1, 4, 6, 8)

    def scores(first_position):
        position_ids = torch.arange(6)[None] + first_position
        turned_query, turned_key = apply_rotary(query, key, *rotary(query, position_ids))
        return turned_query @ turned_key.transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(50), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(0), query @ key.transpose(-1, -2), atol=0.1)


def test_rotary_frequencies_stay_exact_in_a_half_precision_model():
    rotary = TinyFormerRotaryEmbedding(tiny_config())
    before = rotary.inv_freq.clone()

    for move in (rotary.to(torch.bfloat16), rotary.half(), rotary.double(), rotary.float()):
        assert move.inv_freq.dtype == torch.float32
        assert torch.equal(move.inv_freq, before)


def test_linear_scaling_slows_the_turning():
    plain = TinyFormerRotaryEmbedding(tiny_config())
    stretched = TinyFormerRotaryEmbedding(
        tiny_config(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0})
    )

    torch.testing.assert_close(stretched.inv_freq, plain.inv_freq / 4)


def test_alibi_slopes_are_those_of_the_paper():
    # Press et al. 2022, section 3: for 8 heads 1/2, 1/4, ..., 1/256.
    assert alibi_slopes(8).tolist() == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]


def test_alibi_slopes_for_an_odd_number_of_heads_are_those_of_the_authors():
    # Their code for 6: the slopes for 4 heads, then the first and third of those for 8.
    expected = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])

    torch.testing.assert_close(alibi_slopes(6), expected)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 16), (16, 1000)])
def test_buckets_of_one_direction_match_an_independent_implementation(num_buckets, max_distance):
    distances = range(1200)

    buckets = relative_buckets(
        torch.tensor(list(distances)),
        bidirectional=False,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )

    # At a boundary float32 and float64 may round the logarithm to either side.
    expected = [reference.relative_bucket(d, num_buckets, max_distance) for d in distances]
    apart = [d for d in distances if buckets[d] != expected[d]]
    assert len(apart) <= 3
    assert all(abs(buckets[d] - expected[d]) == 1 for d in apart)


def test_buckets_match_t5s_own():
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-200, 200)

    for bidirectional in (False, True):
        ours = relative_buckets(
            distance, bidirectional=bidirectional, num_buckets=32, max_distance=128
        )
        theirs = T5Attention._relative_position_bucket(
            -distance, bidirectional=bidirectional, num_buckets=32, max_distance=128
        )
        assert torch.equal(ours, theirs)


def test_buckets_worked_by_hand():
    # 8 buckets: 0 to 3 exact, then 4 + floor(4 * log(d / 4) / log(16 / 4)), at most 7.
    distances = torch.tensor([-5, 0, 1, 3, 4, 5, 6, 8, 11, 15, 16, 500])

    buckets = relative_buckets(distances, bidirectional=False, num_buckets=8, max_distance=16)

    assert buckets.tolist() == [0, 0, 1, 3, 4, 4, 5, 6, 6, 7, 7, 7]
