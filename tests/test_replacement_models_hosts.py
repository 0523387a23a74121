"""Every decoder of the installed transformers is supported and obeys, or is refused by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, T5Config
from transformers.models.auto import configuration_auto

import tracer
from docs.fill_readme import models
from replacement_models import ModelError, ReplacementModel, save_transcoder
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import HOSTS, check_family, host_of, support
from replacement_models.hosts.llama import llama
from replacement_models.hosts.support import decoders, support_table
from tests.family_configs import CONFIGS
from tests.local_forward import LocalForward
from tests.random_hybrids import HYBRIDS
from tests.random_models import (
    FAMILIES,
    PAIRED,
    PROMPT,
    language_model,
    randomised,
    replacement_model,
    transcoder,
)

GENERIC = {
    **PAIRED,
    "head_dim": 4,
    "attention_bias": True,
    "qkv_bias": True,
    "bias": True,
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_intermediate_size": 8,
}
FLOAT32_ONLY = ("ernie4_5_moe", "glm4_moe")
"""Experts that some releases of transformers mix in float32."""
BY_THEMSELVES = {
    model_type for model_type, _ in [*FAMILIES.values(), *HYBRIDS.values(), *CONFIGS.values()]
}
"""Types with a configuration, and laws, of their own."""
SUPPORTED = [name for name in decoders() if support(name).supported]
REFUSED = [name for name in decoders() if not support(name).supported]


def generic(model_type: str) -> Any:
    """A tiny random model of any type, biases where its configuration has them."""
    config = AutoConfig.for_model(model_type, **GENERIC)
    dtype = torch.float32 if model_type in FLOAT32_ONLY else torch.float64
    return randomised(AutoModelForCausalLM.from_config(config), dtype)


def of(model: Any, **options: Any) -> ReplacementModel:
    return ReplacementModel.from_huggingface(model, None, transcoder(**options))


@pytest.mark.parametrize("model_type", sorted(set(SUPPORTED) - BY_THEMSELVES))
def test_a_supported_decoder_is_reproduced_and_conserved(model_type: str):
    model = of(generic(model_type), skip=True)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    expected = recording.logits_before_cap
    assert float((logits - expected).abs().max() / expected.abs().max()) < 2e-5
    last = model.record(PROMPT, last_logits=True)
    for one, whole in ((last.logits, recording.logits), (last.logits_before_cap, expected)):
        torch.testing.assert_close(one, whole[-1:], rtol=0, atol=2e-5)
    assert tracer.trace(model, PROMPT).metadata["conservation"]["relative"] < 2e-5


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_decoder_is_refused_with_its_name_and_reason(model_type: str):
    with pytest.raises(ModelError, match=re.escape(repr(model_type))) as error:
        check_family(model_type)
    reason = support(model_type).reason
    assert reason
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("rwkv", "recurrent"),
        ("zaya", "convolutions"),
        ("bart", "encoder-decoder"),
        ("t5", "encoder-decoder"),
        ("bert", "encoder"),
        ("gemma4_text", "rescale the residual stream"),
        ("gemma3n_text", "several residual streams"),
        ("qwen4_exp_text", "several residual streams"),
        ("cpmant", "not yet supported"),
        ("no_such_model", "no causal language model"),
    ],
)
def test_the_reason_fits(model_type: str, reason: str):
    assert reason in support(model_type).reason


@pytest.mark.parametrize("model_type", decoders())
def test_no_layer_without_softmax_attention_goes_unnamed(model_type: str):
    folder = Path(transformers.__file__).parent / "models"
    folder /= configuration_auto.model_type_to_module_name(model_type)
    source = "".join(path.read_text("utf-8") for path in folder.glob("modeling_*.py"))
    kinds = "Mixer|MambaLayer|Delta(Net|Attention)|Lightning|LinearAttention|Recurrent|ShortConv"
    if re.search(rf"^class \w*({kinds})\w*\(", source, re.MULTILINE):
        found = support(model_type)
        named = "state-space|convolutions|recurrent|norms stand|residual streams"
        assert found.supported or re.search(named, found.reason), found.reason


def test_the_table_holds_every_decoder_once():
    names = re.findall(r"`([^`]+)`", support_table().split("|---|---|")[1])
    assert sorted(names) == decoders()
    assert set(HOSTS) & set(decoders()) <= set(SUPPORTED)


@pytest.mark.parametrize("name", ["README.md", "docs/families.md"])
def test_the_documents_hold_what_the_command_prints(name: str):
    text = (Path(__file__).parents[1] / name).read_text("utf-8")
    if f" of transformers {transformers.__version__}" in text:
        assert models()[name] in text, "python -m docs.fill_readme --models"
    assert re.search(r"decoders? (types )?of transformers 5\.", text)


def test_a_model_that_is_no_decoder_is_refused():
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)
    with pytest.raises(ModelError, match=r"'t5' is not supported.*encoder-decoder"):
        host_of(transformers.T5ForConditionalGeneration(config))
    with pytest.raises(ModelError, match="Linear"):
        host_of(nn.Linear(2, 2))


def test_a_wrapper_or_a_headless_model_is_refused():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, n_positions=4)
    with pytest.raises(ModelError, match="GPT2Model is not built as models of type 'gpt2'"):
        host_of(transformers.GPT2Model(config))


@pytest.mark.parametrize("multiplier", ["residual", "embedding", "attention"])
def test_a_variant_that_computes_more_is_refused(multiplier: str, monkeypatch):
    monkeypatch.setitem(HOSTS, "granite", llama)
    options = {**PAIRED, f"{multiplier}_multiplier": 0.5}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **options))
    replacement = of(randomised(model, torch.float64))
    if multiplier == "attention":  # scales the scores, and those are recorded
        replacement.record(PROMPT)
        return
    where = {"residual": "layer 0", "embedding": "the embeddings"}[multiplier]
    with pytest.raises(ModelError, match=f"granite model: {where} computes something else"):
        replacement.record(PROMPT)


def test_attention_to_later_positions_is_refused():
    model = language_model("gemma3_text")
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(_see_everything, with_kwargs=True)
    with pytest.raises(ModelError, match="layer 0 attends to later positions"):
        of(model).record(PROMPT)


def _see_everything(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "attention_mask": None}


@pytest.mark.parametrize("part", ["position_embedding", "embedding_scale", "logit_cap"])
def test_a_host_that_forgets_a_part_is_refused(part: str):
    forgotten = {"position_embedding": None, "embedding_scale": 3.0, "logit_cap": 1.0}[part]
    model = replacement_model("gpt2")
    host = replace(model.host, **{part: forgotten})
    with pytest.raises(ModelError, match=r"gpt2 model: the (embeddings|unembedding) computes"):
        replace(model, host=host).record(PROMPT)


def test_a_norm_that_does_not_apply_its_weight_as_known_is_refused():
    model = language_model("llama")
    model.model.norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ModelError, match=r"LlamaRMSNorm of the llama model differs by 100\.0%"):
        host_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_models_trace(family: str):
    graph = tracer.trace(replacement_model(family, torch.bfloat16), PROMPT)
    assert graph.metadata["settings"]["dtype"] == "bfloat16"
    assert graph.metadata["conservation"]["relative"] < 0.1


def test_float16_is_refused():
    with pytest.raises(ModelError, match=r"model is in torch\.float16"):
        host_of(language_model("gpt2", torch.float16))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "gemma3", "gpt_oss", "mixtral"])
def test_a_saved_model_loads_with_its_transcoders(family: str, tmp_path: Path):
    model = language_model(family, torch.float32)
    model.save_pretrained(tmp_path / "model")
    save_transcoder(transcoder(), tmp_path / "transcoders")
    loaded = ReplacementModel.load(tmp_path / "model", tmp_path / "transcoders")
    expected = of(model).record(PROMPT).logits
    torch.testing.assert_close(loaded.record(PROMPT).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma3"])
def test_the_attention_implementation_is_given_back(family: str):
    model = language_model(family)
    expected = of(model).record(PROMPT)
    model.set_attn_implementation("sdpa")
    found = of(model).record(PROMPT)
    torch.testing.assert_close(found.logits, expected.logits)
    config = model.config
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    assert {part._attn_implementation for part in parts} == {"sdpa"}


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_oss"])
def test_an_offloaded_model_gives_the_same_graph(family: str, where: str, tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    expected = tracer.trace(of(language_model(family)), PROMPT)
    model, cpu = language_model(family), torch.device("cpu")
    if where == "disk":
        offloaded = accelerate.disk_offload(model, tmp_path, execution_device=cpu)
    else:
        offloaded = accelerate.cpu_offload(model, execution_device=cpu)
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    found = tracer.trace(of(offloaded), PROMPT)
    assert abs(found.effect - expected.effect).max() < 1e-12
    host = host_of(offloaded)
    recording = ReplacementModel(host, neurons(host)).record(PROMPT)
    torch.testing.assert_close(recording.logits, of(model).record(PROMPT).logits)


def test_a_device_map_that_offloads_a_part_gives_the_same_graph(tmp_path: Path):
    pytest.importorskip("accelerate")
    model = language_model("llama", torch.float32)
    model.save_pretrained(tmp_path / "model")
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={"model": "disk", "lm_head": "cpu"},
        offload_folder=tmp_path / "weights",
        attn_implementation="eager",
    ).eval()
    assert {parameter.device.type for parameter in spread.parameters()} == {"meta", "cpu"}
    found, expected = (tracer.trace(of(one), PROMPT) for one in (spread, model))
    assert abs(found.effect - expected.effect).max() < 1e-5


class EightBit(nn.Module):
    """A linear map with 8-bit weights and, if asked, 4-bit inputs: what quantisers put in."""

    def __init__(self, linear: nn.Linear, inputs_too: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().max() / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), False)
        self.bias, self.inputs_too = linear.bias, inputs_too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.inputs_too:
            step = x.abs().max(-1, keepdim=True).values.clamp(min=1e-9) / 7
            x = (x / step).round() * step
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantised(names: tuple[str, ...], inputs_too: bool = False) -> Any:
    model = language_model("llama")
    for module in list(model.modules()):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, EightBit(getattr(module, name), inputs_too))
    return model


MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("names", [MLP, ATTENTION, MLP + ATTENTION], ids=["mlp", "attn", "both"])
def test_quantised_weights_are_traced_as_they_compute(names: tuple[str, ...]):
    model = of(quantised(names), skip=True)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    torch.testing.assert_close(logits, recording.logits, rtol=0, atol=1e-5)
    assert tracer.trace(model, PROMPT).metadata["conservation"]["relative"] < 2e-5


class Packed(torch.Tensor):
    """A weight that its library can multiply by and nothing else, as torchao's are."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.T.__get__:
            raise NotImplementedError("aten.permute")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_packed_weights_in_plain_linear_layers_are_asked_not_read():
    plain, packed = language_model("llama"), language_model("llama")
    for layer in packed.model.layers:
        for module in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight = nn.Parameter(module.weight.detach().as_subclass(Packed))
    assert type(packed.model.layers[0].mlp.down_proj.weight) is Packed
    one, other = (tracer.trace(of(model, skip=True), PROMPT) for model in (plain, packed))
    np.testing.assert_allclose(other.effect.toarray(), one.effect.toarray(), atol=1e-9)


def test_quantised_activations_are_refused_in_attention_only():
    rounding = quantised(MLP, inputs_too=True)
    of(rounding).record(PROMPT)
    with pytest.raises(ModelError, match=r"EightBit is not linear .*MLPs whose neurons are traced"):
        neurons(host_of(rounding))
    with pytest.raises(ModelError, match=r"EightBit is not linear .*quantise the MLPs only"):
        of(quantised(ATTENTION, inputs_too=True))


def test_a_quantised_folder_without_its_library_is_one_line(tmp_path: Path):
    language_model("llama", torch.float32).save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    settings = {**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}
    config.write_text(json.dumps(settings))
    save_transcoder(transcoder(), tmp_path / "transcoders")
    with pytest.raises(ModelError, match="the model cannot be loaded") as error:
        ReplacementModel.load(tmp_path / "model", tmp_path / "transcoders")
    assert "\n" not in str(error.value)


def test_norms_in_no_floating_point_are_refused():
    model = language_model("llama")
    norm = model.model.norm
    norm.weight = nn.Parameter(torch.ones(16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"LlamaRMSNorm.weight is int8, expected floating point"):
        host_of(model)
