"""`tracer lens`, `tracer direction`, and saved directions on the command line."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tracer
from graphs import AttributionGraph
from tests.test_cli import IDS, SMALL, elsewhere, present, refused, succeed
from tracer import AffineLens, Directions

__all__ = ["elsewhere"]  # every test runs in an empty folder and reaches no network
PROMPT = "The opposite of hot is"
WORDS = ("hot", "cold", "big", "small", "old", "young", "full", "empty")


def pairs() -> None:
    """Prompts that ask for an opposite, and the same without asking."""
    lines = [[f"The opposite of {word} is", f"The plural of {word} is"] for word in WORDS]
    Path("pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_lens_prints_what_the_function_says():
    text = succeed("lens", PROMPT, "--kind", "local", "--token", " cold", "-o", "heat.svg")
    found = tracer.lens(tracer.ReplacementModel.load(), PROMPT, "local", tokens=[" cold"])
    rows = [line.split("\t") for line in text.split("\n\n")[0].splitlines()]
    assert rows[0] == ["local lens", *(json.dumps(one) for one in found.texts), "KL", "mean KL"]
    assert [row[0] for row in rows[1:]] == found.layers["site"].to_pylist()[::-1]
    assert [row[-2] for row in rows[1:]] == [
        f"{kl:.3f}" for kl in found.layers["kl_answer"].to_pylist()[::-1]
    ]
    assert rows[1][-3].startswith('" cold" 0.')
    [way] = found.overtaken.to_pylist()
    assert f'" cold" leads from {way["leads_from"]} to the end' in text
    assert text.endswith("Saved heat.svg\n")
    assert Path("heat.svg").read_text() == found.heat_map(" cold")


def test_a_token_that_is_overtaken_is_said_to_be():
    text = succeed("lens", PROMPT, "--token", " old", "--last", "1", "--position", "-1")
    [way] = tracer.lens(
        tracer.ReplacementModel.load(), PROMPT, tokens=[" old"]
    ).overtaken.to_pylist()
    assert way["overtaken_at"] is not None
    assert f"the answer overtakes it at {way['overtaken_at']}, where " in text
    assert text.splitlines()[0].split("\t") == ["logit lens", '" is"', "KL", "mean KL"]


def test_a_lens_is_fitted_saved_and_read():
    Path("text.txt").write_text("\n".join(f"The opposite of {word} is big." for word in WORDS * 20))
    text = succeed(
        "lens", "--fit", "tuned", "--corpus", "text.txt", "--steps", "2", "-o", "t.safetensors"
    )
    lens = AffineLens.load("t.safetensors")
    kl = lens.about["held_out"]["kl"][1]
    assert f"\n1\t{kl:.4g}\t" in text
    assert "tokens held out, in nats a token\nSaved t.safetensors\n" in text
    assert succeed("lens", PROMPT, "--lens", "t.safetensors").startswith("tuned lens\t")


def test_a_layer_where_the_fitted_lens_is_no_nearer_is_marked(monkeypatch: pytest.MonkeyPatch):
    held = {"kl": [1.0, 2.0, 3.0, 0.0], "kl_logit": [1.5, 2.0, 2.5, 0.0], "tokens": 9}
    made = SimpleNamespace(about={"held_out": held}, kind="tuned", save=lambda _: None)
    monkeypatch.setattr(tracer, "fit_lens", lambda *_, **__: made)
    text = succeed("lens", "--fit", "tuned", "-o", "t.safetensors")
    rows = [line.split("\t") for line in text.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[-1] for row in rows] == ["", "no better", "no better"]


def test_a_direction_is_made_explained_added_and_removed():
    pairs()
    text = succeed(
        "direction", "pairs.jsonl", "--layer", "2", "--label", "asks", "-o", "d.safetensors"
    )
    made = Directions.load("d.safetensors")
    held = made.about["held_out"]
    assert f"AUROC on pairs held out\t{held['auroc']:.3f}\n" in text
    assert f"pairs fitted on, held out\t6, {held['pairs']}\n" in text
    succeed(
        "trace", PROMPT, "--target-direction", "d.safetensors", "--target", " cold", "-o", "g.graph"
    )
    nodes = AttributionGraph.load("g.graph").nodes.to_pylist()[-2:]
    assert [node["text"] or node["label"] for node in nodes] == [" cold", "asks"]
    model = tracer.ReplacementModel.load()
    for options, steering in (
        (["--steer", "d.safetensors=-2", "--at", "-1"], made.steering(-2.0, -1)),
        (["--remove", "d.safetensors:asks", "--at", "1:"], made.removal(position=slice(1, None))),
    ):
        text = succeed("intervene", PROMPT, *options, "--mode", "free")
        change = tracer.intervene(model, PROMPT, [steering], "free")
        likeliest = model.token_string(int(change.logits[-1].argmax()))
        assert f"\t{json.dumps(likeliest, ensure_ascii=False)}\t" in text.splitlines()[1]
        [found] = tracer.generate(model, [PROMPT], [steering], max_new_tokens=3)
        text = succeed("generate", PROMPT, *options, "--max-new-tokens", "3")
        assert f"changed\t{found.steered.text}\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lens"], "expected PROMPT or --tokens, got neither"),
        (["lens", PROMPT, "-o", "heat.png"], "cannot write heat.png: expected a suffix of .svg"),
        (["lens", PROMPT, "--kind", "tuned"], "the tuned lens has to be fitted first"),
        (["lens", PROMPT, "--token", "hot cold"], "target 'hot cold' is 2 tok"),
        (["lens", PROMPT, "--fit", "tuned", "-o", "x.safetensors"], "--fit takes no PROMPT"),
        (["lens", "--fit", "tuned"], "--fit needs -o, the lens to write"),
        (["lens", "--fit", "tuned", "-o", "x.bin"], "cannot write the lens x.bin"),
        (["lens", "--fit", "tuned", "-o", "a/x.safetensors"], "no such folder: a"),
        (["lens", "--fit", "tuned", *SMALL, "-o", "x.safetensors"], "corpus is missing"),
        (["lens", *IDS, "--lens", "lens.safetensors"], "the tuned lens is for 2 layers"),
        (["direction", "p.csv", "--layer", "1", "-o", "d.bin"], "expected a suffix"),
        (["direction", "p.csv", "--layer", "1", "-o", "d.safetensors"], "pair 1 is"),
        (["intervene", PROMPT, "--steer", "d"], "'d' is not FILE=SCALE"),
        (["intervene", PROMPT, "--steer", "d=1"], "d: no such file; expected a direction"),
        (["intervene", PROMPT, "--remove", "lens.safetensors"], "is no direction"),
        (["generate", PROMPT, "--at", "x"], "'x' is not a position or A:B"),
        (["trace", PROMPT, "--target-direction", "none"], "none: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], said: str):
    AffineLens("tuned", torch.zeros(2, 3, 3), torch.zeros(2, 3), {}).save("lens.safetensors")
    Path("p.csv").write_text("one,two,three\n")
    assert said in refused(*arguments)
    assert present() == ["lens.safetensors", "p.csv"]
