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
LEFT_OUT = (
    *("torch._dynamo", "sympy", "torch.distributed.tensor", "scipy.cluster"),
    *("torch._meta_registrations", "torch._prims", "torch._refs"),
)
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
    # Rotary frequencies are made on torch's meta device, and neurons are tried with drawn numbers.
    assert not imported & ({*LEFT_OUT} - {"sympy", "torch._prims"})
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
        ["patch", "The opposite of hot is", "The opposite of day is", "--target", " cold"],
    ],
)
def test_other_commands_leave_them_out_too(arguments: list[str]):
    assert not in_a_process(arguments) & {*LEFT_OUT}


def test_validating_leaves_out_what_it_takes_a_second_to_import(tmp_path: Path):
    folder = str(tmp_path / "a.graph")
    imported = in_a_process(
        ["trace", "The opposite of hot is", "-o", folder], ["validate", folder, "--draws", "1"]
    )
    assert not imported & {"sympy", "scipy.stats", "torch._dynamo"}


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


def in_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_what_is_drawn_is_what_is_drawn_elsewhere():
    arguments = ["generate", "The opposite of", "--temperature", "1", "--max-new-tokens", "5"]
    lean = subprocess.run(
        [sys.executable, "-m", "tracer", *arguments], cwd=ROOT, check=True, capture_output=True
    )
    assert lean.stdout.decode() == CliRunner().invoke(main, arguments).stdout


def test_generators_are_made_whole_when_the_first_is_asked_for():
    in_python(
        """
import click
from tracer.commands.lean import OWN_PROCESS, lean_process
with click.Context(click.Command("trace"), obj=OWN_PROCESS):
    lean_process()
import torch
assert isinstance(torch.default_generator, torch.Generator)
assert not isinstance(1, torch.Generator)
drawn = torch.rand(2, generator=torch.Generator().manual_seed(3))
torch.manual_seed(3)
assert drawn.equal(torch.rand(2))
assert torch.Generator is torch._C.Generator
"""
    )


def test_a_model_that_asks_for_what_was_left_out_is_loaded_with_it():
    in_python(
        """
import sys
import click
from tracer.commands.lean import METAS, OWN_PROCESS, lean_loading, lean_process
calls = []
def load():
    import torch
    calls.append(METAS in sys.modules)
    try:
        found = torch.eye(3, device="meta").index_select(0, torch.zeros(2, device="meta").long())
    except NotImplementedError as error:
        raise ValueError("the model cannot be loaded") from error
    return found.shape
def torn():
    calls.append(None)
    raise ValueError("torn")
with click.Context(click.Command("trace"), obj=OWN_PROCESS):
    lean_process()
    assert lean_loading(load) == (2, 3)
    try:
        lean_loading(torn)
    except ValueError:
        pass
assert calls == [False, True, None], calls
"""
    )


def test_the_table_of_models_is_read_when_a_name_is_not_in_what_was_read():
    in_python(
        """
from tracer.commands.narrow import narrow_table
narrow_table()
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, initialization
from transformers.models import gpt2, auto
assert "GPT2LMHeadModel" not in vars(transformers)["_class_to_module"]
assert transformers.models.llama.LlamaModel.__name__ == "LlamaModel"
assert "GPT2LMHeadModel" not in vars(transformers)["_class_to_module"]
try:
    transformers.NoSuchModel
except AttributeError as error:
    assert "NoSuchModel" in str(error)
assert transformers.GPT2LMHeadModel is gpt2.GPT2LMHeadModel
assert transformers.models.GPT2Config is transformers.GPT2Config
found = {name: {**vars(transformers)[name]} for name in ("_class_to_module", "_import_structure")}
names, modules = {*transformers.__all__}, transformers._modules
missing = {**transformers._object_missing_backend}
import importlib, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
    del sys.modules[name]
import transformers as usual
assert usual._class_to_module == found["_class_to_module"]
assert {*usual.__all__} <= names and usual._modules <= modules
assert {*usual._object_missing_backend} == {*missing}  # of which backends a set decides
sorted_of = lambda table: {key: sorted(value) for key, value in table.items() if value}
assert sorted_of(usual._import_structure) == sorted_of(found["_import_structure"])
"""
    )
