"""Which tests run which lines: a plugin of pytest, `pytest -p benchmarks.mutants.covering`.

Writes COVERING (an environment variable names the file): where the tree stood, which names of tests
may hold, of each test its seconds, and the lines of our packages that it ran in this process.
"""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

PACKAGES = ("graphs", "replacement_models", "tracer")


class Covering:
    """Gives every test a context of its own."""

    def __init__(self) -> None:
        self.measured = coverage.Coverage(data_file=None, source=PACKAGES, config_file=False)
        self.seconds: dict[str, float] = {}
        self.measured.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note what one test runs, its fixtures included."""
        self.measured.switch_context(item.nodeid)
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self.measured.switch_context("")

    def pytest_sessionfinish(self) -> None:
        """Write it down."""
        self.measured.stop()
        data, lines = self.measured.get_data(), {}
        for file in data.measured_files():
            by_line = data.contexts_by_lineno(file)
            name = Path(file).relative_to(Path.cwd()).as_posix()
            lines[name] = {line: [one for one in by_line[line] if one] for line in by_line}
        found = {"tree": str(Path.cwd()), "seconds": self.seconds, "lines": lines}
        Path(os.environ["COVERING"]).write_text(json.dumps(found), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Begin before anything of ours is imported."""
    config.pluginmanager.register(Covering(), "covering")
