"""How much memory the rest of a trace will take, counted before the sweep starts.

Everything large is known once the prompt is recorded: how many features fired and where, how far
they write, how long the prompt is (`Sizes`). Each module of the engine says what it will take;
`estimate` adds up what stands in memory at every stage of a trace, in the order of trace.py, and
takes the largest sum; `check` compares it with what there is and proposes what would fit. The same
arithmetic serves a GPU, where writers and gradients stand on the device and finished rows beside
it. benchmarks/memory.py compares it with what is measured.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from replacement_models import DenseDecoder, FrozenLayer, Recording, ReplacementModel
from replacement_models.errors import Setting
from replacement_models.folding import mlp_post_norm
from replacement_models.host import Block
from replacement_models.speed.available import free_in_memory, free_on
from tracer.attention.effects import answer_bytes
from tracer.attribution.around import bare_values
from tracer.attribution.assemble import GATHER, graph_bytes, table_bytes
from tracer.attribution.blocks import (
    dense_bytes,
    entries,
    entry_bytes,
    landing_bytes,
    largest_block,
    part_bytes,
)
from tracer.attribution.carry import is_lifted
from tracer.attribution.finished import INDEX
from tracer.attribution.frontier_on_device import ranking_bytes
from tracer.attribution.local_model import (
    folded_bytes,
    local_bytes,
    pattern_bytes,
    vector_bytes,
)
from tracer.attribution.sizes import Sizes
from tracer.attribution.spill import fits_on_disk
from tracer.attribution.sweep import chunk_bytes
from tracer.attribution.writers import read_bytes, sum_bytes, table_of
from tracer.errors import Proposal, TraceError
from tracer.features.promoted import label_bytes

GB = 1e9
FIXED = 135e6
"""Bytes of kernels, threads and buffers that do not depend on the prompt. Measured."""
HEADROOM = 0.15
"""Share of the free memory that is left alone: others on the machine take some meanwhile."""
FLOORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Edge floors to propose."""


def sizes_of(
    model: ReplacementModel,
    recording: Recording,
    *,
    skip_positions: int,
    logits: int,
    max_features: int | None,
    rank_every: int | None,
    edge_floor: float,
) -> Sizes:
    """Read off a recording what the memory of its trace depends on.

    Args:
        model: what was recorded.
        recording: its forward pass.
        skip_positions: positions without features and errors.
        logits: how many will be explained.
        max_features: how many features will be; None is all.
        rank_every: rows between two rankings; None is an eighth of the features explained, at
            least 64.
        edge_floor: share of a row below which effects are dropped.
    """
    layers, positions = len(recording.layers), len(recording.tokens)
    layer, position, feature = table_of(recording.features)
    kept = position >= skip_positions
    place = (layer * positions + position)[kept]
    counts = np.bincount(place, minlength=layers * positions)
    fired = (np.bincount(feature[kept & (layer == one)]) for one in range(layers))
    used = [np.count_nonzero(times) for times in fired]
    explained = len(place) if max_features is None else min(max_features, len(place))
    return Sizes(
        features=counts.reshape(layers, positions),
        used=np.array(used),
        targets=tuple(tuple(model.transcoder.targets(layer)) for layer in range(layers)),
        heads=_heads(model),
        d_model=model.host.d_model,
        vocabulary=model.host.vocabulary,
        logits=logits,
        skip_positions=skip_positions,
        itemsize=model.dtype.itemsize,
        post_norm=any(
            mlp_post_norm(block, model.transcoder.write_at(layer))
            for layer, block in enumerate(model.host.blocks)
        ),
        skips=any(layer.W_skip is not None for layer in model.transcoder.layers),
        lifted=is_lifted(model, recording),
        lazy=not all(isinstance(one.decoder, DenseDecoder) for one in model.transcoder.layers),
        patterns_kept=isinstance(recording.layers[0].pattern, torch.Tensor),
        on_cpu=model.device.type == "cpu",
        threads=torch.get_num_threads(),
        explained=explained,
        rank_every=rank_every or max(64, math.ceil(explained / 8)),
        edge_floor=edge_floor,
        folded=folded_bytes(model, positions, explained),
        around=tuple(map(_around, model.host.blocks, recording.layers)),
        aside=any(block.aside for block in model.host.blocks),
    )


