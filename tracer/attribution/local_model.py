"""The local replacement model of one prompt: affine once patterns and norm scales are frozen.

Every MLP output is rewritten as features + error, and what no source wrote becomes a constant
(Ameisen et al. 2025, "Circuit Tracing", section "Local replacement model"). What is left
of the model is linear in the sources. This module gathers, once per prompt, the vectors that
sources write (`writers.py`) and the frozen patterns; `sweep.py` pulls target rows back through
them.

Rows read the residual stream at *sites* (replacement_models/sites.py), which the engine knows by
their numbers: in the order of the forward pass, so that larger is later.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import (
    ActiveFeatures,
    FrozenLayer,
    Recording,
    ReplacementModel,
    Transcoder,
)
from replacement_models.folding import FoldedLayer, mlp_post_norm, written
from replacement_models.host import Block
from replacement_models.one_line import one_line
from replacement_models.sites import ReadPoint, stream_number, top_layer
from tracer.attribution.around import Around, around, bare_values, constant_heads
from tracer.attribution.carry import carry, carry_around, embedded, is_lifted, lift, start_of
from tracer.attribution.indices import on_device
from tracer.attribution.landing import needed
from tracer.attribution.sizes import Sizes
from tracer.attribution.writers import Table, Writers, gather, table_of, written_bytes

TRACES = 8
"""Traces that the making of virtual weights, once per model, is spread over."""
MIXED = 0.5
"""Share of the products saved by scoring mixed gradients that preparing for it may take."""


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One layer of the local replacement model, for pulling gradients down."""

    pattern: Float[Tensor, "kv_heads keys group queries"] | Callable[[], Tensor]
    """Frozen attention pattern, transposed, norm denominators folded in; or what makes it anew."""
    output: Float[Tensor, "heads_d_head d_model"]
    value: Float[Tensor, "d_model kv_heads_d_head"]
    carried: Float[Tensor, "positions carried d_model"]
    """What attention writes of tokens 0, 1, ..., last its constant; see `carry.py`."""
    skip: Float[Tensor, "d_model d_model"] | None
    skip_scale: Float[Tensor, "positions 1"]
    """One over the norm denominators that the linear skip passes."""
    parallel: bool
    virtual: Float[Tensor, "heads_d_head kv_heads_d_head_above"] | None
    """Back through the value map of the layer above and this one's output map, where that pays."""
    around: Around | None = None
    """Taps and factors around the pattern; None where there are none."""
    aside: bool = False
    """As of a `Block`: gradients of the stream pass by; `carried` is all that the MLP reads."""
    tokens: Float[Tensor, "positions kv_heads_d_head"] | None = None
    """What the value map makes of the tokens, where attention reads them beside the stream."""

    @property
    def device(self) -> torch.device:
        """Where the layer stands, and gradients while they pass it."""
        return self.output.device

    @property
    def remakes_pattern(self) -> bool:
        """Whether asking for the pattern costs a pass through the attention layer."""
        return not isinstance(self.pattern, Tensor)

    def transposed_pattern(
        self, begin: int, end: int
    ) -> Float[Tensor, "kv_heads keys group queries"]:
        """The pattern among the positions from `begin` to before `end`."""
        whole = self.pattern if isinstance(self.pattern, Tensor) else self.pattern()
        return whole[:, begin:end, :, begin:end]

    def read_heads(
        self, heads: Float[Tensor, "rows positions heads_d_head"], begin: int
    ) -> Float[Tensor, "rows positions heads_d_head"]:
        """What came back through the output map, as the pattern's outputs have it."""
        return heads if self.around is None else self.around.outputs_at(heads, begin)

    def read_values(
        self, mixed: Float[Tensor, "rows positions kv_heads_d_head"], begin: int
    ) -> Float[Tensor, "rows positions kv_heads_d_head"]:
        """What came back through the pattern, as the value map's outputs have it."""
        return mixed if self.around is None else self.around.values_back(mixed, begin)

    def write_values(
        self, stream: Float[Tensor, "*rows positions d_model"], begin: int = 0
    ) -> Float[Tensor, "*rows positions kv_heads_d_head"]:
        """What the pattern mixes of a stream that begins at a position; biases left out."""
        values = stream @ self.value
        return values if self.around is None else self.around.values_on(values, begin)

    def write_heads(
        self, mixed: Float[Tensor, "*rows positions heads_d_head"], begin: int = 0
    ) -> Float[Tensor, "*rows positions d_model"]:
        """What the output map makes of what the pattern mixed."""
        return self.read_heads(mixed, begin) @ self.output


