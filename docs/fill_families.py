"""Measure every supported decoder type on small random models, and write the table of them.

`python -m docs.fill_families` adds what the installed transformers gives to
benchmarks/results/families.json and fills in docs/families.md from all releases measured there.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import __version__ as version

from docs.fill_readme import ROOT, between, replace
from replacement_models import ModelError, ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from replacement_models.host import Block, Host
from replacement_models.hosts import support
from replacement_models.hosts.support import decoders
from tests.family_configs import CONFIGS, KNOWN, model_of_family
from tests.local_forward import LocalForward
from tests.random_hybrids import HYBRIDS, hybrid_language_model
from tests.random_models import FAMILIES, PROMPT, language_model, transcoder
from tests.test_laws import row_sums
from tests.test_replacement_models_hosts import BY_THEMSELVES, generic

RESULTS = ROOT / "benchmarks" / "results" / "families.json"


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Type and what makes a random model of it; some types have several."""
    for name, (model_type, _) in FAMILIES.items():
        yield model_type, lambda name=name: language_model(name)  # type: ignore[misc]
    for name, (model_type, _) in HYBRIDS.items():
        yield model_type, lambda name=name: hybrid_language_model(name)  # type: ignore[misc]
    for name in KNOWN:
        yield CONFIGS[name][0], lambda name=name: model_of_family(name)  # type: ignore[misc]
    for model_type in decoders():
        if support(model_type).supported and model_type not in BY_THEMSELVES:
            yield model_type, lambda name=model_type: generic(name)  # type: ignore[misc]


def measured(model: Any) -> dict[str, Any]:
    """Worst row sum and logit, relative to the largest; parts; whether it has neurons."""
    found = ReplacementModel.from_huggingface(model, None, transcoder(skip=True))
    with torch.no_grad():
        recording = found.record(PROMPT)
        _, logits = LocalForward(found, recording)()
    got, expected = row_sums(found)
    own = recording.logits_before_cap
    try:
        neurons(found.host)
        has_neurons = True
    except ModelError:
        has_neurons = False
    return {
        "parts": parts(found.host),
        "law": float((got - expected).abs().max()),
        "own": float((logits - own).abs().max() / own.abs().max()),
        "neurons": has_neurons,
        "dtype": str(found.dtype).removeprefix("torch."),
    }


def parts(host: Host) -> list[str]:
    """What a host's layout has beyond norms before attention and MLP, in words."""
    blocks = host.blocks

    def some(has: Callable[[Block], object]) -> bool:
        return any(has(block) for block in blocks)

    named = {
        "LayerNorm": host.final_norm.centred,
        "learned or sinusoidal positions": host.position_embedding is not None,
        "norm of embeddings": host.embedding_norm is not None,
        "scaled embeddings": host.embedding_scale != 1,
        "parallel": some(lambda block: block.parallel),
        "no norm before": some(lambda block: block.attention_norm is None),
        "norms behind": some(lambda b: b.attention_post_norm and not b.attention_post_norm.fixed),
        "multipliers": some(lambda b: b.attention_post_norm and b.attention_post_norm.fixed),
        "grouped heads": some(lambda block: len(block.value) < len(block.output)),
        "value biases": some(lambda block: block.value_bias is not None),
        "output biases": some(lambda block: block.output_bias is not None),
        "blocks beside the stream": some(lambda block: block.aside),
        "factors around the pattern": some(lambda block: not block.plain),
        "experts": some(lambda block: hasattr(block.mlp_maps or block.mlp, "experts")),
        "soft cap": host.logit_cap is not None,
    }
    return [name for name, there in named.items() if there]


def built_and_measured(model_type: str, build: Callable[[], Any]) -> dict[str, Any] | None:
    """As `measured`; None, and the reason said, where this release cannot build or run it.

    Older releases lack types, and mix float32 into some models of float64, which run in float32.
    """
    try:
        model = build()
    except (AttributeError, TypeError, ValueError) as error:
        sys.stderr.write(f"{model_type}: not built here ({error})"[:160] + "\n")
        return None
    try:
        return measured(model)
    except ModelError as error:
        sys.stderr.write(f"{model_type}: refused ({error})"[:160] + "\n")
        return None
    except RuntimeError as error:
        sys.stderr.write(f"{model_type}: in float32 ({error})"[:160] + "\n")
        return measured(model.float())


def measure() -> None:
    """Add the installed release to the results."""
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    found: dict[str, dict[str, Any]] = {}
    for model_type, build in cases():
        new = built_and_measured(model_type, build)
        if new is None:
            continue
        old = found.setdefault(model_type, new)
        for worst in ("law", "own"):
            old[worst] = max(old[worst], new[worst])
        old["parts"] = list(dict.fromkeys([*old["parts"], *new["parts"]]))
        old["neurons"] = old["neurons"] and new["neurons"]
    known[version] = dict(sorted(found.items()))
    RESULTS.write_text(f"{json.dumps(known, indent=1)}\n", encoding="utf-8")


def table() -> str:
    """All releases measured, a line a type."""
    known: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8"))
    head = "`model_type` | parts | worst law | worst difference to its own pass | neurons"
    lines = [f"| {head} | transformers |", "|---|---|---|---|---|---|"]
    for model_type in sorted({name for release in known.values() for name in release}):
        rows = {v: release[model_type] for v, release in known.items() if model_type in release}
        last = rows[max(rows)]
        alike = [row for row in rows.values() if row["dtype"] == last["dtype"]]
        single = "" if last["dtype"] == "float64" else f" ({last['dtype']})"
        cells = [
            f"`{model_type}`{single}",
            ", ".join(last["parts"]) or "as Llama",
            f"{max(row['law'] for row in alike):.0e}",
            f"{max(row['own'] for row in alike):.0e}",
            in_releases({v for v, row in rows.items() if row["neurons"]}, set(rows)),
            ", ".join(sorted(rows)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_releases(having: set[str], every: set[str]) -> str:
    """Yes, no, or the releases in which it is so."""
    if having == every:
        return "yes"
    return f"in {', '.join(sorted(having))}" if having else "no"


def main() -> None:
    """Measure unless told not to, and fill in the page."""
    if "--table" not in sys.argv:
        measure()
    replace("docs/families.md", between("measured families"), table())


if __name__ == "__main__":
    main()