def with_room_to_rank(model: ReplacementModel, sizes: Sizes, memory_limit: float | None) -> Sizes:
    """The same, the rows kept on the device to be ranked only if it then holds all.

    Args:
        model: what will be traced.
        sizes: what was recorded.
        memory_limit: as of `check`; where it is infinite, what is free counts.
    """
    free = _kept_free(free_on(model.device))
    there = Room(free if memory_limit is None else min(free, memory_limit * GB), math.inf)
    return replace(sizes, ranked_there=there.holds(estimate(replace(sizes, ranked_there=True))))


def with_rows_on_disk(
    model: ReplacementModel, sizes: Sizes, memory_limit: float | None, spill_above: float
) -> Sizes:
    """The same, finished rows on disk where much memory is taken, or more than there is.

    Args:
        model: what will be traced.
        sizes: what was recorded.
        memory_limit: as of `check`.
        spill_above: gigabytes from which on they go there if the disk has room; infinity is never.
    """
    if spill_above == math.inf or not fits_on_disk(rows_bytes(sizes)):
        return sizes
    need = estimate(sizes)
    much = need.whole >= spill_above * GB or not _room(model, sizes, memory_limit).holds(need)
    return replace(sizes, on_disk=much)


def rows_bytes(sizes: Sizes) -> float:
    """Bytes of all finished rows."""
    return entries(sizes)[0] * entry_bytes(sizes)


def _around(block: Block, frozen: FrozenLayer) -> tuple[int, int]:
    values = 0 if bare_values(block, frozen) else block.value[..., 0].numel()
    return values, 0 if frozen.factors.outputs is None else block.output[..., 0].numel()


def _heads(model: ReplacementModel) -> tuple[tuple[int, int, int, int], ...]:
    return tuple(
        (
            *(len(block.output), block.output[..., 0].numel()),
            *(len(block.value), block.value[..., 0].numel()),
        )
        for block in model.host.blocks
    )


@dataclass(frozen=True)
class Stage:
    """What stands in memory at one stage of a trace, in bytes."""

    name: str
    device: float
    """Where the model is."""
    host: float
    """In main memory; where the model is there too, the two add up."""


@dataclass(frozen=True)
class Estimate:
    """The most memory a trace will take, on top of what the recording left, in bytes."""

    device: int
    """On the model's device; on the CPU everything."""
    host: int
    """Beside it; on the CPU 0."""
    stage: str
    """When the device needs most: linearise, sweep, assemble or answer (`keep_attention`)."""

    @property
    def whole(self) -> int:
        """On the device and beside it."""
        return self.device + self.host

    def __str__(self) -> str:
        """As in 1.2 GB."""
        beside = f" and {self.host / GB:.2g} GB beside it" if self.host else ""
        return f"{self.device / GB:.2g} GB{beside}"


def estimate(sizes: Sizes) -> Estimate:
    """The most memory the rest of a trace will take."""
    stages = [*_linearising(sizes), *_sweeping(sizes), *_answering(sizes)]
    fixed = FIXED + sizes.folded
    if sizes.on_cpu:
        largest = max(stages, key=lambda stage: stage.device + stage.host)
        return Estimate(int(fixed + largest.device + largest.host), 0, largest.name)
    largest = max(stages, key=lambda stage: stage.device)
    host = max(stage.host for stage in stages)
    return Estimate(int(fixed + largest.device), int(host), largest.name)


