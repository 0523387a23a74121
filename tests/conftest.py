"""Settings of every test run."""

import os

import hypothesis
import pytest

# The tensors of the tests are tiny: several threads would only wait for each other, on a machine
# that does something else besides ten times longer than one thread needs for the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine an example takes as long as it takes.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say, in a line each, what a missing program kept from running."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = {one.longrepr[2] for one in reports if isinstance(one.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if reason.endswith("not run")):
        terminalreporter.write_line(reason.removeprefix("Skipped: "))
