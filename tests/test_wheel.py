"""What is installed: the wheel alone runs, elsewhere, and holds what it should and no more."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "site")


def done(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command that works prints, warnings included."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def pip(*arguments: str | Path, cwd: Path) -> str:
    """What pip prints, which must reach no network."""
    return done(sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the project as it stands, built from a copy: building writes beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "copy", ignore=LEFT)
    plainly = ("--no-build-isolation", "--verbose")
    said = pip("wheel", *plainly, "--wheel-dir", folder, folder / "copy", cwd=folder)
    assert "absent from the `packages` configuration" not in said
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed to."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--target", site, wheel, cwd=site)
    return site


def members(wheel: Path) -> Sequence[str]:
    """Names of the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path):
    tops = {name.partition("/")[0] for name in members(wheel)}
    [about] = [top for top in tops if top.endswith(".dist-info")]
    assert tops - {about} == {"tracer", "graphs", "replacement_models"}


def test_the_wheel_holds_all_that_the_packages_read(wheel: Path):
    tiny = ROOT / "replacement_models" / "tiny"
    parts = ("model", "clt", "plt", "clt.features", "plt.features")
    embedded = {file for part in parts for file in (tiny / part).rglob("*") if file.is_file()}
    native = set((ROOT / "tracer").rglob("*.c"))
    typed = {ROOT / name / "py.typed" for name in ("tracer", "graphs", "replacement_models")}
    needed = {file.relative_to(ROOT).as_posix() for file in embedded | native | typed}
    assert len(needed) > 20
    assert needed <= set(members(wheel))


def test_what_is_installed_traces_elsewhere(installed: Path, tmp_path: Path):
    prompt = "The capital of the state containing Dallas is"
    said = done(
        *(sys.executable, "-m", "tracer", "trace", prompt, "-o", "dallas.graph"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert 'explained\t" Austin"' in said
    assert (tmp_path / "dallas.graph" / "nodes.arrow").is_file()


def test_the_script_installed_is_the_command_line(installed: Path, tmp_path: Path):
    script = installed / "bin" / "tracer"
    said = done(sys.executable, script, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.startswith("Usage: tracer [OPTIONS] COMMAND")


def test_what_is_installed_is_imported_from_there(installed: Path, tmp_path: Path):
    code = (
        "import tracer, graphs, replacement_models\n"
        "for one in (tracer, graphs, replacement_models): print(one.__file__)"
    )
    said = done(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert all(line.startswith(str(installed)) for line in said.splitlines())
