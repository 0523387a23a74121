"""Models in GGUF files: the same model as its safetensors folder, dequantised and saying so."""

import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from replacement_models import ModelError, ReplacementModel
from tests.random_models import LAYERS, PROMPT, VOCABULARY, language_model
from tracer.commands import main

WITH_GGUF = pytest.mark.skipif(find_spec("gguf") is None, reason="needs pip install tracer[gguf]")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "attention_bias": False}
"""Quantised blocks hold 32 numbers of a row."""
WORDS = ["<unk>", "<s>", "</s>", *string.ascii_lowercase[:24], "Ġ", "ab"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama() -> Any:
    return language_model("llama", torch.float32, **SIZES)


def named(key: str) -> str:
    """What GGUF calls a weight of a llama."""
    module, _, kind = key.rpartition(".")
    block = ""
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        block = f"blk.{layer}."
    return f"{block}{NAMES[module]}.{kind}"


def as_stored(key: str, weight: np.ndarray, model: Any) -> np.ndarray:
    """Rotary pairs stand beside each other in GGUF, half a head apart in Hugging Face."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    count = next((heads[name] for name in heads if name in key), None)
    if count is None:
        return weight
    pairs = weight.reshape(count, 2, len(weight) // count // 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def written(
    path: Path,
    model: Any,
    quantised: bool = False,
    without: str = "",
    more: dict[str, tuple[int, ...]] | None = None,
) -> Path:
    """A llama as llama.cpp's converter writes it, its matrices in blocks of Q8_0 if asked.

    `without` is a tensor to leave out, `more` has names and shapes of some to put in.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, shape in (more or {}).items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    for key, tensor in model.state_dict().items():
        if key == without:
            continue
        weight = as_stored(key, tensor.numpy(), model)
        if quantised and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(named(key), gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(named(key), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path, **options: Any) -> ReplacementModel:
    return ReplacementModel.load(path, "neurons", **options)


@WITH_GGUF
def test_a_file_of_plain_numbers_is_the_model_of_its_safetensors_folder(tmp_path: Path):
    model = llama()
    model.save_pretrained(tmp_path / "folder")
    expected, found = (loaded(tmp_path / "folder"), loaded(written(tmp_path / "a.gguf", model)))
    assert torch.equal(found.record(PROMPT).logits, expected.record(PROMPT).logits)
    assert found.notes == expected.notes == ()
    assert found.host.context == expected.host.context
    assert found.name == f"{tmp_path.name}/a.gguf"


@WITH_GGUF
def test_quantised_weights_are_dequantised_and_said_to_be(tmp_path: Path):
    import gguf

    model = llama()
    found = loaded(written(tmp_path / "small.gguf", model, quantised=True))
    assert found.notes == (
        "small.gguf: quantised weights (Q8_0) were dequantised to float32; figures are of this "
        "model, not of the one it was quantised from",
    )
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = model.state_dict()
    for key, weight in found.host.model.state_dict().items():
        expected = stored[key].numpy()
        if expected.ndim == 2:
            assert not np.array_equal(weight.numpy(), expected)
            expected = gguf.dequantize(gguf.quantize(expected, kind), kind)
        np.testing.assert_array_equal(weight.numpy(), expected)
    double = loaded(tmp_path / "small.gguf", dtype="float64")
    assert double.dtype == torch.float64
    assert "dequantised to float64" in double.notes[0]
    near = double.record(PROMPT).logits
    torch.testing.assert_close(found.record(PROMPT).logits.double(), near, rtol=0, atol=1e-3)


@WITH_GGUF
def test_the_tokenizer_comes_from_the_file(tmp_path: Path):
    model = loaded(written(tmp_path / "a.gguf", llama()))
    assert model.tokenize("cab ba") == (1, *(WORDS.index(w) for w in ("c", "ab", "Ġ", "b", "a")))
    assert model.token_string(WORDS.index("ab")) == "ab"


@WITH_GGUF
def test_the_command_line_takes_a_file_and_prints_what_became_of_it(tmp_path: Path):
    path = written(tmp_path / "small.gguf", llama(), quantised=True)
    arguments = ["trace", "--tokens", "1,5,6", "--model", str(path), "--transcoders", "neurons"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "a.graph")])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("small.gguf: quantised weights (Q8_0) were dequantised") == 1
    assert "dequantised" not in result.stdout
    assert "Converting and de-quantizing" not in result.stderr


@WITH_GGUF
@pytest.mark.parametrize(("keep", "what"), [(0, "model cannot be"), (600, "model cannot be")])
def test_a_torn_file_is_one_line(tmp_path: Path, keep: int, what: str):
    path = written(tmp_path / "a.gguf", llama())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=f"a.gguf: the {what} loaded") as error:
        loaded(path)
    assert "\n" not in str(error.value)


@WITH_GGUF
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"without": "model.norm.weight"}, "weights are missing, .*: model.norm.weight;"),
        ({"more": {"blk.7.ffn_up.weight": (64, 32)}}, "no place in the model .*: blk.7.ffn_up"),
        ({"more": {"blk.1.magic.weight": (4,)}}, "no place in the model .*: blk.1.magic"),
    ],
)
def test_weights_that_are_not_the_models_are_named(
    tmp_path: Path, fault: dict[str, Any], message: str
):
    with pytest.raises(ModelError, match=rf"a\.gguf: .*{message}"):
        loaded(written(tmp_path / "a.gguf", llama(), **fault))


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.gguf"
    path.touch()
    monkeypatch.setattr("replacement_models.gguf_file.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"package gguf and accelerate; pip install 'tracer\[ggu"):
        loaded(path)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"^nothing\.gguf: no such file$"):
        ReplacementModel.load("nothing.gguf", "neurons")


def test_a_folder_that_holds_such_a_file_is_told_apart_from_it(tmp_path: Path):
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"no config\.json\); name the file in it, a\.gguf$"):
        ReplacementModel.load(tmp_path, "neurons")
