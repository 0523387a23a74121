"""What a trace explains: token logits, differences, directions; features, once they are rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.folding import read_back
from replacement_models.sites import ReadPoint, Site, Stage, stream_number
from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LocalModel
from tracer.errors import TraceError


@dataclass(frozen=True)
class Difference:
    """The logit of one token less that of another."""

    a: str | int
    b: str | int
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Direction:
    """Any vector in the residual stream, taken as it is."""

    vector: Sequence[float] | Float[Tensor, " d_model"]
    label: str
    weight: float = 1.0
    layer: int | None = None
    """Read the residual stream entering this layer (L: the one entering the final norm)."""
    site: Site | str | None = None
    """Read the residual stream at this site instead, as in "resid_mid.3": between attention and MLP
    of layer 3. With neither, after the final norm, where unembedding rows read."""


Target = str | int | Difference | Direction


def target_name(target: Target) -> str | int | dict[str, Any]:
    """A target as JSON, as metadata and files name it."""
    if isinstance(target, Difference):
        return {"difference": [target.a, target.b], "weight": target.weight}
    if isinstance(target, Direction):
        named = {"direction": target.label, "weight": target.weight, "layer": target.layer}
        return named if target.site is None else named | {"site": str(target.site)}
    return target


@dataclass(frozen=True, eq=False)
class TargetRows:
    """Targets ready for the sweep: affine functionals of the residual stream at one site each.

    Sites and positions, which say what goes together, are kept on the host: a GPU is never waited
    for to know what comes next.
    """

    site: Int[np.ndarray, " rows"]
    """Where in the stream the row reads, by `Site.number`."""
    position: Int[np.ndarray, " rows"]
    """Where it stands; of a row at several positions, the last of them."""
    vector: Float[Tensor, "rows d_model"]
    """Pulled back through the frozen norm it reads from."""
    bias: Float[Tensor, " rows"]
    """What it adds itself: b_enc or b_U, and the read norm's bias."""
    value: Float[Tensor, " rows"]
    """What the forward pass recorded: pre-activation, or the demeaned, uncapped logit."""
    weights: Float[Tensor, "rows positions"] | None = None
    """Of rows that stand at several positions: how much of the vector they read at each."""

    @classmethod
    def spread(
        cls,
        site: Int[np.ndarray, " rows"],
        weights: Float[Tensor, "rows positions"],
        vector: Float[Tensor, "rows d_model"],
        bias: Float[Tensor, " rows"],
        value: Float[Tensor, " rows"],
    ) -> "TargetRows":
        """Rows that read one vector at several positions, each with its weight.

        A contrast between two keys of an attention head is one such row.

        Raises:
            TraceError: a row has no weight anywhere.
        """
        used = weights.ne(0).cpu().numpy()
        if not used.any(1).all():
            raise TraceError(f"row {int(used.any(1).argmin())} has no weight at any position")
        last = used.shape[1] - 1 - used[:, ::-1].argmax(1)
        return cls(site, last, vector, bias, value, weights)

    def __len__(self) -> int:
        return len(self.site)

    def passing(self, device: torch.device) -> "TargetRows":
        """The same rows as they pass a layer on `device`: their vectors are there."""
        if self.vector.device == device:
            return self
        return replace(self, vector=self.vector.to(device))

    def __getitem__(self, rows: Int[np.ndarray, " chosen"]) -> "TargetRows":
        at = on_device(rows, self.vector.device)
        return TargetRows(
            self.site[rows],
            self.position[rows],
            self.vector[at],
            self.bias[at],
            self.value[at],
            None if self.weights is None else self.weights[at],
        )


@dataclass(frozen=True, eq=False)
class LogitTargets:
    """The logit nodes of a trace and their rows."""

    rows: TargetRows
    token: Sequence[int | None]
    """Vocabulary id; None for differences and directions."""
    label: Sequence[str]
    weight: Sequence[float]
    """Probability of a token, the user's weight otherwise."""
    site: Sequence[Site]
    """Where each reads."""


