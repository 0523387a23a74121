"""Loading a model with its transcoders, tokens of a prompt, and a host left as it was."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import replacement_models
import tracer
from replacement_models import (
    ModelError,
    ReplacementModel,
    SparseAutoencoder,
    save_transcoder,
)
from tests.random_models import PROMPT, VOCABULARY, language_model, replacement_model, transcoder
from tracer import Intervention

GOLDEN = Path(__file__).parent / "data" / "golden"
LLAMA = GOLDEN / "llama_gqa_plt"
GPT2 = GOLDEN / "gpt2_plt"
EMBEDDED = Path(replacement_models.__file__).parent / "tiny"
OWN_SENTENCES = "88c9454de57a897a"
"""How the SHA-256 of the embedded default's sentences begins: means over them must not move."""


def refusal(*arguments: Any, **options: Any) -> str:
    """The one line with which a load is refused."""
    with pytest.raises(ModelError) as error:
        ReplacementModel.load(*arguments, **options)
    line = str(error.value)
    assert "\n" not in line
    return line


def copied(tmp_path: Path, source: Path = LLAMA / "model") -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


def test_a_model_names_both_folders_without_what_lies_above_them():
    model = ReplacementModel.load(LLAMA / "model", LLAMA / "transcoders")
    assert (model.name, model.transcoder_name) == (
        "llama_gqa_plt/model",
        "llama_gqa_plt/transcoders",
    )
    assert len(model.transcoder_hash) == 64
    assert model.dtype == torch.float32


@pytest.mark.parametrize("dictionary", [GPT2 / "transcoders", "neurons"])
def test_another_dictionary_stands_beside_the_same_weights(dictionary: Path | str):
    first = "neurons" if dictionary != "neurons" else GPT2 / "transcoders"
    model = ReplacementModel.load(GPT2 / "model", first, dtype="float64")
    found = model.with_transcoders(dictionary)
    expected = ReplacementModel.load(GPT2 / "model", dictionary, dtype="float64")
    assert found.host is model.host
    assert model.transcoder_name != found.transcoder_name
    named = ("name", "transcoder_name", "transcoder_hash", "labels", "dictionary_folder",
             "elsewhere", "loaded_with", "folder", "notes")  # fmt: skip
    for name in named:
        assert getattr(found, name) == getattr(expected, name), name
    ours, theirs = (tracer.trace(one, [3, 5, 7]) for one in (found, expected))
    assert ours.nodes.equals(theirs.nodes)
    assert (ours.effect != theirs.effect).nnz == 0


def test_a_dictionary_of_another_model_is_refused_beside_it():
    model = ReplacementModel.load(GPT2 / "model", "neurons")
    with pytest.raises(ModelError, match="belong to another model") as error:
        model.with_transcoders(EMBEDDED / "clt")
    assert "\n" not in str(error.value)


def test_the_embedded_model_brings_its_own_sentences_and_no_other_does():
    model = ReplacementModel.load()
    assert model.corpus is not None
    sentences = model.corpus()
    assert len(sentences) == 300
    assert sha256("\n".join(sentences).encode()).hexdigest().startswith(OWN_SENTENCES)
    assert model.corpus() == sentences
    assert ReplacementModel.load(LLAMA / "model", LLAMA / "transcoders").corpus is None


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_weight_has_the_dtype_asked_for(dtype: str):
    model = ReplacementModel.load(LLAMA / "model", LLAMA / "transcoders", dtype=dtype)
    expected = getattr(torch, dtype)
    assert {p.dtype for p in model.host.model.parameters()} == {expected}
    assert model.transcoder.layers[0].W_enc.dtype == expected
    assert model.record([1, 5, 6]).logits.dtype == expected


def test_transcoders_must_be_named():
    assert "transcoders is missing" in refusal(LLAMA / "model")
    assert 'take the model\'s own with transcoders="neurons"' in refusal(LLAMA / "model")


