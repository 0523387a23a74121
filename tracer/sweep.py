"""The Jacobian engine: rows swept down the layers together, with explicit transposed linear maps.

No autograd and no forward pass a row. Rows of nearby positions go in one chunk, cut off after the
last of them (causality); inside a chunk a row joins at the site it reads from, so no work is done
above its layer. Memory is bounded by the chunk, whatever the number of rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.linear import LinearLayer, LocalModel, Writers
from tracer.product import EARNS_A_KERNEL, add_product, product
from tracer.targets import Rows

CHUNK, CHUNK_ON_GPU = 2048, 65536
"""Row-positions swept together: gradients of one chunk take CHUNK x d_model numbers. On CPUs they
should stay in the cache; a GPU needs more to be busy."""
ROWS, ROWS_PER_PATTERN = 16, 32
"""A chunk holds so many rows even when their positions exceed it: matrix products need them, and
more so patterns that have to be made anew for every chunk."""
KEYS = 128
"""Long patterns are mixed in blocks of so many keys, so that queries before them cost nothing."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effects on some rows, in units of what each row reads."""

    sources: Float[Tensor, "rows columns"]
    """Columns: features, errors (layer-major), tokens, as `LocalModel` numbers them."""
    constant: Float[Tensor, " rows"]
    """What biases, learned positions and skipped positions contribute, the row's own included."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Effects on the rows of one chunk while they add up; what one writer does stands together."""

    sources: Float[Tensor, "columns rows"]
    constant: Float[Tensor, " rows"]


def sweep(local: LocalModel, rows: Rows) -> Effects:
    """Effect of every source on every row.

    Source: Ameisen et al. 2025, "Circuit Tracing", section "Attribution graphs"; here
    A[t, s] = Σ_m (what s writes at m) · J(m → t)ᵀ v_t, with gradients stopped at every MLP.
    """
    dtype = torch.float32 if rows.vector.dtype == torch.bfloat16 else rows.vector.dtype
    sources = rows.vector.new_zeros(len(rows), local.columns, dtype=dtype)
    constant = rows.bias.to(dtype, copy=True)

    def sweep_chunk(chunk: Tensor) -> None:
        scores = Scores(
            sources.new_zeros(local.columns, len(chunk)), constant.new_zeros(len(chunk))
        )
        _sweep_chunk(local, rows[chunk], scores)
        sources.index_copy_(0, chunk, scores.sources.T.contiguous())
        constant[chunk] += scores.constant

    remade = any(layer.remakes_pattern for layer in local.layers)
    chunks = list(_chunks(rows, ROWS_PER_PATTERN if remade else ROWS))
    with _one_thread(len(rows) * local.positions < CHUNK // 8):
        _each(sweep_chunk, chunks, on_cpu=sources.device.type == "cpu")
    return Effects(sources, constant)


def _each(call: Callable[[Tensor], None], chunks: list[Tensor], on_cpu: bool) -> None:
    """Call with every chunk: one a core where there are several, rather than sharing products."""
    threads = torch.get_num_threads()
    if not on_cpu or threads == 1 or len(chunks) < threads:
        for chunk in chunks:
            call(chunk)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(torch.no_grad()(call), chunks))
    finally:
        torch.set_num_threads(threads)


