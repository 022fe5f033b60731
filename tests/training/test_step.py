import pytest
import torch
from torch import nn

from hf_tinyformer.errors import ConfigError, TrainingError
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.step import fit_micro_batch, split_batch, uses_dropout


@pytest.mark.parametrize(
    ("total", "micro", "processes", "expected"),
    [
        (32, None, 1, (32, 1)),
        (32, None, 4, (8, 1)),
        (32, 4, 2, (4, 4)),
        (8, 1, 8, (1, 1)),
    ],
)
def test_the_global_batch_is_shared_out(total, micro, processes, expected):
    config = TrainConfig(global_batch_size=total, micro_batch_size=micro)

    assert split_batch(config, processes) == expected


def test_processes_that_do_not_divide_the_batch_are_named():
    with pytest.raises(ConfigError, match=r"global_batch_size is 10, .* the 4 processes. Take 12"):
        split_batch(TrainConfig(global_batch_size=10), 4)


def test_a_micro_batch_that_does_not_divide_its_share_is_named():
    with pytest.raises(ConfigError, match=r"micro_batch_size is 6, .* the 16 .* Take 2 or 16"):
        split_batch(TrainConfig(global_batch_size=32, micro_batch_size=6), 2)


@pytest.mark.parametrize(
    ("share", "length", "expected"),
    [
        (16, 256, 4),  # nanoGPT's 10.7M: 5 rows fit, and 4 divide 16
        (5, 256, 5),
        (7, 256, 1),
        (48, 64, 16),  # 21 fit
        (4, 100_000, 1),
    ],
)
def test_a_cpu_takes_a_few_rows_at_once(share, length, expected):
    model = WithConfig(hidden_size=384, num_hidden_layers=6)
    config = TrainConfig(global_batch_size=2 * share)

    def fit(config, device="cpu", model=model):
        fitted = fit_micro_batch(
            config, model, torch.device(device), processes=2, sequence_length=length
        )
        return fitted.micro_batch_size

    assert fit(config) == expected
    assert fit(config, device="cuda") is None
    assert fit(config, model=nn.Linear(2, 2)) is None
    assert fit(TrainConfig(global_batch_size=2 * share, micro_batch_size=share)) == share


class WithConfig(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.config = type("Config", (), {})()
        vars(self.config).update(settings)


def test_dropout_is_seen_in_layers_and_in_the_config():
    assert uses_dropout(nn.Sequential(nn.Dropout(0.1)))
    assert uses_dropout(WithConfig(attention_dropout=0.1))
    assert not uses_dropout(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)))
    assert not uses_dropout(WithConfig(attention_dropout=0.0, classifier_dropout=None))


def test_without_dropout_the_global_generator_is_left_alone(room, tmp_path, no_figures):
    model = room.model()
    torch.manual_seed(5)
    before = torch.get_rng_state()

    room.train(tmp_path, model=model, max_steps=3, sample_tokens=3)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_micro_batch_that_memory_does_not_hold_is_named(room, tmp_path, no_figures, monkeypatch):
    def run_out(*arguments, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = room.model()
    monkeypatch.setattr(model.model, "forward", run_out)

    with pytest.raises(TrainingError, match=r"micro_batch_size is 4, .* the memory of cpu\. Lower"):
        room.train(tmp_path, model=model, micro_batch_size=4)


def test_training_leaves_no_gradients_behind(room, tmp_path, no_figures):
    model = room.model()

    room.train(tmp_path, model=model, max_steps=3)

    assert all(parameter.grad is None for parameter in model.parameters())
