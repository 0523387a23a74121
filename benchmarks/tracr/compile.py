"""Compile causal RASP programs into small transformers, with the compiler's own labels beside them.

    pip install tracr-pypi safetensors
    python benchmarks/tracr/compile.py

Needs the package `tracr-pypi` (which brings JAX) in an environment of its own, and nothing of this
repository; only this script needs it, since what it writes is kept in `models/`. A folder a
program: `model.safetensors` and `config.json`, which `ReplacementModel.load` reads, and
`program.json`: which residual dimension and which neuron holds which variable, what each layer
computes, what every variable reads, and on some prompts the values of all variables and selectors,
from RASP's own causal interpreter. Every compiled model is run and must say what the program does.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import (
    basis_inference,
    craft_graph_to_model,
    craft_model_to_transformer,
    expr_to_craft_graph,
    lib,
    nodes,
    rasp_to_graph,
)
from tracr.craft import bases, transformers
from tracr.rasp import causal_eval, rasp

OUT = Path(__file__).parent / "models"
BOS, PAD = "bos", "pad"
LENGTH = 6
PROMPTS = 6
LETTERS = ("a", "b", "c")


def same_as_before() -> rasp.SOp:
    """Whether a token is the one before it."""
    before = lib.shift_by(1, rasp.tokens)
    return rasp.SequenceMap(lambda x, y: x == y, before, rasp.tokens).named("same_as_before")


def mapped(f: Any, sop: rasp.SOp, name: str) -> rasp.SOp:
    """What f makes of every value, in an MLP of its own."""
    return rasp.Map(f, sop, simplify=False).named(name)


def next_letter(sop: rasp.SOp, name: str) -> rasp.SOp:
    """The letter after it, and a after c."""
    return mapped({"a": "b", "b": "c", "c": "a"}.get, sop, name)


def first_token() -> rasp.SOp:
    """The first token, at every position."""
    first = rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == 0)
    return rasp.Aggregate(first, rasp.tokens).named("first")


def counted(token: str) -> rasp.SOp:
    """How often a token came so far."""
    return lib.make_count(rasp.tokens, token)


def programs() -> dict[str, tuple[rasp.SOp, tuple[str, ...]]]:
    """Name to program and vocabulary; each has MLPs and attention."""
    tokens, shift = rasp.tokens, lib.shift_by
    return {
        "fraction": (lib.make_frac_prevs(tokens == "a"), LETTERS),
        "pair_balance": (lib.make_pair_balance(tokens, "(", ")"), ("(", ")", "x")),
        "below_zero": (
            mapped(lambda x: x < 0, lib.make_pair_balance(tokens, "(", ")"), "below_zero"),
            ("(", ")", "x"),
        ),
        "shift_then_map": (next_letter(shift(1, tokens), "next_of_before"), LETTERS),
        "map_then_shift": (shift(1, next_letter(tokens, "next")), LETTERS),
        "map_shift_map": (
            next_letter(shift(1, next_letter(tokens, "next")), "after_next"),
            LETTERS,
        ),
        "three_maps": (
            next_letter(
                next_letter(next_letter(shift(1, tokens), "first_hop"), "second_hop"), "third_hop"
            ),
            LETTERS,
        ),
        "pattern_ab": (lib.detect_pattern(tokens, "ab"), ("a", "b")),
        "pattern_abc": (lib.detect_pattern(tokens, "abc"), LETTERS),
        "same_as_before": (same_as_before(), LETTERS),
        "same_as_first": (
            rasp.SequenceMap(lambda x, y: x == y, first_token(), tokens).named("same_as_first"),
            LETTERS,
        ),
        "position": (
            rasp.SelectorWidth(rasp.Select(tokens, tokens, rasp.Comparison.TRUE)).named("position"),
            LETTERS,
        ),
        "seen_so_far": (lib.make_hist(), LETTERS),
        "count_a": (counted("a"), LETTERS),
        "repeated": (mapped(lambda x: x > 1, lib.make_hist(), "repeated"), LETTERS),
        "parity": (mapped(lambda x: x % 2, counted("a"), "parity"), LETTERS),
    }


def written(name: str, program: rasp.SOp, vocabulary: tuple[str, ...]) -> None:
    """Compile one program, check it, and write its folder."""
    found = rasp_to_graph.extract_rasp_graph(program)
    graph, sink = found.graph, found.sink
    basis_inference.infer_bases(graph, sink, set(vocabulary), LENGTH)
    expr_to_craft_graph.add_craft_components_to_rasp_graph(
        graph, bos_dir=bases.BasisDirection(rasp.tokens.label, BOS)
    )
    reads = {label: read_by(node) for label, node in graph.nodes.items()}
    craft = craft_graph_to_model.craft_graph_to_model(graph, found.sources)
    model = craft_model_to_transformer.craft_model_to_transformer(
        craft, graph, sink, LENGTH, compiler_bos=BOS, compiler_pad=PAD, causal=True
    )
    prompts = [values_on(prompt, graph, model) for prompt in drawn(vocabulary, len(name))]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [value for value, _ in sorted(model.input_encoder.encoding_map.items(), key=last)]
    outputs = list(sink[nodes.OUTPUT_BASIS])
    save_file(weights(model, inputs, outputs), folder / "model.safetensors")
    config = model.model_config
    write(
        folder / "config.json",
        {
            "architectures": ["TracrForCausalLM"],
            "model_type": "tracr",
            "vocab_size": len(inputs) + len(outputs),
            "hidden_size": len(model.residual_labels),
            "intermediate_size": config.mlp_hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "head_dim": config.key_size,
            "max_position_embeddings": LENGTH + 1,
            "bos_token_id": model.input_encoder.encoding_map[BOS],
            "pad_token_id": model.input_encoder.encoding_map[PAD],
        },
    )
    write(
        folder / "program.json",
        {
            "output": sink[nodes.ID],
            "tokens": [str(value) for value in inputs],
            "outputs": [[basis.name, shown(basis.value)] for basis in outputs],
            "residual": model.residual_labels,
            "variables": {
                label: {
                    "kind": type(node[nodes.EXPR]).__name__,
                    "inputs": [child.label for child in node[nodes.EXPR].children],
                    "numerical": isinstance(node[nodes.EXPR], rasp.SOp)
                    and rasp.is_numerical(node[nodes.EXPR]),
                    **reads[label],
                }
                for label, node in graph.nodes.items()
            },
            "layers": layers(craft, config.num_layers),
            "prompts": prompts,
        },
    )


def last(pair: tuple[Any, int]) -> int:
    """The second of a pair."""
    return pair[1]


def write(path: Path, data: Any) -> None:
    """JSON, one line a key."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def shown(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def read_by(node: dict[str, Any]) -> dict[str, list[str]]:
    """Which names a variable's head and MLP read values from, as compiled."""
    block = node.get(nodes.MODEL_BLOCK)
    parts = block.blocks if isinstance(block, transformers.SeriesWithResiduals) else [block]
    found: dict[str, list[str]] = {}
    for part in parts:
        if isinstance(part, transformers.MLP):
            found["mlp_reads"] = names(part.fst.input_space)
        elif part is not None:
            moved = zip(part.w_ov.input_space.basis, part.w_ov.matrix, strict=True)
            found["head_reads"] = sorted({str(basis) for basis, row in moved if row.any()})
    return found


