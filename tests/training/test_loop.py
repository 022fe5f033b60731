import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in timing} for x in lines]


def test_a_run_leaves_metrics_curve_and_checkpoints(room, tmp_path):
    result = room.train(tmp_path, sample_tokens=5)

    assert (result.status, result.step) == ("finished", 6)
    assert result.tokens_seen == 6 * 8 * 16
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = read_lines(tmp_path)
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in lines if "validation_loss" in x] == [3, 6]
    assert all(isinstance(x["sample"], str) for x in lines if "validation_loss" in x)
    assert result.checkpoint.name == "step-000006"
