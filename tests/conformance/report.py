"""Runs all common tests of Llama and of ours, and writes docs/conformance.md from such runs.

    python tests/conformance/report.py run [model ...]  # under the transformers that is installed
    python tests/conformance/report.py write            # from every run in the cache

Name a checkout of the transformers repository in TRANSFORMERS_CHECKOUT, and its tests of generation
and export take the place of the stand-ins.
"""

import json
import platform
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conformance.common_tests import CACHE, assemble, installed_version  # noqa: E402
from conformance.exceptions import missing, reason_for  # noqa: E402
from conformance.running import SUBJECTS, run_subject  # noqa: E402

DOCUMENT = HERE.parent.parent / "docs" / "conformance.md"
OURS = [subject for subject in SUBJECTS if subject != "llama"]
MARKS = {"passed": "✓", "skipped": "-", "failed": "✗"}


def run(subjects: list[str]) -> Path:
    """Run models under the installed transformers, and keep how their tests ended.

    Each is kept as soon as it is done, so a long run can be broken off and gone on with.

    Args:
        subjects: Some of `SUBJECTS`.

    Returns:
        The file with the outcomes of these and of earlier runs.
    """
    import torch

    version = installed_version()
    result = CACHE / f"outcomes-{version}.json"
    for subject in subjects:
        with tempfile.TemporaryDirectory() as folder:
            origin = assemble(Path(folder), subject)
            outcomes = run_subject(Path(folder), subject)
        sys.stderr.write(f"{subject}: {summary(outcomes)}\n")
        kept = json.loads(result.read_text()) if result.exists() else {"models": {}}
        kept["transformers"] = version
        kept["models"][subject] = {
            "checkout": origin.checkout,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "outcomes": outcomes,
        }
        result.write_text(json.dumps(kept, indent=1))
    return result


def summary(outcomes: dict[str, dict]) -> str:
    """Count how the tests ended, and their seconds."""
    ends = Counter(end["outcome"] for end in outcomes.values())
    seconds = sum(end["seconds"] for end in outcomes.values())
    return (
        f"{ends['passed']} passed, {ends['skipped']} skipped, {ends['failed']} failed "
        f"in {seconds:.0f} s"
    )


def title(name: str) -> str:
    """Name a test without its numbered parameters."""
    return re.sub(r"_\d+(_\w+)?$", "", name)


def mark(ends: list[dict]) -> str:
    """Draw how the parameters of one test ended; a count where they differ."""
    kinds = Counter(end["outcome"] for end in ends)
    if len(kinds) == 1:
        return MARKS[next(iter(kinds))]
    return " ".join(f"{number}{MARKS[kind]}" for kind, number in sorted(kinds.items()))


def table_of(outcomes: dict[str, dict]) -> list[str]:
    """Draw one version's tests that at least one model ran."""
    groups = defaultdict(list)
    for name in sorted({name for tests in outcomes.values() for name in tests}):
        groups[title(name)].append(name)
    lines = [f"| test | {' | '.join(outcomes)} |", "|---|" + ":-:|" * len(outcomes)]
    for group, names in groups.items():
        ends = {
            subject: [tests[name] for name in names if name in tests]
            for subject, tests in outcomes.items()
        }
        if any(end["outcome"] != "skipped" for each in ends.values() for end in each):
            many = f" ({len(names)})" if len(names) > 1 else ""
            marks = " | ".join(mark(each) if each else "" for each in ends.values())
            lines.append(f"| `{group}`{many} | {marks} |")
    return lines


def skipped_by_all(outcomes: dict[str, dict]) -> list[str]:
    """List, by reason, the tests that no model ran."""
    reasons = defaultdict(set)
    for name, end in outcomes["llama"].items():
        if all(tests.get(name, {}).get("outcome") == "skipped" for tests in outcomes.values()):
            reason = re.sub(r"^\w+::\w+ is skipped: ", "", end["reason"])
            reason = re.sub(r"Llama\w*", "the model", reason).strip(" .")
            reason = re.sub(
                r"`[\w-]+` is not in .*", "not a task with a class in the tester", reason
            )
            reasons[reason].add(title(name))
    return [
        f"- {reason}: {', '.join(f'`{name}`' for name in sorted(names))}"
        for reason, names in sorted(reasons.items())
    ]