def _linearising(sizes: Sizes) -> Iterator[Stage]:
    """Decoder rows of layer after layer written among the writers, then the rest of the layers."""
    room, patterns = vector_bytes(sizes) + sum_bytes(sizes), pattern_bytes(sizes)
    for layer in range(sizes.layers):
        yield Stage("linearise", room + read_bytes(sizes, layer), 0)
    done = room
    for layer in range(sizes.layers):
        pattern = patterns[layer] * (2 if sizes.patterns_kept else 3)
        yield Stage("linearise", done + pattern, 0)
        done += patterns[layer] if sizes.patterns_kept else 0


def _sweeping(sizes: Sizes) -> Iterator[Stage]:
    """The last block of rows, when all the others are finished, and putting them together."""
    local, row, block = local_bytes(sizes), entry_bytes(sizes), largest_block(sizes)
    ranked = ranking_bytes(sizes)
    every, edges = entries(sizes)
    of_block = every * min(1.0, block / (sizes.explained + sizes.logits))
    dense, names = dense_bytes(sizes, block), table_bytes(sizes)
    rows = 0.0 if sizes.on_disk else (every - of_block) * row
    landing = landing_bytes(sizes, block)
    yield Stage("sweep", local + dense + ranked + chunk_bytes(sizes, block), rows + landing)
    after = rows + 2 * of_block * row + landing
    yield Stage("sweep", local + dense + ranked + part_bytes(sizes, block), after)
    edge = sizes.entry + INDEX.itemsize
    gathered = max(rows + of_block * row, edges * edge) + of_block * GATHER
    yield Stage("assemble", local, gathered + names / 2)
    yield Stage("assemble", local + label_bytes(sizes), names + graph_bytes(edges, edge))


def _answering(sizes: Sizes) -> Iterator[Stage]:
    """What steers attention, beside the finished graph; on the device what does not stand there."""
    if not sizes.keep_attention:
        return
    edges = entries(sizes)[1]
    graph = edges * (sizes.entry + INDEX.itemsize) + table_bytes(sizes)
    need = answer_bytes(sizes)
    yield Stage("answer", need, graph) if sizes.on_cpu else Stage("answer", need, graph + need)


def check(model: ReplacementModel, sizes: Sizes, memory_limit: float | None) -> Estimate:
    """Refuse a trace that does not fit, before it starts.

    Args:
        model: what will be traced.
        sizes: what was recorded.
        memory_limit: gigabytes (10^9 bytes) that the rest of the trace may take on the model's
            device; None: what is free there.

    Raises:
        TraceError: more is needed than there is; `proposals` and the message say what would fit.
    """
    need, room = estimate(sizes), _room(model, sizes, memory_limit)
    if room.holds(need):
        return need
    proposals = _proposals(model, sizes, room)
    raise TraceError(
        f"memory: the trace needs about {need}, but {room} ",
        *_whose(memory_limit),
        "; ",
        *_advice(proposals),
        proposals=proposals,
    )


def _room(model: ReplacementModel, sizes: Sizes, memory_limit: float | None) -> "Room":
    there = _kept_free(_free(model)) if memory_limit is None else memory_limit * GB
    beside = math.inf
    if not sizes.on_cpu and memory_limit != math.inf:
        beside = _kept_free(free_in_memory())
    return Room(there, beside)


def _free(model: ReplacementModel) -> int | None:
    """Bytes that the model's devices have free, all together: each gets its layers' share."""
    found = [free_on(device) for device in model.host.devices]
    known = [free for free in found if free is not None]
    return sum(known) if len(known) == len(found) else None


def _kept_free(free: int | None) -> float:
    """What a trace may take of so many free bytes; without end where nobody knows."""
    return math.inf if free is None else free * (1 - HEADROOM)


@dataclass(frozen=True)
class Room:
    """Bytes there are on the model's device and, where that is a GPU, beside it."""

    device: float
    host: float

    def holds(self, need: Estimate, freed: float = 0.0) -> bool:
        """Whether an estimate fits, when so many bytes of the device were freed."""
        return need.device <= self.device + freed and need.host <= self.host

    def __str__(self) -> str:
        """As in 1.2 GB."""
        beside = f" and {self.host / GB:.2g} GB beside it" if self.host < math.inf else ""
        return f"{self.device / GB:.2g} GB{beside}"