def test_transcoders_of_another_width_or_depth_are_refused(tmp_path: Path):
    deeper = transcoder("per_layer")
    folder = save_transcoder(type(deeper)(deeper.layers[:2]), tmp_path / "two")
    assert "have layers 2, but the llama model has 3; they belong to another model" in refusal(
        LLAMA / "model", folder
    )
    wide = save_transcoder(deeper.to("cpu", torch.float32), tmp_path / "wide")
    config = json.loads((wide / "transcoder.json").read_text())
    for file in wide.glob("*.safetensors"):
        tensors = load_file(file)
        tensors["W_enc"] = torch.cat([tensors["W_enc"]] * 2, dim=1)
        tensors["W_dec"] = torch.cat([tensors["W_dec"]] * 2, dim=2)
        tensors["b_dec"] = torch.cat([tensors["b_dec"]] * 2)
        save_file(tensors, file)
    (wide / "transcoder.json").write_text(json.dumps({**config, "d_model": 32, "model": "big"}))
    assert "transcoders (trained on big) have d_model 32, but the llama model has 16" in refusal(
        LLAMA / "model", wide
    )


def test_a_sparse_autoencoder_cannot_stand_in_for_an_mlp(tmp_path: Path):
    layers = transcoder("per_layer").layers
    folder = save_transcoder(SparseAutoencoder(layers), tmp_path / "sae")
    assert "a sparse autoencoder reads the MLP's output" in refusal(LLAMA / "model", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16', expected one of float32, float64, bfloat16"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_a_dtype_or_device_that_is_none_is_refused(options: dict[str, str], message: str):
    assert message in refusal(LLAMA / "model", LLAMA / "transcoders", **options)


def test_a_foreign_folder_is_refused_as_model_and_as_transcoders(tmp_path: Path):
    assert "is no Hugging Face model folder (no config.json)" in refusal(
        tmp_path, LLAMA / "transcoders"
    )
    assert "holds no transcoder in a known format" in refusal(LLAMA / "model", LLAMA / "model")
    assert "no such folder" in refusal(tmp_path / "nothing", LLAMA / "transcoders")
    assert "no such folder" in refusal(LLAMA / "model", tmp_path / "nothing")


def test_an_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path):
    folder = copied(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"model_type": "rwkv"}')
    assert "rwkv" in refusal(folder, LLAMA / "transcoders")


