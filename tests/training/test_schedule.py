import math

import pytest

from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.schedule import learning_rate_factor, muon_momentum


def factors(**settings):
    config = TrainConfig(**settings)
    return [learning_rate_factor(step, config) for step in range(config.max_steps)]


def test_warm_up_rises_in_equal_parts_and_ends_at_the_peak():
    assert factors(max_steps=10, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_stable_part_is_flat_and_the_decay_is_linear():
    # The last 4 of 10 steps decay: the first of them still has the peak, the next 3/4, ...
    assert factors(max_steps=10, warmup_steps=2, decay_fraction=0.4) == [
        *(0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        *(0.75, 0.5, 0.25),
    ]


def test_cosine_is_half_way_down_in_the_middle():
    result = factors(max_steps=10, warmup_steps=2, schedule="cosine")

    assert result[2] == 1.0
    assert result[6] == pytest.approx(0.5)  # 4 of 8 steps into the decay
    assert result[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.mark.parametrize("schedule", ["warmup_stable_decay", "cosine"])
def test_the_rate_ends_near_its_floor_and_never_below(schedule):
    result = factors(
        max_steps=1000,
        warmup_steps=0,
        decay_fraction=1.0,
        schedule=schedule,
        min_learning_rate_ratio=0.1,
    )

    assert result[0] == 1.0
    assert 0.1 < result[-1] < 0.102
    assert result == sorted(result, reverse=True)


def test_a_decay_that_reaches_into_the_warm_up_begins_after_it():
    assert factors(max_steps=4, warmup_steps=2, decay_fraction=1.0) == [0.5, 1.0, 1.0, 0.5]


def test_without_decay_the_peak_stays():
    assert factors(max_steps=3, warmup_steps=0, decay_fraction=0.0) == [1.0, 1.0, 1.0]


def test_momentum_rises_in_a_straight_line_and_stays():
    config = TrainConfig(muon_momentum=0.95, muon_momentum_warmup_steps=100)

    found = [muon_momentum(step, config) for step in (0, 50, 99, 100, 5000)]

    assert found == pytest.approx([0.7, 0.825, 0.9475, 0.95, 0.95])


def test_a_momentum_below_the_first_and_no_rise_at_all_are_flat():
    low = TrainConfig(muon_momentum=0.6)
    flat = TrainConfig(muon_momentum_warmup_steps=0)

    assert {muon_momentum(step, low) for step in (0, 10, 1000)} == {0.6}
    assert muon_momentum(0, flat) == 0.95
