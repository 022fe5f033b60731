"""Learning rate and momentum as pure functions of the step: nothing to save, nothing to restore.

Sources: warm-up, stable, linear decay, Hägele et al. 2024, "Scaling Laws and Compute-Optimal
Training Beyond Fixed Training Durations", section 3; cosine, Loshchilov and Hutter 2017, "SGDR",
equation 5.
"""

import math

from hf_tinyformer.training.config import TrainConfig

FIRST_MOMENTUM = 0.7
"""Muon's momentum at the first step. Gradients turn quickly in the beginning, so a long memory is
then a memory of what no longer holds (docs/benchmarks.md)."""


def _decay_progress(step: int, config: TrainConfig) -> float:
    if config.schedule == "cosine":
        decay_steps = config.max_steps - config.warmup_steps
    else:
        longest = config.max_steps - config.warmup_steps
        decay_steps = min(round(config.decay_fraction * config.max_steps), longest)
    steps_into_decay = step - (config.max_steps - decay_steps)
    if steps_into_decay <= 0:
        return 0.0
    return min(1.0, steps_into_decay / decay_steps)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate that a step uses.

    The first of `warmup_steps` steps uses one part of them, the last one the peak. The decay would
    reach `min_learning_rate_ratio` at step `max_steps`, the first that is not taken, so no step is
    spent on a rate of zero.

    Args:
        step: Optimizer steps taken before this one: 0 for the first.
        config: The run's settings.

    Returns:
        A number from 0 to 1.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = _decay_progress(step, config)
    if config.schedule == "cosine":
        height = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        height = 1.0 - progress
    floor = config.min_learning_rate_ratio
    return floor + (1.0 - floor) * height


def muon_momentum(step: int, config: TrainConfig) -> float:
    """Return Muon's momentum for a step: it rises in a straight line to `muon_momentum`.

    Args:
        step: Optimizer steps taken before this one: 0 for the first.
        config: The run's settings.

    Returns:
        A number from 0 to 1, never above `config.muon_momentum`.
    """
    last, rising = config.muon_momentum, config.muon_momentum_warmup_steps
    if step >= rising or last <= FIRST_MOMENTUM:
        return last
    return FIRST_MOMENTUM + (last - FIRST_MOMENTUM) * step / rising
