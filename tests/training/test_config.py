import pytest

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.training.config import TrainConfig


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2", "muon_momentum"])
def test_a_memory_that_takes_nothing_in_is_refused(name):
    with pytest.raises(ConfigError, match=rf"train\.{name} is 1\.0, but it must be less than 1"):
        TrainConfig(**{name: 1.0})
    with pytest.raises(ConfigError, match=rf"train\.{name} is -0\.1, but .* from 0 to 1"):
        TrainConfig(**{name: -0.1})

    assert getattr(TrainConfig(**{name: 0.0}), name) == 0.0
