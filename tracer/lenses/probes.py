"""Linear probes: what can be read off a stream, or off features, and how much of it is there.

scikit-learn is imported here and nowhere else (`pip install tracer[features]`).
"""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.sites import Site
from tracer.errors import TraceError
from tracer.lenses.directions import Directions
from tracer.lenses.readings import stream_sites

Prompt = str | Sequence[int]
STEPS = 5000
"""Most that a fit takes."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression on one site and position, and how it does on prompts held out."""

    site: Site | int
    """Of the stream, or the layer whose features it reads."""
    classes: tuple[str, ...]
    weights: Float[Tensor, "directions inputs"]
    """Of inputs as they are: one a class; of two classes one, towards the second."""
    bias: Float[Tensor, " directions"]
    accuracy: tuple[float, ...]
    """On each fold held out, by a probe fitted on the others."""
    control: tuple[float, ...]
    """The same with labels shuffled, the mean over folds of each shuffle."""
    chance: float
    """Accuracy of always saying the commonest label."""
    about: dict[str, Any]

    __repr__ = one_line

    @property
    def selectivity(self) -> float:
        """Mean accuracy less that of the control (Hewitt & Liang 2019)."""
        return float(np.mean(self.accuracy) - np.mean(self.control))

    def read(self, inputs: Float[Tensor, "prompts inputs"]) -> list[str]:
        """The class of each row."""
        scores = inputs.float() @ self.weights.T + self.bias
        if len(self.classes) == 2:
            return [self.classes[int(score > 0)] for score in scores[:, 0]]
        return [self.classes[row] for row in scores.argmax(-1).tolist()]

    def directions(self) -> Directions:
        """The weights as directions of the stream, to save, explain, add or remove.

        Raises:
            TraceError: the probe reads features.
        """
        if not isinstance(self.site, Site):
            raise TraceError(
                f"a probe on the features of layer {self.site} has no direction in the stream; "
                "make one on a site of it"
            )
        labels = self.classes[1:] if len(self.classes) == 2 else self.classes
        said = {
            "accuracy": float(np.mean(self.accuracy)),
            "control": float(np.mean(self.control)),
            "selectivity": self.selectivity,
            "chance": self.chance,
        }
        return Directions(self.weights, labels, self.site, self.about | {"held_out": said})


