"""Drawing single faults, for the benchmark that tries whether tests notice them."""

import ast
from pathlib import Path

import pytest

from benchmarks import mutations
from benchmarks.mutants.draw import Mutant, draw, mutants

SOURCE = '''"""A text with 1 + 1."""

def kept(shares: list[int | None], limit: float = 0.5, *, first: int = 0) -> float:
    """Not 2 < 3."""
    if limit < first and shares:
        raise ValueError(f"{limit + 1} is < {first}")
    total = sum(shares, start=first)
    total += max(limit, first)
    shares.append(pow(limit, first))
    return -total if limit == 1 else shares[first : -1]
'''


def test_every_fault_is_valid_code_that_does_something_else():
    found = mutants("a.py", SOURCE)
    plain = ast.dump(ast.parse(SOURCE))
    for one in found:
        assert ast.dump(ast.parse(one.applied(SOURCE))) != plain, one
    assert len({one.applied(SOURCE) for one in found}) == len(found)


def test_people_s_faults_are_among_them():
    applied = [one.applied(SOURCE) for one in mutants("a.py", SOURCE)]
    for wanted in (
        "(limit <= first)", "limit < first or shares", "(not (limit < first and shares))",
        "sum(shares)", "total -= max", "min(limit, first)", "pow(first, limit)", "    pass\n",
        "return (total)", "(shares[first:])", "(shares[:-1])", "limit: float = 1.0", "!= 1",
    ):  # fmt: skip
        assert any(wanted in text for text in applied), wanted
    assert not any("max(first, limit)" in text for text in applied)


def test_texts_types_and_what_is_raised_stay():
    for one in mutants("a.py", SOURCE):
        changed = one.applied(SOURCE)
        for kept in ("1 + 1", "Not 2 < 3", "list[int | None]", 'f"{limit + 1} is < {first}"'):
            assert kept in changed


def test_what_is_imported_for_types_alone_has_no_faults():
    source = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import torch\n"
    assert not mutants("a.py", source)


def test_a_seed_draws_the_same_faults_again(tmp_path: Path):
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    one, again, other = (draw(tmp_path, {"all": ["a.py"]}, {"all": 5}, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one["all"]) == 5
    (tmp_path / "a.py").write_text(f"LIMIT = 3 + 4\n{SOURCE}", encoding="utf-8")
    before = {fault.name for fault in mutants("a.py", SOURCE)}
    moved = {fault.name for fault in draw(tmp_path, {"all": ["a.py"]}, {"all": 5}, 1)["all"]}
    assert moved & before <= {fault.name for fault in again["all"]}


def test_a_run_that_was_broken_off_tries_again_only_what_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "a.py"
    file.write_text(SOURCE, encoding="utf-8")
    one, other = mutants("a.py", SOURCE)[:2]
    asked: list[Mutant] = []

    def tried(tree: Path, fault: Mutant, tests: object) -> str:
        asked.append(fault)
        return "killed" if fault == one else "survived"

    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    monkeypatch.setattr(mutations, "tried", tried)
    for _ in range(2):
        outcomes = mutations.Outcomes(tmp_path / "kept.jsonl")
        found = [outcomes.of(tmp_path, fault, mutations.Covered({"seconds": {}, "lines": {}}))
                 for fault in (one, other)]  # fmt: skip
        assert found == ["killed", "survived"]
    assert asked == [one, other, other]
    file.write_text(f"{SOURCE}\n", encoding="utf-8")
    outcomes.of(tmp_path, one, mutations.Covered({"seconds": {}, "lines": {}}))
    assert asked[-1] == one


def test_what_runs_on_import_is_tried_with_any_test_of_its_file(tmp_path: Path):
    source = "LIMIT = 3\n\n\ndef above(x: int, least: int = 1) -> bool:\n    return x > LIMIT\n"
    assert [mutations.on_import(source, line) for line in (1, 4, 5)] == [True, True, False]
    lines = {"one.py": {"1": ["first"], "5": ["second", "third"]}}
    seconds = {"first": 1.0, "second": 3.0, "third": 2.0}
    tests = mutations.Covered({"seconds": seconds, "lines": lines})
    assert tests.of("one.py", ()) == (["first", "third", "second"], 6.0)
    assert tests.of("one.py", [5]) == (["third", "second"], 5.0)


def test_tests_of_files_named_like_the_module_come_first():
    seconds = {
        "tests/test_other.py::quick": 0.1,
        "tests/test_tracer_features.py::second": 3.0,
        "tests/test_tracer_features_search.py::first": 2.0,
        "tests/test_tracer_features_search.py::slow": 30.0,
        "tests/test_graphs_search_and_much_else.py::third": 0.2,
    }
    tests = mutations.Covered({"seconds": seconds, "lines": {}})
    chosen = sorted(seconds, key=lambda one: seconds[one])
    near = tests.near("tracer/features/search.py", chosen)
    assert near == ([chosen[2], chosen[3]], 5.0)
    assert tests.near("tracer/features/search.py", chosen[-1:]) == (chosen[-1:], 30.0)


def test_what_survives_is_counted_unless_set_aside_and_says_why():
    found = [
        {"group": "a", "name": name, "outcome": outcome}
        for name, outcome in (
            ("one", "killed"),
            ("two", "survived"),
            ("three", "survived: no test runs it"),
            ("four", "killed by time"),
        )
    ]
    told = mutations.summary(found, {"two": "none"}, {"three": "slow"})
    assert told["groups"] == {"a": {"faults": 3, "killed": 2, "aside": 1}}
    assert [(one["name"], one["why"]) for one in told["survivors"]] == [("three", "slow")]
