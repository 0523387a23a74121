"""How much memory the rest of a trace will take, counted before the sweep starts.

Everything large is known once the prompt is recorded: how many features fired and where, how far
they write, how long the prompt is. `estimate` adds up what stands in memory at every stage of a
trace, in the order of attribute.py, and takes the largest sum; `check` compares it with what there
is and names the options that would fit. The same arithmetic serves a GPU, where writers and
gradients stand on the device and finished rows beside it. benchmarks/memory.py compares it with
what is measured.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from replacement_models import DenseDecoder, Recording, ReplacementModel
from replacement_models.folding import mlp_post_norm
from tracer.attribution.available import free_in_memory, free_on
from tracer.attribution.carry import is_lifted
from tracer.attribution.chunks import CHUNK, CHUNK_ON_GPU, ROWS, ROWS_PER_PATTERN
from tracer.attribution.local_model import virtual_pays
from tracer.attribution.sweep import KEYS
from tracer.errors import TraceError
from tracer.features.promoted import BUDGET, LEAST

GB = 1e9
INDEX = 4
"""Bytes of a column number in finished rows."""
NODE, ACTIVE = 1500, 400
"""Bytes that one node, and one active feature, take in tables and lists. Measured."""
BUILD = 21
"""Bytes an edge that checking a graph and its first influence take beside two copies. Measured."""
FIXED = 135e6
"""Bytes of kernels, threads and buffers that do not depend on the prompt. Measured."""
KEPT = 0.3
"""With an edge floor F no row keeps more than 1 / F entries. Random weights keep 0.15 / F, rows of
the embedded default 0.04 to 0.15 / F, of which the fullest twice as many: the estimate."""
BLOCK, DENSE = 512, 1 << 27
"""Rows swept at once, and bytes they may take while they are dense: fewer rows where there are
many sources, so that memory does not grow with rows x sources. Finished rows are kept sparse."""
PART = 64
"""Rows made sparse at once, and the fewest a block is cut down to."""
FLOORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Edge floors to propose."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the memory of a trace depends on: P positions, L layers, width D."""

    features: Int[np.ndarray, "layers positions"]
    """Active features, those at skipped positions not counted."""
    used: Int[np.ndarray, " layers"]
    """Distinct ones among them."""
    targets: tuple[tuple[int, ...], ...]
    """Layers that the features of each layer write to."""
    heads: tuple[tuple[int, int, int, int], ...]
    """Of each layer: heads, their width together, key-value heads, their width together."""
    d_model: int
    vocabulary: int
    logits: int
    skip_positions: int
    itemsize: int
    """Bytes of a weight."""
    post_norm: bool
    """Whether what features write passes a norm."""
    skips: bool
    """Whether there is a linear skip."""
    lifted: bool
    """Whether the bottom attention layer carries every token (carry.py)."""
    lazy: bool
    """Whether decoder rows are read from disk."""
    patterns_kept: bool
    on_cpu: bool
    threads: int
    explained: int
    """Features that become rows."""
    rank_every: int
    """With a cap: rows between two rankings, which end a block."""
    edge_floor: float
    """Share of a row below which effects are dropped."""
    folded: float = 0.0
    """Bytes of weights that the model's first trace folds and keeps."""

    @classmethod
    def of(
        cls, model: ReplacementModel, recording: Recording, skip_positions: int, **rest: Any
    ) -> "Sizes":
        """Read off a recording.

        Args:
            model: what was recorded.
            recording: its forward pass.
            skip_positions: positions without features and errors.
            rest: `logits`, `explained` (None is all), `rank_every` (None is an eighth of the
                features explained, at least 64) and `edge_floor`.
        """
        layers, positions = len(recording.layers), len(recording.tokens)
        found = recording.features
        kept = found.position >= skip_positions
        place = (found.layer * positions + found.position)[kept]
        counts = torch.bincount(place, minlength=layers * positions).cpu().numpy()
        blocks = model.host.blocks
        used = [
            len(found.feature[kept & (found.layer == layer)].unique()) for layer in range(layers)
        ]
        most = len(place) if rest["explained"] is None else min(rest["explained"], len(place))
        every = rest["rank_every"] or max(64, math.ceil(most / 8))
        return cls(
            features=counts.reshape(layers, positions),
            used=np.array(used),
            targets=tuple(tuple(model.transcoder.targets(layer)) for layer in range(layers)),
            heads=tuple(
                (*block.output.shape[:1], block.output[..., 0].numel(), *_key_values(block.value))
                for block in blocks
            ),
            d_model=model.host.d_model,
            vocabulary=model.host.vocabulary,
            skip_positions=skip_positions,
            itemsize=model.dtype.itemsize,
            post_norm=any(
                mlp_post_norm(block, model.transcoder.write_at(layer))
                for layer, block in enumerate(blocks)
            ),
            skips=any(layer.W_skip is not None for layer in model.transcoder.layers),
            lifted=is_lifted(model, recording),
            lazy=not all(isinstance(one.decoder, DenseDecoder) for one in model.transcoder.layers),
            patterns_kept=isinstance(recording.layers[0].pattern, torch.Tensor),
            on_cpu=model.device.type == "cpu",
            threads=torch.get_num_threads(),
            folded=_folded(model, positions, most),
            **rest | {"explained": most, "rank_every": every},
        )

    @property
    def layers(self) -> int:
        """L."""
        return self.features.shape[0]

    @property
    def positions(self) -> int:
        """P."""
        return self.features.shape[1]

    @property
    def active(self) -> int:
        """Features that may be nodes."""
        return int(self.features.sum())

    @property
    def columns(self) -> int:
        """Sources of a row."""
        return self.active + (self.layers + 1) * self.positions

    @property
    def entry(self) -> int:
        """Bytes of an effect."""
        return max(self.itemsize, torch.float32.itemsize)


