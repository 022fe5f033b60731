"""A pytest plugin that writes down how each test ended, as JSON."""

import json
import os
from pathlib import Path


class Recorder:
    """Collects one entry per test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report):
        """Take one phase of a test, or one of its subtests."""
        entry = self.entries.setdefault(
            report.nodeid,
            {"outcome": "passed", "reason": "", "seconds": 0.0, "ran": 0, "skipped": []},
        )
        if hasattr(report, "context"):  # a subtest
            if report.skipped:
                entry["skipped"].append(reason_of(report))
            else:
                entry["ran"] += 1
        entry["seconds"] += getattr(report, "duration", 0.0)
        if report.failed:
            entry.update(outcome="failed", reason=reason_of(report))
        elif report.skipped and not hasattr(report, "context") and entry["outcome"] == "passed":
            entry.update(outcome="skipped", reason=reason_of(report))

    def pytest_sessionfinish(self):
        """Write the entries, named by class and test."""
        results = {}
        for nodeid, entry in self.entries.items():
            if entry["outcome"] == "passed" and entry["skipped"] and not entry["ran"]:
                # Every subtest was skipped, so nothing was shown.
                entry.update(outcome="skipped", reason=entry["skipped"][0])
            results["::".join(nodeid.split("::")[1:])] = {
                "outcome": entry["outcome"],
                "reason": entry["reason"],
                "seconds": round(entry["seconds"], 3),
            }
        self.path.write_text(json.dumps(results, indent=1, sort_keys=True))


def reason_of(report):
    """Shorten why a test was skipped or failed to one line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ").splitlines()[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0]


def pytest_configure(config):
    """Record into the file that the environment names."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ["CONFORMANCE_OUTCOMES"])))