def _chunks(rows: Rows, least: int) -> Iterator[Int[Tensor, " chunk"]]:
    """Row numbers by position, then site from the top, cut so that a chunk fills its budget.

    Or its share of the work: every core then gets as much as the others, for rows from the top pass
    more layers than the rest.
    """
    budget, threads = CHUNK_ON_GPU, 1
    if rows.vector.device.type == "cpu":
        budget, threads = CHUNK, torch.get_num_threads()
    order = (rows.position * (2**20) - rows.site).argsort()
    positions, sites = rows.position[order].tolist(), rows.site[order].tolist()
    work = [(position + 1) * site for position, site in zip(positions, sites, strict=True)]
    whole = sum(positions) + len(positions)
    share = sum(work) / (threads * -(-whole // (budget * threads))) if threads > 1 else math.inf
    begin, done = 0, 0
    for end, position in enumerate(positions):
        full = (end - begin + 1) * (position + 1) > budget or done >= share
        if full and end - begin >= least:
            yield _by_site(rows, order[begin:end])
            begin, done = end, 0
        done += work[end]
    if positions:
        yield _by_site(rows, order[begin:])


def _by_site(rows: Rows, chunk: Tensor) -> Tensor:
    return chunk[rows.site[chunk].argsort(descending=True, stable=True)]


def _sweep_chunk(local: LocalModel, rows: Rows, scores: Scores) -> None:
    """Sweep rows sorted by site from the top, adding to `scores`.

    Rows that have joined have a gradient (rows, positions, D), from position `local.start` on.
    """
    end = int(rows.position.max()) + 1
    sites = rows.site.tolist()
    whole = rows.vector.new_empty(len(rows), end - local.start, rows.vector.shape[1])
    joined, ready, mixed = 0, None, None
    for layer in range((max(sites) - 1) // 2, -1, -1):
        above = _joining(rows, sites, joined, 2 * layer + 2)
        between = _joining(rows, sites, joined + len(above), 2 * layer + 1)
        _score_writers(local, layer, whole[:joined], above, scores)
        _score_mixed(local, mixed, scores)
        after = joined + len(above) + len(between)
        _score_carried(local, layer, between, scores, after)
        if not (layer == 0 and local.lifted):
            ready, mixed = _pass_layer(local, layer, (whole, joined), (above, between), ready)
        joined = after
    last = _joining(rows, sites, joined, 0)
    whole[joined:] = 0
    whole[joined:][range(len(last)), last.position - local.start] = last.vector
    _score_tokens(local, whole, scores, joined if local.lifted else 0)


def _pass_layer(
    local: LocalModel,
    layer: int,
    gradients: tuple[Tensor, int],
    joining: tuple["Fresh", "Fresh"],
    ready: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Pull gradients back through one layer's skip and attention, in place.

    Args:
        local: the local model.
        layer: its layer.
        gradients: room for all rows, and how many have joined; those joining follow.
        joining: rows that read above the layer's MLP and between it and attention.
        ready: what the layer's output map makes of the last rows that have joined, where known.

    Returns:
        `ready` for the layer below, of the rows joining now, where that pays; and the gradient as
        attention has mixed it, (rows, positions, values), where it is not pulled back any further.
    """
    (whole, joined), (above, between) = gradients, joining
    maps, gradient = local.layers[layer], whole[:joined]
    pattern = maps.transposed_pattern(local.start, local.start + whole.shape[1])
    below, own = _skip(maps, gradient, above, local.start)
    own = _both(own, between)
    read, reading = (gradient, _both(above, between)) if maps.parallel else (below, own)
    mixed = None
    if joined:
        values = _attention(maps, pattern, read, ready)
        if layer == 1 and local.mixed is not None:
            mixed = values.unflatten(0, (joined, -1))
        else:
            below = add_product(below.flatten(0, 1), values, maps.value).view_as(below)
        if below.data_ptr() != gradient.data_ptr():
            gradient.copy_(below)
    if not len(own):
        return None, mixed
    back = product(reading.vector, maps.output)
    whole[joined : joined + len(own)] = _spread(pattern, back, maps.value, own, local.start)
    if layer == int(local.lifted) or local.layers[layer - 1].virtual is None:
        return None, mixed
    return _ready(local.layers[layer - 1], pattern, back, own, local.start), mixed


@dataclass(frozen=True, eq=False)
class Fresh:
    """Rows that passed no attention layer yet: their gradient stands at one position."""

    vector: Float[Tensor, "rows d_model"]
    position: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.position)

    def by_position(self) -> Iterator[tuple[int, slice]]:
        """Every position with the rows there, which stand together."""
        position, count = self.position.unique_consecutive(return_counts=True)
        end = 0
        for here, rows in zip(position.tolist(), count.tolist(), strict=True):
            yield here, slice(end, end + rows)
            end += rows


def _joining(rows: Rows, sites: list[int], joined: int, site: int) -> Fresh:
    """The rows that read at `site`, which follow the `joined` ones in order."""
    end = joined + sites[joined:].count(site)
    return Fresh(rows.vector[joined:end], rows.position[joined:end])


def _both(first: Fresh, second: Fresh) -> Fresh:
    return Fresh(
        torch.cat([first.vector, second.vector]), torch.cat([first.position, second.position])
    )


def _score_writers(
    local: LocalModel, layer: int, gradient: Tensor, fresh: Fresh, scores: Scores
) -> None:
    """Add what one layer writes, for rows above it: one product a position."""
    rows, writers = len(gradient), local.writers[layer]
    if rows:
        found = _products(writers, gradient, local.start)
        _add_scores(local, layer, found, scores, (local.start, slice(rows)))
    for position, here in fresh.by_position():
        one = [product(writers.at(position), fresh.vector[here])]
        at = slice(rows + here.start, rows + here.stop)
        _add_scores(local, layer, one, scores, (position, at))


def _score_mixed(local: LocalModel, mixed: Tensor | None, scores: Scores) -> None:
    """Add what the bottom layer writes to values, for rows that stay as attention mixed them."""
    if mixed is None or local.mixed is None:
        return
    found = _products(local.mixed, mixed, local.start)
    _add_scores(local, 0, found, scores, (local.start, slice(len(mixed))))


def _products(
    writers: Writers, gradient: Float[Tensor, "rows positions width"], start: int
) -> list[Float[Tensor, "writers rows"]]:
    """Scores of what is written at every position from `start` on."""
    operations = 2 * gradient[:, 0].numel() * len(writers.vectors) / len(writers.first)
    with _one_thread(operations < EARNS_A_KERNEL):
        return [
            product(writers.at(position), vectors)
            for position, vectors in enumerate(gradient.unbind(1), start=start)
        ]


def _add_scores(
    local: LocalModel,
    layer: int,
    found: Sequence[Float[Tensor, "writers rows"]],
    scores: Scores,
    where: tuple[int, slice],
) -> None:
    """Add scores of one layer's writers at neighbouring positions, from the given one on."""
    (begin, rows), writers = where, local.writers[layer]
    sources = scores.sources[:, rows]
    for position, one in enumerate(found, start=begin):
        first, features = writers.first[position], len(one) - writers.rest
        sources[first : first + features].add_(one[:features])
    rest = torch.stack([one[-writers.rest :] for one in found])
    first = local.error_column(layer, begin)
    sources[first : first + len(rest)].add_(rest[:, 0])
    _add_carried(local, rest[:, 1:].sum(0), scores, rows)


def _score_carried(local: LocalModel, layer: int, fresh: Fresh, scores: Scores, end: int) -> None:
    """Add what attention carries, for the rows up to `end` that read right above it."""
    carried, begin = local.layers[layer].carried, end - len(fresh)
    for position, here in fresh.by_position():
        found = product(carried[position], fresh.vector[here]).roll(1, 0)
        _add_carried(local, found, scores, slice(begin + here.start, begin + here.stop))


def _add_carried(
    local: LocalModel, found: Float[Tensor, "carried rows"], scores: Scores, rows: slice
) -> None:
    """Add the constant, which comes first, and the first tokens."""
    first, tokens = local.token_column(0), len(found) - 1
    scores.constant[rows].add_(found[0])
    scores.sources[first : first + tokens, rows].add_(found[1:])


@contextmanager
def _one_thread(small: bool) -> Iterator[None]:
    """Keep many small products on one thread: waiting for the others would cost more than they."""
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _skip(maps: LinearLayer, gradient: Tensor, fresh: Fresh, start: int) -> tuple[Tensor, Fresh]:
    """Add the pull-back through the linear skip."""
    if maps.skip is None:
        return gradient, fresh
    scale = maps.skip_scale[start : start + gradient.shape[1]]
    own = maps.skip_scale[fresh.position]
    vector = torch.addcmul(fresh.vector, product(fresh.vector, maps.skip), own)
    pulled = product(gradient.flatten(0, 1), maps.skip).view_as(gradient)
    return torch.addcmul(gradient, pulled, scale), Fresh(vector, fresh.position)


def _attention(
    maps: LinearLayer, pattern: Tensor, read: Tensor, ready: Tensor | None
) -> Float[Tensor, "rows_positions kv_heads_d_head"]:
    """What one attention layer pulls back of `read`, as far as its values.

    Args:
        maps: the layer.
        pattern: its pattern.
        read: (rows, positions, D).
        ready: of the last rows: what the output map makes of them.
    """
    rows, positions, _ = read.shape
    kv_heads, _, group, _ = pattern.shape
    early = rows - (0 if ready is None else len(ready))
    found = [] if ready is None else [ready.flatten(0, 1)]
    if early:
        found.insert(0, product(read[:early].flatten(0, 1), maps.output))
    by_head = [
        part.view(len(part) // positions, positions, kv_heads, group, -1).permute(2, 3, 1, 0, 4)
        for part in found
    ]
    heads = by_head[0] if len(by_head) == 1 else torch.cat(by_head, dim=3)
    mixed = _mix(pattern, heads.flatten(3)).view(kv_heads, positions, rows, -1)
    return mixed.permute(2, 1, 0, 3).reshape(rows * positions, -1)


def _ready(
    below: LinearLayer, pattern: Tensor, back: Tensor, own: Fresh, start: int
) -> Float[Tensor, "rows positions heads_d_head"]:
    """What the output map of the layer below makes of rows that an attention layer just spread.

    Virtual weights take them there head by head, not position by position.
    """
    assert below.virtual is not None
    there = Fresh(product(own.vector, below.output), own.position)
    return _spread(pattern, back, below.virtual, there, start)


def _spread(
    pattern: Tensor,
    back: Float[Tensor, "rows heads_d_head"],
    value: Float[Tensor, "width kv_heads_d_head"],
    own: Fresh,
    start: int,
) -> Float[Tensor, "rows positions width"]:
    """What one attention layer pulls back of rows that stand at one position yet, and their own.

    They go through every head's maps at that position, the pattern comes last.
    """
    kv_heads, keys, group, _ = pattern.shape
    rows, width = len(back), len(value)
    back = back.view(rows, kv_heads, group, -1).transpose(0, 1).flatten(1, 2)
    heads = torch.bmm(back, value.view(width, kv_heads, -1).permute(1, 2, 0))
    heads = heads.view(kv_heads, rows, group, width).transpose(0, 1).flatten(1, 2)
    spread = heads.new_empty(rows, keys, width)
    for position, here in own.by_position():
        weight = pattern[..., position - start].transpose(0, 1).flatten(1)
        torch.matmul(weight, heads[here], out=spread[here])
    spread[range(len(own)), own.position - start] += own.vector
    return spread


def _mix(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "kv_heads group queries columns"],
) -> Float[Tensor, "kv_heads keys columns"]:
    """Sum over queries and over the heads that share a key; queries before a key do not count."""
    kv_heads, keys = pattern.shape[:2]
    if keys <= KEYS:
        return torch.bmm(pattern.flatten(2), heads.flatten(1, 2))
    mixed = heads.new_empty(kv_heads, keys, heads.shape[-1])
    for begin in range(0, keys, KEYS):
        end = begin + KEYS
        for head in range(kv_heads):
            weight = heads[head, :, begin:].flatten(0, 1).T
            mixed[head, begin:end] = product(pattern[head, begin:end, :, begin:].flatten(1), weight)
    return mixed


def _score_tokens(
    local: LocalModel,
    gradient: Float[Tensor, "rows positions d_model"],
    scores: Scores,
    first: int,
) -> None:
    """Add what tokens and learned positions contribute to the rows from `first` on."""
    rows, span = slice(first, None), slice(local.start, local.start + gradient.shape[1])
    columns = slice(local.token_column(span.start), local.token_column(span.stop))
    tokens, learned = local.token_vectors[span], local.position_vectors
    scores.sources[columns, rows] += torch.einsum("rpd,pd->pr", gradient[rows], tokens)
    if learned is not None:
        scores.constant[rows] += torch.einsum("rpd,pd->r", gradient[rows], learned[span])