@dataclass(frozen=True, eq=False)
class Reach:
    """Columns that reach some row, as the few slices in which they lie together."""

    slices: tuple[slice, ...]
    """Ascending, with a gap after each."""
    count: int
    """Columns in all."""

    @classmethod
    def of(cls, columns: Int[np.ndarray, " reaching"]) -> "Reach":
        """The slices of ascending columns."""
        cuts = (np.flatnonzero(np.diff(columns) > 1) + 1).tolist()
        begins, ends = [0, *cuts], [*cuts, len(columns)]
        slices = [
            slice(int(columns[begin]), int(columns[end - 1]) + 1)
            for begin, end in zip(begins, ends, strict=True)
            if begin < end
        ]
        return cls(tuple(slices), len(columns))

    def columns(self) -> Int[np.ndarray, " reaching"]:
        """Their numbers, int32."""
        each = [np.arange(part.start, part.stop, dtype=np.int32) for part in self.slices]
        return np.concatenate(each) if each else np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class LocalModel:
    """The model, affine for one prompt of P positions."""

    tokens: Sequence[int]
    layers: Sequence[LinearLayer]
    writers: Sequence[Writers]
    """A layer each."""
    token_vectors: Float[Tensor, "positions d_model"]
    position_vectors: Float[Tensor, "positions d_model"] | None
    features: ActiveFeatures
    """Features that are nodes, in column order: (position, layer, feature)."""
    table: Table
    """Their layers, positions and numbers on the host: read once, for all that follows."""
    skip_positions: int
    start: int
    """Gradients are followed down to this position. Before it stand tokens and constants only,
    which later positions know through attention: they are carried forward instead."""
    lifted: bool
    """Whether the bottom attention layer carries all tokens, so that the sweep ends above it."""
    mixed: Writers | None
    """What the sources below the last attention layer swept write to its values, where that pays:
    gradients are then scored as that layer has mixed them and not pulled through its value map."""
    early: Mapping[int, Float[Tensor, "start carried d_model"]]
    """The residual stream at the positions before `start`, by source as in `carry.py`, at every
    site (by number): what rows that read there consist of. All where rows are."""

    __repr__ = one_line

    @property
    def positions(self) -> int:
        """P."""
        return len(self.token_vectors)

    @property
    def columns(self) -> int:
        """Sources: features, then errors (layer-major), then tokens."""
        return len(self.features) + (len(self.layers) + 1) * self.positions

    def error_column(self, layer: int, position: int) -> int:
        """Column of one error node."""
        return len(self.features) + layer * self.positions + position

    def token_column(self, position: int) -> int:
        """Column of one token node."""
        return len(self.features) + len(self.layers) * self.positions + position

    def reach(self, site: int, position: int) -> "Reach":
        """Columns whose sources can have an effect on what reads at a site and position."""
        place = site, position
        if place not in self._reaches:
            self._reaches[place] = Reach.of(self._reaching(site, position))
        return self._reaches[place]

    def near_aside(self, layer: int) -> bool:
        """Whether a layer stands aside, or reads what the one below it writes aside."""
        return self.layers[layer].aside or (layer > 0 and self.layers[layer - 1].aside)

    def _reaching(self, site: int, position: int) -> Int[np.ndarray, " reaching"]:
        layer, at = self.places
        attended = layer + 1 <= top_layer(site)
        here = np.where(attended, at <= position, at == position)
        return np.flatnonzero(here & (stream_number(layer + 1) <= site))

    @cached_property
    def _reaches(self) -> dict[tuple[int, int], "Reach"]:
        return {}

    @cached_property
    def places(self) -> tuple[Int[np.ndarray, " columns"], Int[np.ndarray, " columns"]]:
        """Layer of every column, -1 for tokens, and position; skipped errors stand nowhere."""
        layers, positions = len(self.layers), self.positions
        layer, position, _ = self.table
        every = np.arange(positions)
        skipped = np.where(every < self.skip_positions, positions, every)
        return (
            np.concatenate([layer, np.arange(layers).repeat(positions), np.full(positions, -1)]),
            np.concatenate([position, np.tile(skipped, layers), every]),
        )


