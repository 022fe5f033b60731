import math

import pytest

from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.schedule import learning_rate_factor


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
