"""What is promised of the project as a whole."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = ("graphs", "replacement_models", "tracer")


def required() -> list[Requirement]:
    """What an installation with every extra asks for, less extras that name other extras."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    found = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    return [requirement for requirement in found if requirement.name != project["name"]]


def constraints() -> dict[str, Requirement]:
    """Normalised name -> what constraints.txt says of it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", pin.name).lower(): pin for pin in pins}


def test_every_package_on_disk_is_listed_and_no_other():
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for package in SHIPPED
        for file in (ROOT / package).rglob("*.py")
    }
    assert sorted(found) == PROJECT["tool"]["setuptools"]["packages"]
    for name in found:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file(), name


@pytest.mark.parametrize("requirement", required(), ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_to_a_version_it_allows(requirement: Requirement):
    pin = constraints()[re.sub(r"[-_.]+", "-", requirement.name).lower()]
    [version] = pin.specifier
    assert version.operator == "=="
    assert requirement.specifier.contains(version.version)


def test_torch_is_pinned_exactly():
    assert str(constraints()["torch"].specifier) == "==2.13.0"


@pytest.mark.parametrize("arguments", [["--help"], ["trace", "--help"], ["--version"]])
def test_help_answers_at_once(arguments: list[str]):
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tracer", *arguments], cwd=ROOT, check=True, capture_output=True
    )
    assert time.perf_counter() - begin < 3  # it takes 0.1 s; loading torch takes 3 s and more


def test_ci_runs_what_make_test_runs():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [".ci/run", "install_graphviz.sh", "install_browser.sh"])
def test_a_script_is_valid_posix_shell(script: str):
    subprocess.run(["sh", "-n", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("install_graphviz.sh", ("graphviz", "", "https://graphviz.org/download")),
        ("install_browser.sh", ("chromium", "--cask ", "https://www.chromium.org/")),
    ],
)
@pytest.mark.parametrize(
    ("fakes", "tried", "said"),
    [
        ({"id": "echo 0", "apt-get": "false"}, True, "sudo apt-get install {program}"),
        ({"id": "echo 0", "apt-get": "true"}, True, "sudo apt-get install {program}"),
        ({"id": "echo 7", "apt-get": "true"}, False, "sudo apt-get install {program}"),
        (
            {"id": "echo 7", "apt-get": "true", "sudo": "false"},
            False,
            "sudo apt-get install {program}",
        ),
        ({"brew": "false"}, True, "brew install {cask}{program}"),
        ({"dnf": "true"}, False, "sudo dnf install {program}"),
        ({}, False, "{page}"),
    ],
)
def test_setting_up_a_program_never_fails_and_says_what_to_type(
    fakes: dict[str, str],
    tried: bool,
    said: str,
    script: str,
    words: tuple[str, str, str],
    tmp_path: Path,
):
    for name in ("env", "timeout"):
        (tmp_path / name).write_text(
            '#!/bin/sh\nwhile [ "${1#*-get}" = "$1" ]; do shift; done; "$@"\n'
        )
    for name, does in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    command = ["/bin/sh", str(ROOT / script)]
    done = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    program, cask, page = words
    assert said.format(program=program, cask=cask, page=page) in done.stdout
    assert done.stdout.startswith("Installing") == tried
    assert done.stderr == ""


def test_every_test_that_the_list_of_faults_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    files = (ROOT / "tests").glob("test_*.py")
    found = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 50
    assert named <= found, named - found