@one_call()
@torch.no_grad()
def probe(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    site: Site | str | int,
    *,
    position: int = -1,
    folds: int = 5,
    types: Sequence[Hashable] | None = None,
    controls: int = 3,
    strength: float = 1.0,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe, and the same one on shuffled labels.

    Inputs are standardised for the fit; the weights kept are for inputs as they are.

    Args:
        model: the model.
        prompts: one example each.
        labels: what to read of each.
        site: of the residual stream, or a layer whose features to read (after its activation).
        position: which token's, counted in each prompt for itself.
        folds: parts of the prompts, each held out once; fewer where a label has fewer prompts.
        types: what a label belongs to, as a word; None: every prompt is its own. The control gives
            a type one random label wherever it occurs, so where folds share types it measures what
            a probe can memorise (Hewitt & Liang 2019, "Designing and Interpreting Probes with
            Control Tasks"); where they do not, it is at chance.
        controls: shuffles.
        strength: inverse of the ridge penalty, as scikit-learn's `C`.
        seed: of folds and shuffles.

    Returns:
        The probe fitted on all prompts, with accuracies on folds held out.

    Raises:
        TraceError: scikit-learn is missing, an argument is out of range, or a label has one prompt.
        ModelError: a prompt does not fit the model.
    """
    needed()
    place = site if isinstance(site, int) else stream_sites(model, [site])[0]
    if isinstance(place, int) and place not in range(len(model.host.blocks)):
        raise TraceError(f"probe: layer {place} is not in 0..{len(model.host.blocks) - 1}")
    classes, numbers = _classes(prompts, labels)
    kinds = list(range(len(prompts))) if types is None else list(types)
    if len(kinds) != len(prompts) or controls < 1 or folds < 2 or not strength > 0:
        raise TraceError(
            f"probe: types {len(kinds)} for {len(prompts)} prompts, controls {controls}, folds "
            f"{folds}, strength {strength}; expected one a prompt, 1 or more, 2 or more, above 0"
        )
    inputs = np.stack([_input(model, prompt, place, position) for prompt in prompts])
    parts = _folds(numbers, folds, seed)
    shuffles = [shuffled(numbers, kinds, seed + draw) for draw in range(controls)]
    weights, bias = _fitted(inputs, numbers, strength)
    about = {"model": model.name, "made": "probe", "position": position, "seed": seed}
    return Probe(
        site=place,
        classes=classes,
        weights=torch.from_numpy(weights).float(),
        bias=torch.from_numpy(bias).float(),
        accuracy=tuple(_accuracies(inputs, numbers, parts, strength)),
        control=tuple(
            float(np.mean(_accuracies(inputs, one, parts, strength))) for one in shuffles
        ),
        chance=max(Counter(labels).values()) / len(labels),
        about=about | {"prompts": len(prompts), "strength": strength},
    )


def needed() -> None:
    """Refuse to go on without scikit-learn.

    Raises:
        TraceError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise TraceError(
            "probes need scikit-learn, which is not installed: pip install 'tracer[features]'"
        ) from error


def shuffled(
    numbers: Int[np.ndarray, " prompts"], types: Sequence[Hashable], seed: int
) -> Int[np.ndarray, " prompts"]:
    """Labels dealt anew among types: one label a type, as many of each as there were.

    Raises:
        TraceError: a type has two labels.
    """
    own: dict[Hashable, int] = {}
    for kind, number in zip(types, numbers.tolist(), strict=True):
        if own.setdefault(kind, number) != number:
            raise TraceError(f"probe: the type {kind!r} has more than one label")
    dealt = list(own.values())
    random.Random(seed).shuffle(dealt)
    new = dict(zip(own, dealt, strict=True))
    return np.array([new[kind] for kind in types])


def _classes(
    prompts: Sequence[Prompt], labels: Sequence[str]
) -> tuple[tuple[str, ...], Int[np.ndarray, " prompts"]]:
    if len(prompts) != len(labels):
        raise TraceError(f"probe: {len(prompts)} prompts, but {len(labels)} labels")
    counts = Counter(labels)
    rare = [label for label, count in counts.items() if count < 2]
    if len(counts) < 2 or rare:
        hint = f"label {rare[0]!r} has one prompt" if rare else f"there are {len(counts)} labels"
        raise TraceError(f"probe: {hint}; give two labels or more, two prompts of each or more")
    classes = tuple(sorted(counts))
    return classes, np.array([classes.index(label) for label in labels])


def _input(
    model: ReplacementModel, prompt: Prompt, place: Site | int, position: int
) -> Float[np.ndarray, " inputs"]:
    """What one prompt is for the probe."""
    recording = model.record(prompt, keep_patterns=False, last_logits=True)
    if not -len(recording.tokens) <= position < len(recording.tokens):
        raise TraceError(f"probe: position {position} is not in {prompt!r:.60}")
    if isinstance(place, Site):
        found = recording.stream(place)[position]
    else:
        found = model.transcoder.encode(place, recording.inputs[place])[1][position]
    return found.double().cpu().numpy()


def _folds(
    numbers: Int[np.ndarray, " prompts"], folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows held out, labels spread evenly."""
    from sklearn.model_selection import StratifiedKFold

    count = min(folds, int(np.bincount(numbers).min()))
    split = StratifiedKFold(count, shuffle=True, random_state=seed)
    return list(split.split(numbers, numbers))


def _accuracies(
    inputs: np.ndarray,
    numbers: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    strength: float,
) -> list[float]:
    """Of every fold held out; labels that are not fitted on count as wrong."""
    found = []
    for fitted, held in parts:
        seen = np.unique(numbers[fitted])
        weights, bias = _fitted(inputs[fitted], numbers[fitted], strength)
        scores = inputs[held] @ weights.T + bias
        chosen = (scores[:, 0] > 0).astype(int) if len(seen) == 2 else scores.argmax(-1)
        found.append(float((seen[chosen] == numbers[held]).mean()))
    return found


def _fitted(
    inputs: Float[np.ndarray, "rows inputs"], numbers: Int[np.ndarray, " rows"], strength: float
) -> tuple[Float[np.ndarray, "directions inputs"], Float[np.ndarray, " directions"]]:
    """Weights and biases for inputs as they are, fitted on standardised ones."""
    from sklearn.linear_model import LogisticRegression

    centre, size = inputs.mean(0), inputs.std(0)
    size = np.where(size > 0, size, 1)
    made = LogisticRegression(C=strength, max_iter=STEPS)
    made.fit((inputs - centre) / size, numbers)
    weights = made.coef_ / size
    return weights, made.intercept_ - weights @ centre
