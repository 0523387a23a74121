"""How far to believe a graph: what it predicts beside what interventions on the model measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from graphs import AttributionGraph
from graphs.schema import number, plain_metadata
from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from tracer.attention.effects import attention_effects
from tracer.errors import TraceError
from tracer.validation.ablation import ablations
from tracer.validation.circuit import circuit_of
from tracer.validation.composition import composition
from tracer.validation.correlation import (
    direct_logit,
    explained,
    feature_to_feature,
    spearman,
)
from tracer.validation.faithfulness import DEFAULT, EDGES, Faithfulness, faithfulness
from tracer.validation.held import HELD, NOTHING, holding
from tracer.validation.means import Means, corpus_means
from tracer.validation.report import TABLES, write_plots, write_tables
from tracer.validation.resample_ablation import Resampling, resample_ablation
from tracer.validation.response import (
    EDGES as BY_EDGES,
)
from tracer.validation.response import (
    Prediction,
    Response,
    by_distance,
    responses,
)
from tracer.validation.scrubbing import Hypothesis, scrub
from tracer.validation.specificity import Prompt, specificity
from tracer.validation.spread import spread
from tracer.validation.subject import Subject, subject
from tracer.validation.verdict import verdict

ROUNDING = 16
"""Changes below so many units in the last place of the largest value are rounding."""


@dataclass(frozen=True, eq=False)
class Validation:
    """What a graph predicted and what was measured."""

    graph: AttributionGraph
    """The graph with the summary in its metadata, under "validation"."""
    summary: dict[str, Any]
    features: pa.Table
    """One row a feature node: id, influence, measured (fall of the target's demeaned logit when it
    alone is zeroed), activation, direct (the baseline's |activation x decoder x target|)."""
    responses: pa.Table
    """One row a zeroed feature and layer above it: id, what was frozen while measuring, distance,
    cosine, error, measured, and by what was predicted: edges alone, or with first-order effects."""
    circuits: pa.Table | None
    """One row a threshold, as in `Faithfulness.curve`; None without a corpus."""

    __repr__ = one_line

    @property
    def tables(self) -> dict[str, pa.Table | None]:
        """All tables by name."""
        return {name: getattr(self, name) for name in TABLES}

    def save(self, path: str | Path) -> list[Path]:
        """Save the graph with its summary; into a folder the tables and plots as well.

        Returns:
            What was written.

        Raises:
            GraphError: the place cannot be written.
        """
        path = Path(path)
        self.graph.save(path)
        if path.suffix == ".zip":
            return [path]
        return [path, *write_tables(path, self.tables), *write_plots(path, self.tables)]


@one_call()
def validate(
    model: ReplacementModel,
    graph: AttributionGraph,
    corpus: Sequence[Prompt] | Means | None = None,
    *,
    others: Sequence[Prompt] | None = None,
    hypotheses: Sequence[Hypothesis | Resampling] = (),
    draws: int = 10,
    seed: int = 0,
) -> Validation:
    """Test an unpruned graph against interventions on the model it was traced from.

    Rank correlation: influence against the size of the change of the target's demeaned logit when a
    feature alone is zeroed in mode "free", over all feature nodes (at least 30), over the half
    with most influence, and feature to feature; beside it two baselines, activation and |activation
    x decoder x target|. Responses: predicted against measured changes of activations, by layers
    above the feature; again with attention, and with attention and norms, frozen; and predicted
    again with what attention scores, and norms too, answer to the first order. Faithfulness:
    what is left of the target's lead over its strongest competitor with all features and all errors
    outside the pruned circuit at their corpus mean, again with attention, and with attention and
    norms, held, and less what is left with nothing kept; circuits keep what steers their attention
    where the graph was made to (`keep_attention`). Evidence: what `verdict.py` lists.

    Args:
        model: the model the graph was traced from.
        graph: as `trace` returned it.
        corpus: prompts for the means, or the means. None takes those the model brings
            (`ReplacementModel.corpus`); where it brings none, faithfulness is left out.
        others: prompts that ablating the circuit should break less. None takes those of the corpus;
            where it is given as means, specificity is left out.
        hypotheses: what the circuit's groups stand for, to scrub, or what should not matter, to
            resample; each with its own prompts.
        draws: random circuits for each threshold.
        seed: of the random circuits, of the other prompts and of scrubbing.

    Returns:
        The graph with its summary, and tables of features, responses and circuits.

    Raises:
        TraceError: the graph is pruned, of another model, or its targets are directions; a
            hypothesis or its prompts do not fit.

    Source: Ameisen et al. 2025, "Circuit Tracing", section on evaluating graphs; Marks et al. 2025,
    "Sparse Feature Circuits", for faithfulness and what it is compared with; Wang et al. 2023,
    "Interpretability in the Wild", for completeness and minimality, of which `faithfulness` has one
    case each; Chan et al. 2022, "Causal Scrubbing".
    """
    about = subject(model, graph)
    means, others = _corpus(about, corpus, others)
    prediction = Prediction(about)
    measured, changes, found = _measure(prediction, _first_order(about))
    kept = None if means is None else faithfulness(about, means, draws, seed)
    features = _feature_table(about, measured)
    summary = _summary(about, features, changes, found) | {
        "faithfulness": None if kept is None else kept.summary(),
        "composition": composition(prediction),
        "specificity": None,
    }
    if means is not None and others is not None:
        circuit = circuit_of(graph.prune(DEFAULT, EDGES))
        summary["specificity"] = specificity(about, means, circuit, others, seed)
    if graph.keeps_attention:
        summary["keep_attention"] = True
    summary |= _resampled(about, hypotheses, seed)
    summary["verdict"] = verdict(summary, _names(about, kept))
    return Validation(
        graph=replace(graph, metadata=plain_metadata(graph.metadata | {"validation": summary})),
        summary=summary,
        features=features,
        responses=_response_table(about, found),
        circuits=None if kept is None else pa.Table.from_pylist(kept.curve),
    )


def _corpus(
    about: Subject,
    corpus: Sequence[Prompt] | Means | None,
    others: Sequence[Prompt] | None,
) -> tuple[Means | None, Sequence[Prompt] | None]:
    """Means and other prompts, as far as they are given or the model brings them."""
    if corpus is None and about.model.corpus is not None:
        corpus = about.model.corpus()
    if corpus is None or isinstance(corpus, Means):
        return corpus, others
    means = corpus_means(about.model, corpus, about.skipped)
    return means, corpus if others is None else others


def _resampled(
    about: Subject, hypotheses: Sequence[Hypothesis | Resampling], seed: int
) -> dict[str, Any]:
    """Causal scrubbing and resample ablation, where something is claimed."""
    model, tokens, lead = about.model, about.recording.tokens, about.aim.lead
    text = str(about.graph.metadata.get("prompt"))
    known = model.tokenizer is not None and tuple(model.tokenize(text)) == tuple(tokens)
    prompt: Prompt = text if known else tokens
    found: dict[str, Any] = {}
    for one in hypotheses:
        if isinstance(one, Hypothesis):
            entry = scrub(model, prompt, one, lead, seed=seed).summary()
            found.setdefault("scrubbing", []).append(entry)
        else:
            entry = resample_ablation(model, tokens, one, lead).summary()
            found.setdefault("resample_ablation", []).append(entry)
    return found


def _names(about: Subject, kept: Faithfulness | None) -> dict[str, str]:
    """Token strings that the verdict speaks of."""
    found = {"target": about.aim.plus, "rival": about.aim.rival}
    if kept is not None:
        found["answer"] = kept.answers[NOTHING]
    return {name: about.model.token_string(token) for name, token in found.items()}


@torch.no_grad()
def _measure(
    prediction: Prediction, answering: Sequence[Prediction]
) -> tuple[np.ndarray, np.ndarray, list[Response]]:
    """Effects on the target (features) and on features (features, targets), and responses."""
    about = prediction.subject
    count, targets = len(about.features), explained(about)
    effect, changes = np.zeros(count), np.zeros((count, len(targets)))
    places = np.array(about.features, dtype=np.int64).reshape(-1, 3)[targets]
    found: list[Response] = []
    for ablated in ablations(about):
        rows = slice(ablated.features.start, ablated.features.stop)
        effect[rows] = _settled(ablated.effect, about.recording.logits_before_cap)
        for layer, response in enumerate(ablated.responses):
            here = np.flatnonzero(places[:, 0] == layer)
            change = response[:, places[here, 1], places[here, 2]]
            changes[rows, here] = np.abs(_settled(change, about.recording.features.activation))
        for predicted in (prediction, *answering):
            found += responses(predicted, ablated)
    for held in HELD:
        if held != NOTHING:
            for ablated in ablations(about, holding(about.recording, held)):
                found += responses(prediction, ablated, held)
    return effect, changes, found


def _first_order(about: Subject) -> list[Prediction]:
    """Predictions with first-order effects; none where the model's scores are not understood."""
    try:
        beside = attention_effects(about.model, about.graph)
    except TraceError:
        return []
    return [Prediction(about, beside, norms) for norms in (False, True)]


def _settled(change: Tensor, size: Tensor) -> np.ndarray:
    """Changes with those that are only rounding at zero, where they tie."""
    limit = ROUNDING * torch.finfo(size.dtype).eps * float(size.abs().max())
    return torch.where(change.abs() > limit, change, 0.0).double().cpu().numpy()


def _feature_table(about: Subject, measured: np.ndarray) -> pa.Table:
    nodes, rows = about.graph.nodes, about.rows
    return pa.table(
        {
            "id": nodes["id"].take(rows),
            "influence": number(nodes, "influence")[rows],
            "measured": measured,
            "activation": number(nodes, "activation")[rows],
            "direct": direct_logit(about),
        }
    )


def _response_table(about: Subject, found: list[Response]) -> pa.Table:
    ids = about.graph.nodes["id"].take(about.rows).to_pylist()
    return pa.table(
        {
            "id": pa.array([ids[one.feature] for one in found], pa.string()),
            "frozen": pa.array([one.frozen for one in found], pa.string()),
            "distance": pa.array([one.distance for one in found], pa.int32()),
            "cosine": pa.array([one.cosine for one in found], pa.float64()),
            "error": pa.array([one.error for one in found], pa.float64()),
            "measured": pa.array([one.measured for one in found], pa.float64()),
            "predicted": pa.array([one.predicted for one in found], pa.string()),
        }
    )


def _summary(
    about: Subject,
    features: pa.Table,
    changes: np.ndarray,
    found: list[Response],
) -> dict[str, Any]:
    columns = {name: features[name].to_numpy() for name in features.column_names[1:]}
    size = np.abs(columns["measured"])
    order = np.argsort(-columns["influence"], kind="stable")
    top = order[: len(order) // 2]
    between = feature_to_feature(about, changes)
    plain = [one for one in found if one.predicted == BY_EDGES]
    answering = [one for one in found if one.predicted != BY_EDGES]
    return {
        "features": len(size),
        "target": about.graph.nodes["id"][about.aim.row].as_py(),
        "spearman": {
            "influence": spearman(columns["influence"], size),
            "top_half": spearman(columns["influence"][top], size[top]),
            "activation": spearman(np.abs(columns["activation"]), size),
            "direct": spearman(columns["direct"], size),
            "feature_to_feature": float(np.median(between)) if between else None,
            "feature_targets": len(between),
            "feature_spread": spread(between),
        },
        "responses": {
            frozen: by_distance([one for one in plain if one.frozen == frozen])
            for frozen in dict.fromkeys(one.frozen for one in plain)
        },
        "first_order": {
            kind: by_distance([one for one in answering if one.predicted == kind])
            for kind in dict.fromkeys(one.predicted for one in answering)
        },
    }
