"""Whether tests notice single faults: `python -m benchmarks.mutations [--seed N] [--count N]`.

Faults are drawn by the seed over all packages (benchmarks/mutants/draw.py), each is written into a
copy of the tree, and the tests that run its line in this process are started, those of the files
named like its module before all others, the quickest first, until one fails. A fault that none
notices survives. Some are no faults at all, such as a limit that nothing reaches: those are set
aside in results/mutations_aside.json, each with its reason, a tenth at most; why others survive
stands in results/mutations_survived.json. Which tests run which line is measured first, with the
package coverage, in minutes (`--covering FILE` keeps it). Hours; with `--kept FILE` a run that was
broken off goes on, and what was killed stays so while its file is as it was. Prints a table and
writes JSON.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.mutants.draw import Mutant, draw
from benchmarks.mutants.trial import outcome, warm
from benchmarks.output import RESULTS, output_file

ROOT = Path(__file__).parent.parent
SEED, COUNT = 20261201, 320
AT_LEAST = ("tracer/validation", "tracer/patching", "tracer/interventions", "tracer/commands")
EACH = 40
"""Faults in each of these; the others share what is left by their size."""
QUICK = 2000
"""Tests tried without a fault first, the quickest."""
LONGEST = 120.0
"""Seconds of tests a fault, those that take least: one that none of them notices survives."""
NEAR_FILES, NEAR_SECONDS = 2, 6.0
"""Files of tests, and seconds of their tests, that are tried before all others."""
ASIDE, SURVIVED = RESULTS / "mutations_aside.json", RESULTS / "mutations_survived.json"


def main() -> None:
    """Draw, try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--covering", type=output_file, help="measured before, or to be written")
    parser.add_argument("--kept", type=output_file, help="outcomes, a line each, read and added to")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "mutations.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree")
        kept = options.covering or Path(folder) / "covering.json"
        if not kept.exists():
            cover(tree, kept)
        tests = Covered.read(kept, tree)
        drawn = draw(ROOT, grouped(), counts(options.count), options.seed)
        warm()
        check_unchanged(tree, tests)
        outcomes = Outcomes(options.kept or Path(folder) / "kept.jsonl")
        found = [
            {
                "group": group,
                "name": one.name,
                **asdict(one),
                "outcome": outcomes.of(tree, one, tests),
            }
            for group, some in drawn.items()
            for one in some
        ]
    told = summary(found, reasons(ASIDE), reasons(SURVIVED))
    told["seed"] = options.seed
    options.output.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for group, row in told["groups"].items():
        print(f"{group:24} {row['killed']:4} of {row['faults']:4} killed, {row['aside']} set aside")
    for one in told["survivors"]:
        print(f"{one['path']}:{one['line']} {one['kind']}: {one['before']} -> {one['after']}")


class Outcomes:
    """What became of faults, in this run and those before it."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.path, self.known = path, {tuple(key): found for key, found in map(json.loads, lines)}

    def of(self, tree: Path, one: Mutant, tests: "Covered") -> str:
        """What becomes of a fault; one that was killed in the same file is not tried again."""
        text = (ROOT / one.path).read_bytes()
        key = (sha256(text).hexdigest(), one.name, one.number)
        if self.known.get(key, "survived").startswith("survived"):
            self.known[key] = tried(tree, one, tests)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]


class Covered:
    """Which tests run a line, the quickest first."""

    def __init__(self, measured: Mapping[str, Any]) -> None:
        self.seconds: Mapping[str, float] = measured["seconds"]
        self.lines: Mapping[str, Mapping[str, list[str]]] = measured["lines"]

    @classmethod
    def read(cls, path: Path, tree: Path) -> "Covered":
        """What was measured in another copy of the tree: names of tests may hold its place."""
        text = path.read_text(encoding="utf-8")
        return cls(json.loads(text.replace(json.loads(text)["tree"], str(tree))))

    def of(self, path: str, lines: Iterable[int]) -> tuple[list[str], float]:
        """Tests that run one of some lines, and the seconds they take.

        What tests of a file share is run by the first of them that needs it, so the others of the
        file follow. Without lines, or where none is any test's, those that run any of the file.
        """
        by_line = self.lines.get(path, {})
        every = {one for line in lines for one in by_line.get(str(line), ())}
        every = every or {one for some in by_line.values() for one in some}
        files = {name.partition("::")[0] for name in every}
        beside = {name for name in self.seconds if name.partition("::")[0] in files} - every
        chosen: list[str] = []
        spent = 0.0
        for some in (every, beside):
            for name in sorted(some, key=lambda one: (self.seconds[one], one)):
                if spent + self.seconds[name] > LONGEST and chosen:
                    break
                chosen.append(name)
                spent += self.seconds[name]
        return chosen, spent

    def near(self, path: str, chosen: Iterable[str]) -> tuple[list[str], float]:
        """Some of the tests chosen, and their seconds: of the files named most like a module.

        They notice most faults, and start sooner than those of many files.
        """
        module = {*path.removesuffix(".py").replace("/", "_").split("_")}

        def unlike(file: str) -> tuple[float, str]:
            words = {*Path(file).stem.removeprefix("test_").split("_")}
            return -len(words & module) / (1 + len(words - module)), file

        files = sorted({one.partition("::")[0] for one in chosen}, key=unlike)[:NEAR_FILES]
        some = [one for one in chosen if one.partition("::")[0] in files]
        spent = list(accumulate(self.seconds[one] for one in some))
        count = max(1, bisect_right(spent, NEAR_SECONDS))
        return some[:count], spent[count - 1]


def copied(tree: Path) -> Path:
    """A copy of what is committed or could be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def check_unchanged(tree: Path, tests: "Covered") -> None:
    """Without a fault tests must pass as they are run here, or every fault would be found.

    Raises:
        SystemExit: they do not.
    """
    quick = sorted(tests.seconds, key=lambda one: (tests.seconds[one], one))[:QUICK]
    log = tree.parent / "log"
    if outcome(tree, quick, sum(tests.seconds[one] for one in quick), log) != "survived":
        raise SystemExit(f"tests fail without a fault: {log.read_text(encoding='utf-8')[-2000:]}")