def linearise(
    model: ReplacementModel,
    recording: Recording,
    skip_positions: int,
    rows: int | None = None,
    plain: bool = False,
) -> LocalModel:
    """Freeze a recording into a local replacement model.

    Args:
        model: what was recorded.
        recording: its one forward pass.
        skip_positions: features and errors at the first so many positions are no nodes; the MLP
            outputs there count as constants.
        rows: how many will be swept, which decides what is worth preparing; None is all features.
        plain: prepare nothing: gradients go to every position and down to the bottom.
    """
    features = _columns(recording.features, skip_positions)
    rows = len(features) if rows is None else rows
    start, lifted = (
        (0, False) if plain else (start_of(recording, skip_positions), is_lifted(model, recording))
    )
    counts = [2 + start] * len(recording.layers)
    if lifted:
        counts[0] = 2 + len(recording.tokens)
    table = table_of(features)
    writers, sums = gather(model.transcoder, features, table, len(recording.tokens), counts)
    pays = virtual_pays(model, len(recording.tokens), rows)
    virtual = _virtual(model, recording) if pays else [None] * len(writers)
    layers, early = _climb(
        model, recording, writers, sums, (skip_positions, start, lifted), virtual
    )
    mixes = lifted and len(layers) > 1 and not layers[1].aside
    return LocalModel(
        tokens=recording.tokens,
        layers=layers,
        writers=writers,
        token_vectors=recording.token_vectors,
        position_vectors=recording.position_vectors,
        features=features,
        table=table,
        skip_positions=skip_positions,
        start=start,
        lifted=lifted,
        mixed=_mixed(writers[0], layers[1], rows) if mixes else None,
        early=early,
    )


def _climb(
    model: ReplacementModel,
    recording: Recording,
    writers: Sequence[Writers],
    sums: Sequence[Float[Tensor, "positions d_model"]],
    ends: tuple[int, int, bool],
    virtual: Sequence[Tensor | None],
) -> tuple[list[LinearLayer], dict[int, Tensor]]:
    """Layer by layer from below: its linear maps, and what else than features it writes.

    Args:
        model: what was recorded.
        recording: its forward pass.
        writers: a layer each; all but what features write is filled in.
        sums: what the features that write to each layer add up to.
        ends: positions skipped, the first that gradients go to, whether tokens are lifted.
        virtual: virtual weights of each layer, or None.

    Returns:
        The layers, and the stream at the first positions at every site (`LocalModel.early`).
    """
    skip_positions, start, lifted = ends
    stream, early, layers, beside = embedded(recording, start), {}, [], None
    for layer, writes in enumerate(writers):
        stream = stream.to(model.host.blocks[layer].device)
        others = _errors_and_constants(model, recording, layer, skip_positions, sums[layer])
        bottom = lifted and layer == 0
        read = stream if beside is None else stream + beside.to(stream.device)
        maps = _linear_layer(model, recording, layer, read, bottom, virtual[layer])
        between, carried = _after_attention(maps, stream, bottom), maps.carried
        early[stream_number(layer)], early[stream_number(layer, between=True)] = stream, between
        stays, past = (torch.zeros_like(one) if maps.aside else one for one in (between, carried))
        above = _past_skip(maps, stays, stream if maps.parallel else between).clone()
        above[:, -1] += others[:start, 1]
        _features_to_stream(model, recording, layer, writes)
        past = past if maps.parallel else _past_skip(maps, past, carried)
        _place_others(writes, others, past)
        stream, beside = (stream, above) if maps.aside else (above, None)
        layers.append(maps)
    early[stream_number(len(layers))] = stream
    return layers, {site: held.to(model.device) for site, held in early.items()}