@pytest.mark.parametrize("keep", [0, 100, -4])
def test_torn_weights_are_one_line(tmp_path: Path, keep: int):
    folder = copied(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "the model cannot be loaded" in refusal(folder, LLAMA / "transcoders")


def test_a_model_without_weights_or_with_a_broken_configuration_is_one_line(tmp_path: Path):
    folder = copied(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "the model cannot be loaded" in refusal(folder, LLAMA / "transcoders")
    (folder / "config.json").write_text("{")
    assert "the model cannot be loaded" in refusal(folder, LLAMA / "transcoders")


def test_a_broken_tokenizer_is_one_line(tmp_path: Path):
    folder = copied(tmp_path)
    (folder / "tokenizer.json").write_text("{")
    assert "the tokenizer cannot be loaded" in refusal(folder, LLAMA / "transcoders")


def test_without_a_tokenizer_token_ids_still_work(tmp_path: Path):
    folder = copied(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    model = ReplacementModel.load(folder, LLAMA / "transcoders")
    assert model.tokenize([1, 5]) == (1, 5)
    assert model.token_string(5) == "5"
    with pytest.raises(ModelError, match="this model has no tokenizer; give token ids"):
        model.tokenize("w5")


def words(bos: str | None = "<bos>") -> Any:
    """A tokenizer of whole words, with or without a BOS."""
    vocabulary = {"<unk>": 0, "<bos>": 1, "a": 2, "b": 3}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, unk_token="<unk>")


def characters() -> Any:
    """A byte-level tokenizer without merges: 256 tokens, every string has ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def with_tokenizer(tokenizer: Any, **changes: int) -> ReplacementModel:
    model = language_model("gpt2", **changes)
    return ReplacementModel.from_huggingface(model, tokenizer, transcoder())


def test_text_gets_the_models_bos_in_front_once():
    model = with_tokenizer(words())
    assert model.tokenize("a b") == (1, 2, 3)
    assert model.tokenize("<bos> a") == (1, 2)
    assert model.tokenize([2, 3]) == (2, 3)


def test_a_tokenizer_without_bos_adds_nothing_and_traces():
    model = with_tokenizer(words(bos=None))
    assert model.tokenize("a b") == (2, 3)
    assert tracer.trace(model, "a b a").metadata["token_ids"] == [2, 3, 2]


@pytest.mark.parametrize(
    "prompt",
    [
        "naïve café",
        "日本語",
        "👩‍👩‍👧",
        "e\N{COMBINING ACUTE ACCENT}",
        "\u202eright to left",
        "a\x00b",
        "\uffff",
    ],
)
def test_odd_unicode_is_tokenized_and_traced(prompt: str):
    model = with_tokenizer(characters(), vocab_size=256, max_position_embeddings=64)
    tokens = model.tokenize(prompt)
    assert model.tokenizer.decode(list(tokens)) == prompt
    graph = tracer.trace(model, prompt, max_features=5, max_logits=2)
    texts = graph.metadata["tokens"]
    assert len(texts) == len(tokens)
    assert all(isinstance(text, str) and text for text in texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)


def test_a_tokenizer_of_another_model_is_named():
    with pytest.raises(ModelError, match=r"token id \d+ is not in 0..28; the tokenizer belongs to"):
        with_tokenizer(characters()).tokenize("zebra")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty"),
        (" \n", "prompt is empty"),
        ([], "prompt is empty"),
        ([1, VOCABULARY], f"token id {VOCABULARY} is not in 0..{VOCABULARY - 1}"),
        ([-1], "token id -1 is not in"),
        ([1] * 17, "17 tokens, but .* reads at most 16"),
        ("\ud800", "prompt is not valid Unicode"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_refused(prompt: Any, message: str):
    with pytest.raises(ModelError, match=message):
        with_tokenizer(words()).tokenize(prompt)


def hooks_on(model: nn.Module) -> int:
    """Hooks of any kind on any module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])


@FAMILIES
@pytest.mark.parametrize("where", ["final_norm", "block", "mlp"])
def test_hooks_are_gone_after_a_pass_and_after_one_that_failed(family: str, where: str):
    model = replacement_model(family)
    host = model.host
    model.record(PROMPT)
    assert hooks_on(host.model) == 0
    middle = host.blocks[1]
    module = {"final_norm": host.final_norm.module, "block": middle.module, "mlp": middle.mlp}
    handle = module[where].register_forward_hook(fail)
    change = Intervention(layer=1, position=2, feature=3, value=1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.record(PROMPT)
    assert hooks_on(host.model) == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        tracer.trace(model, PROMPT)
    handle.remove()
    for mode in ("direct", "free"):
        tracer.intervene(model, PROMPT, [change], mode=mode)
        assert hooks_on(host.model) == 0
    passes = iter([None, fail])
    handle = module[where].register_forward_hook(
        lambda *_: step() if (step := next(passes, None)) else None
    )
    with pytest.raises(RuntimeError, match="out of memory"):  # in the pass that intervenes
        tracer.intervene(model, PROMPT, [change], mode="free")
    assert hooks_on(host.model) == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_model_is_unchanged_by_a_recording(family: str, attention: str):
    model = language_model(family).train()
    model.set_attn_implementation(attention)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids = torch.tensor([PROMPT])
    wrapped = ReplacementModel.from_huggingface(model, None, transcoder())
    with torch.no_grad():
        logits = model(ids).logits
    wrapped.record(PROMPT)
    tracer.trace(wrapped, PROMPT)
    assert model.config._attn_implementation == attention
    assert {layer.config._attn_implementation for layer in attentions(model)} == {attention}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def test_the_attention_implementation_is_restored_after_a_failure():
    model = language_model("llama")
    model.set_attn_implementation("sdpa")
    wrapped = ReplacementModel.from_huggingface(model, None, transcoder())
    model.model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        wrapped.record(PROMPT)
    assert model.config._attn_implementation == "sdpa"
