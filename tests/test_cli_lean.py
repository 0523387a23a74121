"""What a command of its own process leaves out of torch and transformers, changing nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from graphs import AttributionGraph
from tests.random_models import FAMILIES, language_model
from tracer.commands import main

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("torch._dynamo", "sympy", "torch.distributed.tensor", "scipy.cluster")
"""Modules that take half of the CPU time of `tracer trace` to import."""
PROCESS = """
import json, sys
from tracer.commands import main
from tracer.commands.lean import OWN_PROCESS
for arguments in json.loads(sys.argv[1]):
    main(arguments, standalone_mode=False, obj=OWN_PROCESS)
print(json.dumps([name for name in sys.modules]))
"""


def in_a_process(*commands: list[str]) -> set[str]:
    """Run commands in one process that is theirs; the modules that it imported."""
    call = [sys.executable, "-c", PROCESS, json.dumps(commands)]
    done = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True)
    return {*json.loads(done.stdout.splitlines()[-1])}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        language_model(family, torch.float32).save_pretrained(folder / family)
    return {family: folder / family for family in FAMILIES}


def test_every_family_is_traced_to_the_same_graph_without_them(
    models: dict[str, Path], tmp_path: Path
):
    def tracing(family: str, suffix: str) -> list[str]:
        named = ["--model", str(models[family]), "--transcoders", "neurons"]
        out = str(tmp_path / f"{family}{suffix}.graph")
        return ["trace", "--tokens", "1,7,12,5", *named, "-o", out]

    imported = in_a_process(*(tracing(family, "_lean") for family in models))
    assert not imported & (
        {*LEFT_OUT} - {"sympy"}
    )  # rotary frequencies made on torch's meta device
    for family in models:
        usual = CliRunner().invoke(main, tracing(family, ""), catch_exceptions=False)
        assert usual.exit_code == 0, usual.output
        lean, full = (
            AttributionGraph.load(tmp_path / f"{family}{suffix}.graph") for suffix in ("_lean", "")
        )
        assert lean.nodes.equals(full.nodes), family
        assert (lean.effect != full.effect).nnz == 0, family


@pytest.mark.parametrize(
    "arguments",
    [
        ["intervene", "The opposite of hot is", "--set", "0/1/0=0"],
        ["generate", "The opposite of hot is", "--max-new-tokens", "2"],
    ],
)
def test_other_commands_leave_them_out_too(arguments: list[str]):
    assert not in_a_process(arguments) & {*LEFT_OUT}


def test_a_process_of_someone_else_keeps_them(tmp_path: Path):
    CliRunner().invoke(main, ["trace", "The opposite of hot is", "-o", str(tmp_path / "a.graph")])
    assert torch.distributed.is_available()
    assert torch.compiler.disable is not None
    assert not hasattr(torch.nn.init.normal_, "mock_calls")


def test_the_compiler_is_imported_for_who_calls_it():
    code = """
import sys
from tracer.commands.lean import LOADING, _stand_ins
with _stand_ins(*LOADING):
    import torch._dynamo
    assert type(sys.modules["torch._dynamo"]).__name__ == "_StandIn"
    assert torch._dynamo.is_compiling() is False
assert type(sys.modules["torch._dynamo"]).__name__ == "module"
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