def virtual_pays(model: ReplacementModel, positions: int, rows: int) -> bool:
    """Whether virtual weights save more than they cost, over some traces of as many rows."""
    blocks = model.host.blocks
    width = max(block.value[..., 0].numel() for block in blocks)
    return TRACES * rows * positions >= len(blocks) * width


def _virtual(model: ReplacementModel, recording: Recording) -> list[Tensor | None]:
    """Virtual weights, but for those of a layer that mixes something else than bare values."""
    above = list(zip(model.host.blocks, recording.layers, strict=True))[1:]
    pairs = zip(model.virtual_weights, above, strict=True)
    return [*(one if bare_values(*place) else None for one, place in pairs), None]


def _mixed(writers: Writers, above: LinearLayer, rows: int) -> Writers | None:
    """The bottom layer's writers as the attention layer above reads them, if that pays."""
    vectors, positions = writers.vectors, len(writers.start) - 1
    d_model = vectors.shape[1]
    if len(vectors) * (d_model + rows) > MIXED * rows * positions * d_model:
        return None
    return replace(writers, vectors=vectors @ above.value.to(vectors.device))


def _columns(active: ActiveFeatures, skip_positions: int) -> ActiveFeatures:
    """Features at counted positions, by position (within one, by layer and feature)."""
    kept = (active.position >= skip_positions).nonzero()[:, 0]
    return active[kept[active.position[kept].argsort(stable=True)]]


def _errors_and_constants(
    model: ReplacementModel,
    recording: Recording,
    layer: int,
    skip_positions: int,
    reconstruction: Float[Tensor, "positions d_model"],
) -> Float[Tensor, "positions 2 d_model"]:
    """What else one layer's MLP adds to the residual stream: its error and its constant.

    The linear skip belongs to neither, but for what it makes of the read norm's bias.
    """
    weights, norm = model.transcoder.layers[layer], model.host.blocks[layer].mlp_norm
    output, b_dec = recording.outputs[layer], weights.b_dec
    if weights.W_skip is not None:
        output = output - recording.inputs[layer] @ weights.W_skip
    error = output - b_dec - reconstruction.to(output.dtype)
    error[:skip_positions] = 0
    constant = b_dec.repeat(len(output), 1)
    constant[:skip_positions] = output[:skip_positions]
    bias = None if norm is None else norm.bias
    normed = model.transcoder.read_at(layer) is ReadPoint.NORMED
    if weights.W_skip is not None and bias is not None and normed:
        constant += bias @ weights.W_skip
    error = _onto_stream(model, recording, layer, error)
    constant = _onto_stream(model, recording, layer, constant, bias=True)
    return torch.stack([error, constant], dim=1)


def _features_to_stream(
    model: ReplacementModel, recording: Recording, layer: int, writers: Writers
) -> None:
    """Take what features write to an MLP output on to the residual stream, in place."""
    norm = mlp_post_norm(model.host.blocks[layer], model.transcoder.write_at(layer))
    scale = recording.layers[layer].mlp_post_scale
    if norm is None or scale is None:
        return
    weights = norm.weight / scale
    if needed(weights.device):
        for place, at in writers.feature_places():
            passed = norm.centre(writers.vectors[place]) * weights[at]
            writers.vectors.index_copy_(0, place, passed)
        return
    for position, weight in enumerate(weights):
        vectors = writers.of_features(position)
        torch.mul(norm.centre(vectors), weight, out=vectors)


