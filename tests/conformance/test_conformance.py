"""Ours beside Llama under transformers' own common tests; docs/conformance.md has the whole table.

What starts several processes or a compiler is left out here for all but the default, and left to
`make conformance`.
"""

import fcntl
import json
from pathlib import Path

import pytest
from conformance.common_tests import CommonTestsUnavailableError, assemble
from conformance.exceptions import DECLARED, idle, missing, reason_for
from conformance.running import SUBJECTS, run_subject

SHARDED = "fsdp or hsdp"
COSTLY = f"{SHARDED} or test_tp_ or compil"
OURS = [subject for subject in SUBJECTS if subject != "llama"]


@pytest.fixture(scope="session")
def outcomes_of(tmp_path_factory):
    """Run a model's common tests, once among all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "popen-" in shared.name:
        shared = shared.parent

    def run(subject):
        with Path(shared, f"conformance-{subject}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = shared / f"conformance-{subject}.json"
            if not done.exists():
                folder = tmp_path_factory.mktemp(f"conformance-{subject}")
                try:
                    assemble(folder, subject)
                except CommonTestsUnavailableError as error:
                    pytest.skip(str(error))
                leave_out = SHARDED if subject in ("llama", "rope") else COSTLY
                done.write_text(json.dumps(run_subject(folder, subject, leave_out=leave_out)))
            return json.loads(done.read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("subject", OURS)
def test_every_test_that_llama_passes_passes(subject, outcomes_of):
    ours = outcomes_of(subject)
    llama = {name: end for name, end in outcomes_of("llama").items() if name in ours}

    unexplained = {
        name: ours[name] for name in missing(llama, ours) if reason_for(subject, name) is None
    }

    assert sum(end["outcome"] == "passed" for end in ours.values()) > 100
    assert unexplained == {}
    assert idle(subject, llama, ours) == []


@pytest.mark.slow
def test_llama_itself_fails_no_common_test(outcomes_of):
    # Otherwise the measure is bent: by stand-ins that ask too much, or by this machine.
    failed = {name for name, end in outcomes_of("llama").items() if end["outcome"] == "failed"}

    assert failed == set()


PASSED, SKIPPED, FAILED = ({"outcome": end} for end in ("passed", "skipped", "failed"))


def test_a_skipped_a_failed_and_an_absent_test_all_count_as_not_passed():
    llama = {"a": PASSED, "b": PASSED, "c": PASSED, "d": SKIPPED, "e": FAILED, "f": PASSED}
    ours = {"a": PASSED, "b": SKIPPED, "c": FAILED, "d": SKIPPED, "e": FAILED}

    assert missing(llama, ours) == ["b", "c", "f"]


def test_a_reason_holds_for_its_models_only():
    assert reason_for("learned", "test_model_rope_scaling_frequencies")
    assert reason_for("rope", "test_model_rope_scaling_frequencies") is None
    assert reason_for("learned", "test_save_load") is None


def test_a_declared_difference_that_is_none_is_named():
    name = "test_model_rope_scaling_frequencies"

    assert idle("none", {name: PASSED}, {name: PASSED}) == ["test_model_rope_"]
    assert idle("none", {name: PASSED}, {name: FAILED}) == []
    assert idle("none", {}, {}) == []


def test_nothing_is_declared_for_the_default_shape():
    assert not any("rope" in difference.subjects for difference in DECLARED)