def _whose(memory_limit: float | None) -> tuple[str | Setting, ...]:
    if memory_limit is None:
        share = f"may be taken, {1 - HEADROOM:.0%} of what is free ("
        return share, Setting("memory_limit"), " takes another figure)"
    return "are allowed (", Setting("memory_limit"), ")"


def _advice(proposals: Sequence[Proposal]) -> Iterator[str | Proposal]:
    """Proposals as parts of an error's message."""
    for number, proposal in enumerate(proposals):
        yield " or " if number else ""
        yield proposal
    yield " would fit" if proposals else "no option helps, shorten the prompt"


def _proposals(model: ReplacementModel, sizes: Sizes, room: Room) -> list[Proposal]:
    """Changes that would each make the trace fit; if none does alone, several together."""
    alone = [_fewer(sizes, room), _floor(sizes, room), *_other_options(model, sizes)]
    fitting = [
        Proposal((option.setting,), str(need), need.whole)
        for option in alone
        if option is not None and room.holds(need := estimate(option.sizes), option.freed)
    ]
    if fitting:
        return fitting
    floor = max(sizes.edge_floor, 1e-3)
    smaller = replace(sizes, edge_floor=floor, patterns_kept=False, keep_attention=False)
    others = [one for one in _other_options(model, sizes) if one.sizes.itemsize == sizes.itemsize]
    freed = sum(one.freed for one in others)
    last = _fewer(smaller, replace(room, device=room.device + freed))
    if last is None:
        return []
    settings = (Setting("edge_floor", floor), *(one.setting for one in [*others, last]))
    need = estimate(last.sizes)
    return [Proposal(settings, str(need), need.whole)]


@dataclass(frozen=True, eq=False)
class Option:
    """Something a user can change."""

    setting: Setting
    sizes: Sizes
    freed: float = 0.0
    """Bytes of the device that the loaded model and the recording would then not take."""


def _fewer(sizes: Sizes, room: Room) -> Option | None:
    """The most features that fit, in two digits."""
    low, high = 0, sizes.explained
    while low < high:
        middle = (low + high + 1) // 2
        fits = room.holds(estimate(replace(sizes, explained=middle)))
        low, high = (middle, high) if fits else (low, middle - 1)
    step = 10 ** max(0, len(str(low)) - 2)
    most = low // step * step
    setting = Setting("max_features", most)
    return Option(setting, replace(sizes, explained=most)) if most else None


def _floor(sizes: Sizes, room: Room) -> Option | None:
    """The lowest edge floor that fits."""
    for floor in FLOORS:
        smaller = replace(sizes, edge_floor=floor)
        if floor > sizes.edge_floor and room.holds(estimate(smaller)):
            return Option(Setting("edge_floor", floor), smaller)
    return None


def _other_options(model: ReplacementModel, sizes: Sizes) -> Iterator[Option]:
    """Edges alone, patterns made anew, decoders left on disk, a smaller number format."""
    if sizes.keep_attention:
        edges_alone = replace(sizes, keep_attention=False)
        yield Option(Setting("keep_attention", False), edges_alone)
    if sizes.patterns_kept:
        remade = replace(sizes, patterns_kept=False)
        setting = Setting("recompute_patterns", True)
        yield Option(setting, remade, float(pattern_bytes(sizes).sum()))
    decoders = [layer.decoder for layer in model.transcoder.layers]
    if held := sum(one.weight.nbytes for one in decoders if isinstance(one, DenseDecoder)):
        yield Option(Setting("lazy", True), replace(sizes, lazy=True), held)
    for name, itemsize in (("float32", 4), ("bfloat16", 2)):
        if itemsize < sizes.itemsize:
            yield Option(Setting("dtype", name), replace(sizes, itemsize=itemsize))
