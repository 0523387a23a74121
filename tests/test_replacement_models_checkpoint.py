"""A model's folder is data: its code never runs, and its weights are the ones asked for."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement_models import ModelError
from replacement_models.checkpoint import check_weights, load_model, load_tokenizer
from replacement_models.replacement import EMBEDDED
from tests.random_models import FAMILIES, language_model
from tests.test_imports import sources

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"
LLAMA = GOLDEN / "llama_gqa_plt"
CANARY = "from pathlib import Path\nPath('canary').write_text('ran')\n"
EVIL = {"auto_map": {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}}

Tensors = dict[str, Tensor]


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(folder: Path) -> Any:
    return load_model(folder, torch.float32, torch.device("cpu"))


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LLAMA / "model", tmp_path / "model"))


def add(file: Path, changes: dict[str, Any]) -> None:
    held = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(held | changes))


def test_no_code_of_a_folder_runs_whatever_stdin_answers(tmp_path: Path):
    folder = copied(tmp_path)
    (folder / "evil.py").write_text(CANARY)
    add(folder / "config.json", {**EVIL, "model_type": "evil"})
    command = [sys.executable, "-m", "tracer", "trace", "--tokens", "1,5,6", "-o", "a.graph"]
    named = ["--model", str(folder), "--transcoders", str(LLAMA / "transcoders")]
    asked = subprocess.run(
        [*command, *named],
        input="y\n" * 9,
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub"), "PATH": ""},
    )
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith(f"Error: {folder / 'config.json'}: auto_map names code to run")
    assert asked.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", EVIL),
        ("config.json", {"text_config": {"deep": [EVIL]}}),
        ("config.json", {"auto_map": ["evil.A"]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.A", None]}}),
        ("generation_config.json", EVIL),
        ("processor_config.json", EVIL),
        ("preprocessor_config.json", EVIL),
    ],
)
def test_whatever_file_names_code_is_named(tmp_path: Path, name: str, content: dict[str, Any]):
    folder = copied(tmp_path)
    add(folder / name, content)
    for call in (load, load_tokenizer):
        line = refusal(call, folder)
        assert line.startswith(f"{folder / name}: auto_map names code to run (")
        assert "evil.A" in line


def test_other_ways_to_code_and_to_another_model_are_refused(tmp_path: Path):
    folder = copied(tmp_path)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CANARY)
    assert "generate.py: no code of a model's folder is run" in refusal(load, folder)
    shutil.rmtree(folder / "custom_generate")
    add(folder / "adapter_config.json", {"base_model_name_or_path": "evil/base"})
    assert "adapter_config.json: adapters are no part of what is traced" in refusal(load, folder)


def test_no_code_is_named_where_there_is_none(tmp_path: Path):
    folder = copied(tmp_path)
    add(folder / "config.json", {"auto_map": {}})
    (folder / "generation_config.json").write_text("{}")
    assert load(folder) is not None
    assert load_tokenizer(folder) is not None


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_transformers_is_always_told_to_run_nothing(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "input", f"{file}:{node.lineno}"
            if called.rpartition(".")[2] == "from_pretrained":
                told = [keyword.value for keyword in node.keywords if keyword.arg is None]
                assert "AS_DATA" in map(ast.unparse, told), f"{file}:{node.lineno}"


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change a folder's tensors, each with storage of its own."""
    file = folder / "model.safetensors"
    changed = change(load_file(file))
    save_file({name: value.clone() for name, value in changed.items()}, file, {"format": "pt"})


def grown(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_misshapen_and_unexpected_weights_are_named(tmp_path: Path, family: str):
    folder, model = tmp_path / "model", language_model(family, torch.float32)
    model.save_pretrained(folder)
    found = load(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    whole = load_file(folder / "model.safetensors")
    layer = next(name for name in sorted(whole) if ".1." in name and "experts" not in name)
    for name in (layer, max(whole)):
        edit(folder, lambda _, name=name: {k: v for k, v in whole.items() if k != name})
        line = refusal(load, folder)
        assert line.startswith(f"{folder}: weights are missing, which its configuration asks for: ")
        assert ".".join(name.split(".")[-2:]) in line
        shape = tuple(whole[name].shape)
        edit(folder, lambda _, name=name: {**whole, name: grown(whole[name])})
        line = refusal(load, folder)
        assert "weights have another shape than its configuration asks for: " in line
        assert f"is {(shape[0] + 1, *shape[1:])}, expected {shape}" in line
    edit(folder, lambda _: {**whole, "extra.weight": torch.zeros(3)})
    assert "weights have no place in the model that its configuration describes: extra" in refusal(
        load, folder
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_a_fault_in_one_expert_of_many_is_named(tmp_path: Path, family: str, fault: str):
    folder = tmp_path / "model"
    language_model(family, torch.float32).save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(whole) if ".experts.2." in name)
    rest = {key: value for key, value in whole.items() if key != name}
    edit(folder, lambda _: rest if fault == "missing" else rest | {name: grown(whole[name])})
    line = refusal(load, folder)
    assert name in line or f"{name.partition('experts')[0]}experts.down_proj is (3, 16, 8)" in line


@pytest.mark.parametrize(
    "folder",
    [EMBEDDED / "model", *sorted(path.parent for path in GOLDEN.glob("*/model/config.json"))],
    ids=lambda folder: folder.parent.name,
)
def test_whole_models_load(folder: Path):
    assert load(folder).config.model_type


def test_what_old_files_hold_besides_weights_is_harmless(tmp_path: Path):
    folder = tmp_path / "model"
    for family, names in {
        "gpt2": ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
        "gptj": ["transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"],
        "gpt_neo": ["transformer.h.0.attn.attention.bias"],
        "gpt_neox": ["gpt_neox.layers.0.attention.masked_bias"],
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    }.items():
        shutil.rmtree(folder, ignore_errors=True)
        language_model(family, torch.float32).save_pretrained(folder)
        edit(folder, lambda held, names=names: held | dict.fromkeys(names, torch.ones(1, 1, 4, 4)))
        assert load(folder) is not None
    edit(folder, lambda held: held | {"model.layers.0.mlp.bias": torch.ones(4)})
    assert "model.layers.0.mlp.bias" in refusal(load, folder)


def test_tied_weights_are_stored_once(tmp_path: Path):
    folder, name = tmp_path / "model", "transformer.wte.weight"
    language_model("gpt2", torch.float32, tie_word_embeddings=True).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    edit(folder, lambda held: {key: value for key, value in held.items() if key != name})
    assert name in refusal(load, folder)


def test_an_error_names_three_tensors_and_counts_the_rest():
    nothing = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    check_weights(Path("m"), nothing)
    line = refusal(check_weights, Path("m"), nothing | {"missing_keys": list("edcba")})
    assert "asks for: a, b, c and 2 more; the files are not of one model" in line
    line = refusal(check_weights, Path("m"), nothing | {"error_msgs": ["size\n mismatch"]})
    assert line.startswith("m: weights cannot be loaded: size mismatch; ")