def cover(tree: Path, kept: Path) -> None:
    """Run the whole suite once, noting which test runs which line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.mutants.covering",
               "-p", "no:xdist", "-p", "no:cacheprovider"]  # fmt: skip
    environment = os.environ | {"COVERING": str(kept.absolute()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=False)


def grouped() -> dict[str, list[str]]:
    """Files of each package, those asked for apart."""
    found: dict[str, list[str]] = {}
    for package in ("graphs", "replacement_models", "tracer"):
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            group = next((one for one in AT_LEAST if path.startswith(one + "/")), package)
            found.setdefault(group, []).append(path)
    return found


def counts(total: int) -> dict[str, int]:
    """How many faults of each group: a number of their own, or by their lines."""
    groups = grouped()
    lines = {
        name: sum((ROOT / file).read_bytes().count(b"\n") for file in files)
        for name, files in groups.items()
        if name not in AT_LEAST
    }
    left = total - EACH * len(AT_LEAST)
    shared = {name: round(left * size / sum(lines.values())) for name, size in lines.items()}
    return {name: shared.get(name, EACH) for name in groups}


def tried(tree: Path, one: Mutant, tests: Covered) -> str:
    """What becomes of one fault; a line that no test runs keeps any."""
    file, source = tree / one.path, (ROOT / one.path).read_text(encoding="utf-8")
    lines = range(one.line, one.line + one.before.count("\n") + 1)
    chosen, seconds = tests.of(one.path, () if on_import(source, one.line) else lines)
    if not chosen:
        return "survived: no test runs it"
    file.write_text(one.applied(source), encoding="utf-8")
    try:
        found = outcome(tree, *tests.near(one.path, chosen), tree.parent / "log")
        if found == "survived":
            found = outcome(tree, chosen, seconds, tree.parent / "log")
    finally:
        file.write_text(source, encoding="utf-8")
    print(found, one.name.replace("\n", " "), file=sys.stderr, flush=True)
    return found


def on_import(source: str, line: int) -> bool:
    """Whether a line runs as its module is imported, by whichever test comes first."""
    return not any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body[0].lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(source))
    )


def reasons(file: Path) -> dict[str, str]:
    """Names of faults, and a line on each."""
    if not file.exists():
        return {}
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def summary(
    found: Iterable[Mapping[str, Any]], aside: Mapping[str, str], why: Mapping[str, str]
) -> dict[str, Any]:
    """Counts by group, and every survivor with its reason, where one was given."""
    groups: dict[str, dict[str, int]] = {}
    survivors = []
    for one in found:
        row = groups.setdefault(one["group"], {"faults": 0, "killed": 0, "aside": 0})
        survived = one["outcome"].startswith("survived")
        if survived and one["name"] in aside:
            row["aside"] += 1
            continue
        row["faults"] += 1
        row["killed"] += not survived
        if survived:
            survivors.append({**one, "why": why.get(one["name"])})
    return {"groups": groups, "aside": dict(aside), "survivors": survivors}


if __name__ == "__main__":
    main()