def block_rows(columns: int, itemsize: int) -> int:
    """How many rows are swept at once where each has so many columns."""
    bytes_a_row = columns * max(itemsize, torch.float32.itemsize)
    return max(min(PART, BLOCK), min(BLOCK, DENSE // bytes_a_row // PART * PART))


def _folded(model: ReplacementModel, positions: int, rows: int) -> float:
    """Bytes of the weights that this trace will fold, because no trace before it has."""
    heads = [
        (block.output[..., 0].numel(), block.value[..., 0].numel()) for block in model.host.blocks
    ]
    numbers = 0
    if "folded" not in vars(model):
        numbers += sum(output + value for output, value in heads) * model.host.d_model
    if virtual_pays(model, positions, rows) and "virtual_weights" not in vars(model):
        numbers += sum(below[0] * above[1] for below, above in pairwise(heads))
    return float(numbers * model.dtype.itemsize)


def _key_values(value: torch.Tensor) -> tuple[int, int]:
    return value.shape[0], value[..., 0].numel()


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
    """When the device needs most: linearise, sweep or assemble."""

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
    stages = [*_linearising(sizes), *_sweeping(sizes)]
    fixed = FIXED + sizes.folded
    if sizes.on_cpu:
        largest = max(stages, key=lambda stage: stage.device + stage.host)
        return Estimate(int(fixed + largest.device + largest.host), 0, largest.name)
    largest = max(stages, key=lambda stage: stage.device)
    host = max(stage.host for stage in stages)
    return Estimate(int(fixed + largest.device), int(host), largest.name)


def _vectors(sizes: Sizes) -> Float[np.ndarray, " layers"]:
    """Bytes of what features write to each layer."""
    written = np.zeros(sizes.layers)
    for source, targets in enumerate(sizes.targets):
        written[list(targets)] += sizes.features[source].sum()
    return written * sizes.d_model * sizes.itemsize


def _patterns(sizes: Sizes) -> Float[np.ndarray, " layers"]:
    """Bytes of the attention patterns."""
    heads = np.array([layer[0] for layer in sizes.heads])
    return heads * sizes.positions**2 * float(sizes.itemsize)


def _rest(sizes: Sizes) -> Float[np.ndarray, " layers"]:
    """Bytes of what else is written: errors, constants, what attention carries (twice)."""
    start = sizes.skip_positions if sizes.patterns_kept else 0
    carried = np.full(sizes.layers, start + 1)
    if sizes.lifted:
        carried[0] = sizes.positions + 1
    return (1.0 + 2 * carried) * sizes.positions * sizes.d_model * sizes.itemsize


def _local(sizes: Sizes) -> float:
    """Bytes of the local replacement model: writers, patterns if kept, table of features."""
    kept = _patterns(sizes).sum() if sizes.patterns_kept else 0.0
    table = sizes.active * (5 * 8 + 2 * sizes.itemsize)
    return float(_vectors(sizes).sum() + _rest(sizes).sum() + kept + table)


def _linearising(sizes: Sizes) -> Iterator[Stage]:
    """Decoder rows of layer after layer written among the writers, then the rest of the layers."""
    width, patterns = sizes.d_model * sizes.itemsize, _patterns(sizes)
    room = float(_vectors(sizes).sum() + _rest(sizes).sum())
    room += sizes.layers * sizes.positions * sizes.d_model * float(sizes.entry)
    for source, targets in enumerate(sizes.targets):
        read = sizes.used[source] * len(targets) * width if sizes.lazy else 0.0
        copied = 0.0
        if not sizes.on_cpu:
            copied = sizes.features[source].sum() * (width + float(sizes.positions * sizes.entry))
        yield Stage("linearise", room + read + copied, 0)
    done = room
    for layer in range(sizes.layers):
        pattern = patterns[layer] * (2 if sizes.patterns_kept else 3)
        yield Stage("linearise", done + pattern, 0)
        done += patterns[layer] if sizes.patterns_kept else 0


def _sweeping(sizes: Sizes) -> Iterator[Stage]:
    """The last block of rows, when all the others are finished, and putting them together."""
    features = sizes.explained
    local, row = _local(sizes), sizes.entry + INDEX
    entries, edges = _entries(sizes)
    block = min(block_rows(sizes.columns, sizes.itemsize), max(features, sizes.logits))
    if features < sizes.active:
        block = min(block, max(sizes.rank_every, sizes.logits))
    dense = block * (sizes.columns * sizes.entry + 2.0 * sizes.d_model * sizes.itemsize)
    of_block = entries * min(1.0, block / (features + sizes.logits))
    yield Stage("sweep", local + dense + _chunks(sizes, block), (entries - of_block) * row)
    part = min(PART, block) * sizes.columns * (2.0 * sizes.entry + INDEX)
    yield Stage("sweep", local + dense + part, (entries + of_block) * row)
    names = sizes.active * ACTIVE + NODE * (
        features + sizes.logits + (sizes.layers + 1) * sizes.positions
    )
    yield Stage("assemble", local, entries * row + of_block * 24 + names / 2)
    yield Stage("assemble", local + _labels(sizes), names + edges * (2 * row + BUILD))


def _chunks(sizes: Sizes, block: int) -> float:
    """Bytes of the chunks swept side by side."""
    positions, size = sizes.positions, sizes.itemsize
    budget = CHUNK if sizes.on_cpu else CHUNK_ON_GPU
    least = ROWS if sizes.patterns_kept else ROWS_PER_PATTERN
    whole = block * positions
    chunk = min(whole, max(budget, least * positions))
    rows = min(block, max(least, budget // positions))
    threads = sizes.threads if sizes.on_cpu and whole / chunk >= sizes.threads else 1
    largest = max(_chunk(sizes, layer) for layer in sizes.heads) * chunk * size
    pattern = float(_patterns(sizes).max())
    if sizes.patterns_kept:
        largest += pattern if positions <= KEYS else 0.0  # cut to the chunk's positions
    else:
        making = sizes.d_model * chunk * size + pattern * max(3.0, (size + 4) / size)
        largest = max(largest + pattern, making)
    return threads * (largest + rows * sizes.columns * float(sizes.entry))


def _chunk(sizes: Sizes, layer: tuple[int, int, int, int]) -> float:
    """Numbers a row and position at the widest place of one layer's sweep."""
    _, width, kv_heads, kv_width = layer
    mixing = width / kv_heads if sizes.positions > KEYS else 0
    after = max(2 * width, width + kv_width + mixing, width + 2 * kv_width + sizes.d_model)
    return sizes.d_model + after + (sizes.d_model if sizes.skips else 0)


def _entries(sizes: Sizes) -> tuple[float, float]:
    """Entries of all finished rows, and how many of them are between nodes.

    Exact without a cap and a floor. The features chosen under a cap are taken to stand at the last
    position, at layers like all others; with a floor, rows to keep `KEPT` of the most they can.
    """
    counts, features = sizes.features, sizes.explained
    below = np.zeros((sizes.layers + 1, sizes.positions))
    below[1:] = counts.cumsum(0).cumsum(1)
    at = np.arange(sizes.positions)
    layer = np.arange(sizes.layers + 1)[:, None]
    rest = layer * np.maximum(0, at + 1 - sizes.skip_positions) + at + 1
    # No attention follows the last layer: logits read what it writes at the last position only.
    below[-1, -1] = below[-2, -1] + counts[-1, -1]
    counted = max(0, sizes.positions - sizes.skip_positions)
    rest[-1, -1] = (sizes.layers - 1) * counted + min(1, counted) + sizes.positions
    rows = np.zeros_like(below)
    rows[:-1] = counts
    if features < sizes.active:
        rows[:-1] = 0
        rows[:-1, -1] = counts.sum(1) * features / sizes.active
    rows[-1, -1] += sizes.logits
    chosen = min(1.0, features / max(1, sizes.active))
    entries, edges = rows * (below + rest), rows * (chosen * below + rest)
    if sizes.edge_floor:
        kept = np.minimum(1, (KEPT / sizes.edge_floor) / np.maximum(below + rest, 1))
        entries, edges = entries * kept, edges * kept
    return float(entries.sum()), float(edges.sum())


def _labels(sizes: Sizes) -> float:
    """Bytes for naming the strongest features."""
    count = max(LEAST, int(BUDGET / (2 * sizes.d_model * sizes.vocabulary)))
    rows = min(count, sizes.explained) * max(map(len, sizes.targets)) * sizes.d_model
    scores = min(count, 256) * sizes.vocabulary
    return (2.0 * rows + scores) * sizes.itemsize


def check(model: ReplacementModel, sizes: Sizes, memory_limit: float | None) -> Estimate:
    """Refuse a trace that does not fit, before it starts.

    Args:
        model: what will be traced.
        sizes: what was recorded.
        memory_limit: gigabytes (10^9 bytes) that the rest of the trace may take on the model's
            device; None: what is free there.

    Raises:
        TraceError: more is needed than there is; the message names the options that would fit.
    """
    need = estimate(sizes)
    there = free_on(model.device) if memory_limit is None else memory_limit * GB
    beside = None if sizes.on_cpu or memory_limit == math.inf else free_in_memory()
    room = Room(math.inf if there is None else there, math.inf if beside is None else beside)
    if room.holds(need):
        return need
    ways = _ways(model, sizes, room)
    advice = f"{' or '.join(ways)} would fit" if ways else "no option helps, shorten the prompt"
    raise TraceError(
        f"memory: the trace needs about {need}, but {room} {_whose(memory_limit)}; {advice}"
    )


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


def _whose(memory_limit: float | None) -> str:
    if memory_limit is None:
        return "are free (--memory-limit takes another figure)"
    return "are allowed (--memory-limit)"


def _ways(model: ReplacementModel, sizes: Sizes, room: Room) -> list[str]:
    """Options that would each make the trace fit; if none does alone, several together."""
    alone = [_fewer(sizes, room), _floor(sizes, room), *_other_options(model, sizes)]
    fitting = [
        f"{option.words} ({need})"
        for option in alone
        if option is not None and room.holds(need := estimate(option.sizes), option.freed)
    ]
    if fitting:
        return fitting
    floor = max(sizes.edge_floor, 1e-3)
    smaller = replace(sizes, edge_floor=floor, patterns_kept=False)
    others = [one for one in _other_options(model, sizes) if one.sizes.itemsize == sizes.itemsize]
    words = " ".join([f"--edge-floor {floor:g}", *(one.words for one in others)])
    freed = sum(one.freed for one in others)
    last = _fewer(smaller, replace(room, device=room.device + freed))
    return [] if last is None else [f"{words} {last.words} ({estimate(last.sizes)})"]


@dataclass(frozen=True, eq=False)
class Option:
    """Something a user can change."""

    words: str
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
    return Option(f"--max-features {most}", replace(sizes, explained=most)) if most else None


def _floor(sizes: Sizes, room: Room) -> Option | None:
    """The lowest edge floor that fits."""
    for floor in FLOORS:
        smaller = replace(sizes, edge_floor=floor)
        if floor > sizes.edge_floor and room.holds(estimate(smaller)):
            return Option(f"--edge-floor {floor:g}", smaller)
    return None


def _other_options(model: ReplacementModel, sizes: Sizes) -> Iterator[Option]:
    """Patterns made anew, decoders left on disk, a smaller number format."""
    if sizes.patterns_kept:
        remade = replace(sizes, patterns_kept=False)
        yield Option("--recompute-patterns", remade, float(_patterns(sizes).sum()))
    decoders = [layer.decoder for layer in model.transcoder.layers]
    if held := sum(one.weight.nbytes for one in decoders if isinstance(one, DenseDecoder)):
        yield Option("--lazy", replace(sizes, lazy=True), held)
    for name, itemsize in (("float32", 4), ("bfloat16", 2)):
        if itemsize < sizes.itemsize:
            yield Option(f"--dtype {name}", replace(sizes, itemsize=itemsize))