def names(space: bases.VectorSpaceWithBasis) -> list[str]:
    """Residual dimensions of a space."""
    return [str(basis) for basis in space.basis]


def layers(craft: transformers.SeriesWithResiduals, count: int) -> list[dict[str, Any]]:
    """What the heads of every layer write, and what its neurons are called."""
    found: list[dict[str, Any]] = [{"heads": [], "neurons": []} for _ in range(count)]
    part = -1
    for block in craft.blocks:
        kind = isinstance(block, transformers.MLP)
        part += 1
        part += part % 2 != kind
        if kind:
            found[part // 2]["neurons"] = names(block.fst.output_space)
        else:
            heads = block.as_multi().heads()
            found[part // 2]["heads"] = [names(head.w_ov.output_space) for head in heads]
    return found


def drawn(vocabulary: tuple[str, ...], seed: int) -> list[list[str]]:
    """Prompts at random, of every length from three."""
    generator = np.random.default_rng(seed)
    lengths = [3 + at % (LENGTH - 2) for at in range(PROMPTS)]
    return [[str(one) for one in generator.choice(vocabulary, length)] for length in lengths]


def values_on(prompt: list[str], graph: Any, model: Any) -> dict[str, Any]:
    """Values of every variable and selector on a prompt, without BOS; checked on the model."""
    found: dict[str, Any] = {}
    for label, node in graph.nodes.items():
        values = causal_eval.evaluate(node[nodes.EXPR], prompt)
        if isinstance(node[nodes.EXPR], rasp.Selector):
            found[label] = np.array(values).astype(int).tolist()
        else:
            found[label] = [shown(value) for value in values]
        if node[nodes.EXPR].label == graph_end(graph):
            said = model.apply([BOS, *prompt]).decoded[1:]
            for one, other in zip(said, values, strict=True):
                close = isinstance(other, float) and abs(one - other) < 1e-3
                assert one == other or close or other is None, (label, prompt, said, values)
    return {"tokens": [model.input_encoder.encoding_map[one] for one in [BOS, *prompt]]} | {
        "values": found
    }


def graph_end(graph: Any) -> str:
    """The variable that nothing reads."""
    [end] = [label for label in graph if not list(graph.successors(label))]
    return end


def weights(model: Any, inputs: list[Any], outputs: list[Any]) -> dict[str, np.ndarray]:
    """Parameters under the names of replacement_models/tracr_model.py.

    The compiler lets every token write the constant `one`; here every position does. The stream is
    the same number by number, and what a token writes is what the token is.
    """
    params = jax.tree_util.tree_map(np.asarray, model.params)
    labels = {label: at for at, label in enumerate(model.residual_labels)}
    unembedding = np.zeros((len(inputs) + len(outputs), len(labels)), np.float32)
    for at, basis in enumerate(outputs):
        unembedding[len(inputs) + at, labels[str(basis)]] = 1
    embedding = np.zeros_like(unembedding)
    embedding[: len(inputs)] = params["token_embed"]["embeddings"]
    positions = params["pos_embed"]["embeddings"].copy()
    if "one" in labels:
        assert (embedding[: len(inputs), labels["one"]] == 1).all()
        embedding[:, labels["one"]], positions[:, labels["one"]] = 0, 1
    found = {
        "embed_tokens.weight": embedding,
        "embed_positions.weight": positions,
        "lm_head.weight": unembedding,
    }
    places = {
        "attn/query": "attention.q_proj",
        "attn/key": "attention.k_proj",
        "attn/value": "attention.v_proj",
        "attn/linear": "attention.o_proj",
        "mlp/linear_1": "mlp.fc1",
        "mlp/linear_2": "mlp.fc2",
    }
    for layer in range(model.model_config.num_layers):
        for place, name in places.items():
            own = params[f"transformer/layer_{layer}/{place}"]
            found[f"layers.{layer}.{name}.weight"] = own["w"].T
            found[f"layers.{layer}.{name}.bias"] = own["b"]
    return {key: np.ascontiguousarray(value, np.float32) for key, value in found.items()}


if __name__ == "__main__":
    for name, (program, vocabulary) in programs().items():
        written(name, program, vocabulary)
        print(name, sum(path.stat().st_size for path in (OUT / name).iterdir()))
