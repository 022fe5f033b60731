"""transformers' own rules for model code, `mlinter`, on the files that travel with a checkpoint."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_tinyformer.model

pytest.importorskip("mlinter", reason="pip install transformers-mlinter")

ROOM = Path(hf_tinyformer.model.__file__).parent

# Rule -> file -> why it is broken there. A finding that goes away has to be struck from here.
DECLARED = {
    "TRF051": {
        "masking.py": "It dispatches nothing: it refuses attention functions that would drop the "
        "score bias without a word, which the registry of attention functions cannot tell.",
    },
}


def test_every_file_of_the_model_room_keeps_the_rules(tmp_path):
    # The linter knows a model's files by name, so each part stands in for a file of its own.
    folder = tmp_path / "tinyformer"
    folder.mkdir()
    names = {}
    for source in ROOM.glob("*.py"):
        if source.stem == "__init__":
            continue
        is_known = re.match(r"(modeling|configuration|tokenization)_", source.name)
        name = source.name if is_known else f"modeling_{source.name}"
        shutil.copy(source, folder / name)
        names[name] = source.name

    findings = tmp_path / "findings.json"
    command = [sys.executable, "-m", "mlinter", "--enable-all-trf-rules", "--no-cache"]
    command += ["--no-progress", "--output-json", str(findings), str(folder)]
    subprocess.run(command, capture_output=True, text=True)

    found = {}
    for finding in json.loads(findings.read_text())["findings"]:
        file = names[Path(finding["path"]).name]
        found.setdefault(finding["rule"], {}).setdefault(file, finding["message"])
    assert {rule: set(files) for rule, files in found.items()} == {
        rule: set(files) for rule, files in DECLARED.items()
    }, found