def feature_rows(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    columns: Int[np.ndarray, " rows"],
) -> TargetRows:
    """Rows of some features: encoder rows pulled back through the norm they read from."""
    chosen = local.features[on_device(columns, model.device)]
    vector = chosen.activation.new_empty(len(columns), model.host.d_model)
    bias = torch.empty_like(vector[:, 0])
    layers, positions, _ = (part[columns] for part in local.table)
    for here in runs(layers):
        layer = int(layers[here.start])
        norm, read = model.host.blocks[layer].mlp_norm, model.transcoder.read_at(layer)
        device = model.host.blocks[layer].device
        features = chosen.feature[here].to(device)
        encoder = model.transcoder.encoder_rows(layer, features)
        own = model.transcoder.layers[layer].b_enc[features]
        if read is ReadPoint.NORMED and norm is not None and norm.bias is not None:
            own = own + encoder @ norm.bias
        pulled = read_back(encoder, norm, read)
        if read is not ReadPoint.RESIDUAL:
            pulled = pulled / recording.layers[layer].mlp_scale[chosen.position[here].to(device)]
        vector[here], bias[here] = pulled, own
    site = feature_sites(model, local)[columns]
    return TargetRows(site, positions, vector, bias, chosen.pre_activation)


def feature_sites(model: ReplacementModel, local: LocalModel) -> Int[np.ndarray, " features"]:
    """Where the features of all columns read."""
    reading = np.array([site.number for site in model.host.mlp_sites])
    found: Int[np.ndarray, " features"] = reading[local.table[0]]
    return found


def runs(numbers: Int[np.ndarray, " numbers"]) -> Iterator[slice]:
    """Where neighbouring numbers are equal."""
    if len(numbers):
        cuts = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
        yield from map(slice, [0, *cuts], [*cuts, len(numbers)])


def logit_targets(
    model: ReplacementModel,
    recording: Recording,
    targets: Sequence[Target] | None,
    max_logits: int,
    logit_mass: float,
) -> LogitTargets:
    """Resolve targets at the last recorded position.

    Args:
        model: what was recorded.
        recording: its forward pass.
        targets: what to explain; None is the likeliest tokens.
        max_logits: at most so many likeliest tokens.
        logit_mass: probability that they need not exceed together.

    Raises:
        TraceError: a token is unknown, out of range, or not one token; a vector does not fit.
    """
    probability = recording.logits[-1].double().softmax(-1)
    if targets is None:
        targets = likeliest(probability, max_logits, logit_mass)
    if not targets:
        raise TraceError("targets is an empty list; name at least one, or None for the likeliest")
    found = [_resolve(model, recording, target, probability) for target in targets]
    tokens = [token for token, *_ in found if token is not None]
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise TraceError(f"targets: token {twice} is named twice")
    rows = [row for *_, row in found]
    return LogitTargets(
        rows=TargetRows(
            site=np.stack([row.site for row in rows]),
            position=np.stack([row.position for row in rows]),
            vector=torch.stack([row.vector for row in rows]),
            bias=torch.stack([row.bias for row in rows]),
            value=torch.stack([row.value for row in rows]),
        ),
        token=[token for token, *_ in found],
        label=[label for _, label, *_ in found],
        weight=[weight for _, _, weight, _ in found],
        site=[_site(model, target) for target in targets],
    )


def likeliest(probability: Float[Tensor, " vocabulary"], max_logits: int, mass: float) -> list[int]:
    """The smallest set of next tokens with `mass` of the probability, at most `max_logits`."""
    if max_logits < 1:
        raise TraceError(f"max_logits is {max_logits}, expected 1 or more")
    if not 0 < mass <= 1:
        raise TraceError(f"logit_mass is {mass}, expected a share above 0 and at most 1")
    top = probability.topk(min(max_logits, len(probability)))
    count = int(torch.searchsorted(top.values.cumsum(0), mass)) + 1
    chosen: list[int] = top.indices[:count].tolist()
    return chosen


_Found = tuple[int | None, str, float, TargetRows]


def _resolve(
    model: ReplacementModel, recording: Recording, target: Target, probability: Tensor
) -> _Found:
    if isinstance(target, Direction):
        return _direction(model, recording, target)
    if isinstance(target, Difference):
        a, b = (token_id(model, name) for name in (target.a, target.b))
        vector = model.host.unembedding[a] - model.host.unembedding[b]
        label = f"{model.token_string(a)} − {model.token_string(b)}"
        return _logit(model, recording, (None, label, _weight(target.weight)), vector, [a, b])
    token = token_id(model, target)
    vector = model.host.unembedding[token] - model.mean_unembedding
    named = (token, model.token_string(token), float(probability[token]))
    return _logit(model, recording, named, vector, [token])


