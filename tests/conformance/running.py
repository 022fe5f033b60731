"""Runs the common tests of one model in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

SUBJECTS = {
    "llama": "LlamaTest",
    "rope": "TinyFormerTest",
    "learned": "LearnedTest",
    "sinusoidal": "SinusoidalTest",
    "alibi": "AlibiTest",
    "relative": "RelativeTest",
    "none": "NoneTest",
}


def run_subject(
    folder: Path, subject: str, *, leave_out: str = "", with_slow: bool = False
) -> dict[str, dict]:
    """Run all common tests of one model.

    Args:
        folder: What `assemble` built.
        subject: One of `SUBJECTS`.
        leave_out: Tests to leave out, as pytest's `-k` names them.
        with_slow: Also the tests that transformers itself runs at night only.

    Returns:
        For each test its `outcome` (passed, failed, skipped), `reason` and `seconds`.

    Raises:
        RuntimeError: If pytest did not get as far as running them.
    """
    outcomes = folder / f"outcomes-{subject}.json"
    environment = os.environ | {
        "CONFORMANCE_OUTCOMES": str(outcomes),
        # The package itself need not be installed, and the recorder never is.
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)]),
        "TRANSFORMERS_TINY_MODEL_PATH": str(folder / "tiny_hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RUN_SLOW": "1" if with_slow else "0",
    }
    # This process may itself run under pytest and xdist.
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "recorder", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "-k", f"not ({leave_out})" if leave_out else ""]
    command += [f"tests/test_subjects.py::{SUBJECTS[subject]}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    (folder / f"output-{subject}.txt").write_text(done.stdout + done.stderr)
    if done.returncode not in (0, 1) or not outcomes.exists():
        last = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise RuntimeError(f"The common tests of {subject} did not run:\n" + "\n".join(last))
    return {name.split("::", 1)[1]: end for name, end in json.loads(outcomes.read_text()).items()}
