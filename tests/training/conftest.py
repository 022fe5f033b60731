import pytest
from tiny_training import Room, build_room

from hf_tinyformer.training.metrics import MetricsLog


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return build_room(tmp_path_factory.mktemp("room"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take longer than the tiny runs."""
    monkeypatch.setattr(MetricsLog, "draw", lambda self: None)