def token_id(model: ReplacementModel, name: str | int) -> int:
    """The vocabulary id behind a token's text or id.

    Raises:
        TraceError: the text is not exactly one token, or the id is out of range.
    """
    if not isinstance(name, str):
        if not 0 <= int(name) < model.host.vocabulary:
            raise TraceError(f"target {name} is not in 0..{model.host.vocabulary - 1}")
        return int(name)
    if model.tokenizer is None:
        raise TraceError(f"target {name!r} is text, but this model has no tokenizer; give an id")
    ids = _pieces(model, name)
    if model.tokenizer.unk_token_id in ids and name != model.tokenizer.unk_token:
        raise TraceError(f"target {name!r} is not in the model's vocabulary")
    if len(ids) == 1:
        return ids[0]
    spaced = _pieces(model, f" {name}")
    hint = f"; did you mean {' ' + name!r}?" if len(spaced) == 1 else ""
    raise TraceError(f"target {name!r} is {len(ids)} tokens, expected one{hint}")


def _pieces(model: ReplacementModel, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TraceError(f"target {text!r} is not valid Unicode ({error.reason})") from error
    ids: list[int] = list(model.tokenizer(text, add_special_tokens=False).input_ids)
    return ids


def _weight(weight: float) -> float:
    if not (weight >= 0 and weight < float("inf")):
        raise TraceError(f"target weight is {weight}, expected a finite number from 0 up")
    return float(weight)


def _logit(
    model: ReplacementModel,
    recording: Recording,
    named: tuple[int | None, str, float],
    vector: Tensor,
    tokens: list[int],
) -> _Found:
    """A row of logits: one token's less the mean, or the difference of two."""
    logits, biases = recording.logits_before_cap[-1], model.host.unembedding_bias
    other = logits[tokens[1]] if len(tokens) > 1 else logits.mean()
    bias = torch.zeros_like(other)
    if biases is not None:
        bias = biases[tokens[0]] - (biases[tokens[1]] if len(tokens) > 1 else biases.mean())
    return *named, _after_norm(model, recording, vector, bias, logits[tokens[0]] - other)


def _after_norm(
    model: ReplacementModel, recording: Recording, vector: Tensor, bias: Tensor, value: Tensor
) -> TargetRows:
    norm, last = model.host.final_norm, len(recording.tokens) - 1
    pulled = norm.centre(vector * norm.weight) / recording.final_scale[last]
    if norm.bias is not None:
        bias = bias + vector @ norm.bias
    entering = np.array(stream_number(len(model.host.blocks)))
    return TargetRows(entering, np.array(last), pulled, bias, value)


def _direction(model: ReplacementModel, recording: Recording, target: Direction) -> _Found:
    vector = torch.as_tensor(target.vector, dtype=model.dtype, device=model.device)
    if vector.shape != (model.host.d_model,) or not vector.isfinite().all():
        raise TraceError(
            f"direction {target.label!r} has shape {tuple(vector.shape)}, expected "
            f"({model.host.d_model},), finite"
        )
    last, site = len(recording.tokens) - 1, _site(model, target)
    named = (None, target.label, _weight(target.weight))
    zero = vector.new_zeros(())
    if site.stage is Stage.LOGITS:
        norm = model.host.final_norm
        read = norm.frozen(recording.residuals[-1][last], recording.final_scale[last])
        return *named, _after_norm(model, recording, vector, zero, read @ vector)
    value = recording.stream(site)[last].to(vector.device) @ vector
    return *named, TargetRows(np.array(site.number), np.array(last), vector, zero, value)


def _site(model: ReplacementModel, target: Target) -> Site:
    """Where a target reads."""
    layers = len(model.host.blocks)
    if not isinstance(target, Direction) or (target.layer is None and target.site is None):
        return Site.logits(layers)
    name = f"direction {target.label!r}"
    if target.site is None:
        assert target.layer is not None
        if not 0 <= target.layer <= layers:
            raise TraceError(f"{name}: layer {target.layer} is not in 0..{layers}")
        return Site(target.layer, Stage.RESID_PRE)
    if target.layer is not None:
        raise TraceError(f"{name} has a layer and a site; give one of them")
    site = Site.parse(target.site) if isinstance(target.site, str) else target.site
    if site not in model.host.stream_sites:
        raise TraceError(
            f"{name}: the residual stream of this model cannot be read at {site}; expected one of "
            f"{', '.join(map(str, model.host.stream_sites))}"
        )
    return site