def differences_of(outcomes: dict[str, dict]) -> list[str]:
    """List what Llama passes and one of ours does not, with its reason."""
    found = defaultdict(lambda: defaultdict(set))
    for subject in OURS:
        for name in missing(outcomes["llama"], outcomes[subject]):
            reason = reason_for(subject, name) or "**no reason: this is a defect**"
            found[reason][subject].add(title(name))
    if not found:
        return ["None."]
    lines = []
    for reason, subjects in found.items():
        names = sorted({name for each in subjects.values() for name in each})
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"- {', '.join(subjects)}: {shown}. {reason}")
    return lines


def failed_by_llama(outcomes: dict[str, dict]) -> list[str]:
    """List the tests that Llama itself fails in this environment, with what it says."""
    said = defaultdict(set)
    for name, end in outcomes["llama"].items():
        if end["outcome"] == "failed":
            said[end["reason"]].add(title(name))
    lines = [f"- {code(sorted(names))}: {reason}" for reason, names in sorted(said.items())]
    return ["", "Llama itself fails:", "", *lines] if lines else []


def gained_by(outcomes: dict[str, dict]) -> list[str]:
    """List what the default shape passes and Llama does not."""
    names = sorted({title(name) for name in missing(outcomes["rope"], outcomes["llama"])})
    return [f"The other way round, the default shape passes what Llama skips: {code(names)}."]


def code(names: list[str]) -> str:
    """Set names as code, or say that there are none."""
    return ", ".join(f"`{name}`" for name in names) or "nothing"


INTRODUCTION = """\
# Under transformers' own tests

<!-- Written by `make conformance` from a run; edit tests/conformance/report.py instead. -->

Every model in transformers has to pass a set of common tests: loading and saving, generation,
caches, attention functions, gradient checkpointing, training, tensor and sharded parallelism. Here
they run on ours and on transformers' own Llama, with the same tiny shapes, each in a process of its
own, at the same version. The rule: **what Llama passes, ours passes**. `rope` is the default shape;
the other columns change its position scheme and nothing else.

✓ passed, - skipped, ✗ failed; a number before a mark counts parameters that ended so. A skipped
test counts as not passed. `tests/conformance/test_conformance.py` holds the rule in CI, with the
differences below as the only ones; one that goes away fails that test too. Tests that start
several processes run only under `make conformance`; in CI those of a compiler only for `rope` and
Llama.

The tests are not in this repository. They come from the source distribution of the version that is
installed, fetched by pip into `.conformance/`. It leaves out transformers' tests of generation and
of export, and the class that ties the mixins together; for these, `tests/conformance/standins/` has
tests of the same names, or `TRANSFORMERS_CHECKOUT` names a checkout whose own ones are used. The
tests of several processes, which transformers runs for a few models only, are switched on for both.
The tests of pipelines, which fetch tiny models from the Hub, find tiny models made on the spot.
"""


def write(runs: list[Path]) -> None:
    """Write the document from the outcomes of runs.

    Args:
        runs: Files that `run` wrote.
    """
    lines = [INTRODUCTION]
    for path in sorted(runs, reverse=True):
        kept = json.loads(path.read_text())
        lacking = [subject for subject in SUBJECTS if subject not in kept["models"]]
        if lacking:
            raise SystemExit(f"{path.name} lacks {', '.join(lacking)}. Run them first.")
        outcomes = {subject: kept["models"][subject]["outcomes"] for subject in SUBJECTS}
        facts = kept["models"]["llama"]
        checkout = facts["checkout"]
        gaps = f"filled from a checkout of {checkout}" if checkout else "filled by the stand-ins"
        lines += [
            f"## transformers {kept['transformers']}",
            "",
            f"torch {facts['torch']}, Python {facts['python']}; gaps {gaps}.",
            "",
            "| model | tests |",
            "|---|---|",
            *(f"| {name} | {summary(tests)} |" for name, tests in outcomes.items()),
            "",
            "### Differences, and why",
            "",
            *differences_of(outcomes),
            "",
            *gained_by(outcomes),
            *failed_by_llama(outcomes),
            "",
            "### Test by test",
            "",
            *table_of(outcomes),
            "",
            "### Skipped by all",
            "",
            *skipped_by_all(outcomes),
            "",
        ]
    DOCUMENT.write_text("\n".join(lines), encoding="utf-8")


def main(words: list[str]) -> int:
    """Run or write, as the word on the command line says."""
    transformers.utils.logging.disable_progress_bar()
    if words[:1] == ["run"] and set(words[1:]) <= set(SUBJECTS):
        sys.stdout.write(f"{run(words[1:] or list(SUBJECTS))}\n")
    elif words == ["write"]:
        write(list(CACHE.glob("outcomes-*.json")))
        sys.stdout.write(f"{DOCUMENT}\n")
    else:
        sys.stderr.write(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