def _place_others(
    writers: Writers,
    others: Float[Tensor, "positions 2 d_model"],
    carried: Float[Tensor, "positions carried d_model"],
) -> None:
    """Write errors, constants and tokens; what attention carries ends in a constant too."""
    others[:, 1] += carried[:, -1]
    ends = on_device(np.array(writers.start[1:]), others.device)
    places = torch.arange(-writers.others, 0, device=others.device)
    writers.vectors[ends[:, None] + places] = torch.cat([others, carried[:, :-1]], dim=1)


def _onto_stream(
    model: ReplacementModel,
    recording: Recording,
    layer: int,
    vectors: Float[Tensor, "positions d_model"],
    bias: bool = False,
) -> Float[Tensor, "positions d_model"]:
    """Writes to an MLP output as the residual stream receives them: through a frozen post-norm."""
    norm = mlp_post_norm(model.host.blocks[layer], model.transcoder.write_at(layer))
    scale = recording.layers[layer].mlp_post_scale
    if norm is None or scale is None:
        return vectors
    passed = written(vectors, norm) / scale
    return passed + norm.bias if bias and norm.bias is not None else passed


def _linear_layer(
    model: ReplacementModel,
    recording: Recording,
    layer: int,
    stream: Tensor,
    lifted: bool,
    virtual: Tensor | None,
) -> LinearLayer:
    folded, frozen = model.folded[layer], recording.layers[layer]
    block = model.host.blocks[layer]
    make = partial(_transposed_pattern, frozen, len(block.value), bare_values(block, frozen))
    pattern = make() if isinstance(frozen.pattern, Tensor) else make
    beside, width = around(block, frozen), model.host.d_model
    if block.reads_tokens:
        read = embedded(recording, len(stream)).to(stream.device)
        stream = torch.cat([stream, read], dim=-1)
    if lifted or len(stream):
        whole = pattern if isinstance(pattern, Tensor) else pattern()
        if beside is not None:
            carried = carry_around(folded, whole, beside, stream)
        else:
            carried = lift(folded, whole, recording) if lifted else carry(folded, whole, stream)
    else:
        carried = stream.new_zeros(len(recording.tokens), 1, width)
    carried[:, -1] += _attention_constant(folded, frozen, block)
    return LinearLayer(
        pattern=pattern,
        output=folded.output,
        value=folded.value[:width],
        carried=carried,
        skip=folded.skip,
        skip_scale=_skip_scale(model.transcoder, layer, frozen, block),
        parallel=block.parallel,
        virtual=virtual if block.parallel or folded.skip is None else None,
        around=beside,
        aside=block.aside,
        tokens=_token_values(folded, recording, width) if block.reads_tokens else None,
    )


def _token_values(
    folded: FoldedLayer, recording: Recording, width: int
) -> Float[Tensor, "positions kv_heads_d_head"]:
    """What the value map makes of the tokens, up to the norm's denominators."""
    value = folded.value[width:]
    return recording.token_vectors.to(value.device) @ value


def _skip_scale(
    transcoder: Transcoder, layer: int, frozen: FrozenLayer, block: Block
) -> Float[Tensor, "positions 1"]:
    scale = torch.ones_like(frozen.mlp_scale)
    if transcoder.read_at(layer) is not ReadPoint.RESIDUAL:
        scale = scale / frozen.mlp_scale
    norm = mlp_post_norm(block, transcoder.write_at(layer))
    if norm is not None and frozen.mlp_post_scale is not None:
        scale = scale / frozen.mlp_post_scale
    return scale


def _after_attention(
    maps: LinearLayer, stream: Float[Tensor, "start carried d_model"], lifted: bool
) -> Float[Tensor, "start carried d_model"]:
    """What the MLP reads at the first positions, by source: the stream with what attention adds.

    What it adds alone where the layer stands aside.
    """
    start, sources, _ = stream.shape
    added = maps.carried[:start]
    if maps.aside:
        return added
    return torch.cat([added[:, : sources - 1], added[:, -1:]], 1) if lifted else stream + added


def _past_skip(
    maps: LinearLayer,
    vectors: Float[Tensor, "positions carried d_model"],
    read: Float[Tensor, "positions carried d_model"],
) -> Float[Tensor, "positions carried d_model"]:
    """`vectors` with what the linear skip makes of `read`."""
    if maps.skip is None:
        return vectors
    return vectors + maps.skip_scale[: len(read), None] * (read @ maps.skip)


def _transposed_pattern(
    frozen: FrozenLayer, kv_heads: int, bare: bool
) -> Float[Tensor, "kv_heads keys group queries"]:
    """The pattern with the norm denominators of what it writes, and of bare values, folded in."""
    scaled = frozen.attention_pattern()
    if bare:
        scaled = scaled / frozen.attention_scale[:, 0]
    if frozen.attention_post_scale is not None:
        scaled = scaled / frozen.attention_post_scale
    heads, positions, _ = scaled.shape
    grouped = scaled.reshape(kv_heads, heads // kv_heads, positions, positions)
    return grouped.permute(0, 3, 1, 2).contiguous()


def _attention_constant(
    folded: FoldedLayer, frozen: FrozenLayer, block: Block
) -> Float[Tensor, "positions d_model"]:
    """What an attention layer adds that no source wrote: its biases, and the norms' around it."""
    constant = block.output.new_zeros(len(frozen.attention_scale), block.output.shape[-1])
    tapped = block.taps is not None and block.taps.bias is not None
    biased = tapped or block.mixed_bias is not None or folded.constant is not None
    if biased and not block.plain:
        constant = constant_heads(block, frozen).flatten(1) @ block.output.flatten(0, 1)
    elif folded.constant is not None:  # patterns of long prompts are not made anew for nothing
        mass = frozen.attention_pattern().sum(-1).T  # below 1 where there are attention sinks
        constant = mass @ folded.constant
    if block.output_bias is not None:
        constant = constant + block.output_bias
    if block.attention_post_norm is not None and frozen.attention_post_scale is not None:
        constant = block.attention_post_norm.frozen(constant, frozen.attention_post_scale)
    return constant


def pattern_bytes(sizes: Sizes) -> Float[np.ndarray, " layers"]:
    """Bytes of the attention patterns."""
    heads = np.array([layer[0] for layer in sizes.heads])
    return heads * sizes.positions**2 * float(sizes.itemsize)


def vector_bytes(sizes: Sizes) -> float:
    """Bytes of what is written: by features, errors, constants, what attention carries (twice)."""
    start = sizes.skip_positions if sizes.patterns_kept else 0
    carried = np.full(sizes.layers, start + 1)
    if sizes.lifted:
        carried[0] = sizes.positions + 1
    rest = (1.0 + 2 * carried) * sizes.positions * sizes.d_model * sizes.itemsize
    return float(written_bytes(sizes).sum() + rest.sum())


def local_bytes(sizes: Sizes) -> float:
    """Bytes of the local model: what is written, patterns if kept, the table of features."""
    kept = pattern_bytes(sizes).sum() if sizes.patterns_kept else 0.0
    table = sizes.active * (5 * 8 + 2 * sizes.itemsize)
    return float(vector_bytes(sizes) + kept + table)


def folded_bytes(model: ReplacementModel, positions: int, rows: int) -> float:
    """Bytes of the weights that a trace will fold, because no trace of the model before it has."""
    heads = [
        (block.output[..., 0].numel(), block.value[..., 0].numel()) for block in model.host.blocks
    ]
    numbers = 0
    if "folded" not in vars(model):
        numbers += sum(block.output.numel() + block.value.numel() for block in model.host.blocks)
    if virtual_pays(model, positions, rows) and "virtual_weights" not in vars(model):
        numbers += sum(below[0] * above[1] for below, above in pairwise(heads))
    return float(numbers * model.dtype.itemsize)
