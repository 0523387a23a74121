"""What training starts from, fitted and not drawn.

First features are the MLP's own neurons where it has any: on the embedded model (512 features a
layer, 120,000 tokens, equal L0, no skip) graphs of what came of them scored .783, from random rows
.774, from detectors of clusters .756, from tokens .681; KL with all MLPs replaced was 1.61, 2.88,
1.91 and 3.30 nats. That was when `sparsity.follow` lowered thresholds only and never raised them;
`benchmarks/training.py starts` measures it anew.

Norms of √D, then the affine skip by weighted ridge regression, then first features, whose biases
let each fire as often as L0 says, and then one decoder fitted to them all.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.dictionaries.neurons import NeuronGate, neurons
from replacement_models.errors import ModelError
from replacement_models.host import Host
from replacement_models.sites import ReadPoint
from replacement_models.training.clusters import averages, clusters, detectors
from replacement_models.training.config import TrainConfig
from replacement_models.training.firing import SparseActive
from replacement_models.training.given import given_dictionary, given_layers, take
from replacement_models.training.pairs import Pairs
from replacement_models.training.product import product_of
from replacement_models.training.ranks import ALONE, Ranks
from replacement_models.training.ridge import affine, decoder
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring

RANKED = 8
"""Times as many features start above zero as TopK and BatchTopK keep."""
RANKED_BY = 4096
"""Tokens that say which neurons are most active."""
COLUMNS = 256
"""Features looked at together, over all tokens."""
JOINT = 8192
"""Most features whose decoders are fitted together; beyond, each layer is fitted alone."""
Told = Callable[[str, int, int], None]
"""What is told of progress: words, how much of how much."""


@torch.no_grad()
def started(
    config: TrainConfig,
    wiring: Wiring,
    host: Host | None,
    sample: Batch,
    generator: torch.Generator,
    told: Told = lambda words, done, total: None,
    ranks: Ranks = ALONE,
) -> Trainee:
    """A dictionary to begin with.

    Args:
        config: what of.
        wiring: its layers.
        host: whose neurons are taken, where they are; None where there is none.
        sample: activations of some tokens, in no order.
        generator: draws what is drawn.
        told: called as layers are done.
        ranks: that share out the features; all of them find the same ones.

    Raises:
        ModelError: neurons are asked for and their kind is not known.
    """
    outliers = config.loss.outliers
    reads = [Scale.of(x, outliers) for x in sample.inputs]
    writes = [Scale.of(y, outliers) for y in sample.outputs]
    trainee = Trainee(config, wiring, reads, writes, ranks)
    count, found = len(wiring.layers), given_dictionary(config)
    given = [] if found is None else given_layers(config, found, wiring.layers)
    widths, taken = [trainee.features_at(at) for at in range(count)], [0] * count
    for at in range(count):
        told("Fitting first features", at, count)
        if found is not None and at in given:
            taken[at] = take(trainee, at, found)
        if taken[at] < widths[at]:
            _start_layer(trainee, at, host, sample, generator, taken)
    fired: dict[int, SparseActive] = {}
    for at in range(count) if config.start.decoder else ():
        told("Fitting first decoders", at, count)
        if taken[at] < widths[at]:
            _fit_decoder(trainee, at, sample, taken, fired)
    return trainee


def _start_layer(
    trainee: Trainee,
    at: int,
    host: Host | None,
    sample: Batch,
    generator: torch.Generator,
    taken: Sequence[int],
) -> None:
    """Skip, encoder and a first decoder of one layer's new features, those after the ones taken.

    They start on what features taken from a dictionary, there and below, leave unexplained.
    """
    config, start = trainee.config, trainee.config.start
    x = trainee.reads[at].normalised(sample.inputs[at])
    y = trainee.writes[at].normalised(sample.outputs[at]) - _written(trainee, at, sample, taken)
    weight = trainee.writes[at].weight(sample.outputs[at], config.loss.outliers)
    if len(trainee.W_skip) and not taken[at]:
        matrix, bias = affine(x, y, weight)
        trainee.W_skip[at].copy_(matrix)
        trainee.b_dec[at].copy_(bias)
    left = y - trainee.base(at, x)
    new = trainee.features_at(at) - taken[at]
    rows, write = _directions(trainee, new, x, left, weight, generator)
    own = _neurons(host, trainee, at, sample.inputs[at])
    if own is not None:
        some = min(new, len(own[0]))
        rows[:some], write[:some] = (part[:some] for part in own)
    share = min(1.0, trainee.l0[at] / trainee.features_at(at))
    if trainee.firing[at].ranks:  # there must be more above zero than are kept
        share = min(0.5, RANKED * share)
    bias = start.threshold - quantiles(x, rows, share)
    if start.features == "clusters":
        count, *fitted = _clustered(trainee, new, x, left, weight, generator)
        rows[:count], bias[:count], write[:count] = fitted
    _put(trainee, at, taken[at], rows, bias, write)


def _put(trainee: Trainee, at: int, begin: int, rows: Tensor, bias: Tensor, write: Tensor) -> None:
    """Let features from `begin` on fire where rows and biases say, above the first threshold."""
    threshold = trainee.config.start.threshold
    rows, bias, write = (whole[trainee.own] for whole in (rows, bias, write))
    trainee.W_enc[at][begin:] = rows
    trainee.W_dec[at][begin:, : trainee.width] = write
    if len(trainee.threshold):
        trainee.threshold[at][begin:] = threshold
        trainee.b_enc[at][begin:] = bias
    else:  # zero is the threshold of all others
        trainee.b_enc[at].copy_(bias - threshold)
    if len(trainee.share):
        trainee.share[at][:, 0] = 1
    if len(trainee.gain):
        trainee.b_gain[at].copy_(trainee.b_enc[at])


def _directions(
    trainee: Trainee,
    count: int,
    x: Tensor,
    left: Tensor,
    weight: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows of norm 1 and small decoder rows: tokens where much is left over, or at random."""
    width = trainee.width
    rows, write = (
        torch.randn(count, width, generator=generator).to(x) / width**0.5 for _ in range(2)
    )
    write *= 0.05
    if trainee.config.start.features != "random":
        chance = (weight * left.square().sum(1)).double().cpu().clamp_min(1e-12)
        some = min(count, len(x))
        drawn = torch.multinomial(chance, some, generator=generator).to(x.device)
        rows[:some] = x[drawn]
        length = rows[:some].norm(dim=1, keepdim=True).clamp_min(1e-6)
        write[:some] = left[drawn] / length
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6), write


def _clustered(
    trainee: Trainee, most: int, x: Tensor, left: Tensor, weight: Tensor, generator: torch.Generator
) -> tuple[int, Tensor, Tensor, Tensor]:
    """How many clusters; rows, biases and decoder rows of each."""
    start = trainee.config.start
    member = clusters(left, round(most * start.clustered), generator, weight)
    count = int(member.max()) + 1
    rows, bias = detectors(x, member, start.threshold, start.detector_steps, generator)
    return count, rows, bias, averages(left, member, count) / (2 * start.threshold)


def _neurons(
    host: Host | None, trainee: Trainee, at: int, inputs: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Rows of neurons where they are wanted; under auto, where there are any of a known kind."""
    wanted = trainee.config.start.features
    if wanted == "neurons":
        return neuron_rows(host, trainee, at, inputs)
    if wanted != "auto" or trainee.config.dictionary.kind == "sae":
        return None
    try:
        return neuron_rows(host, trainee, at, inputs)
    except ModelError:
        return None


def quantiles(
    x: Float[Tensor, "tokens d_model"], rows: Float[Tensor, "features d_model"], share: float
) -> Float[Tensor, " features"]:
    """What each feature's product exceeds on a share of the tokens."""
    rank = max(1, min(len(x), round(share * len(x))))
    products = (x @ some.T for some in rows.split(COLUMNS))
    return torch.cat([one.topk(rank, dim=0, sorted=False).values.amin(0) for one in products])


def neuron_rows(
    host: Host | None, trainee: Trainee, at: int, inputs: Float[Tensor, "tokens d_model"]
) -> tuple[Float[Tensor, "some d_model"], Float[Tensor, "some d_model"]]:
    """The MLP's own neurons as features: encoder rows of norm 1, and decoder rows.

    A gated neuron f(g)·u becomes two, which read g + u and g - u and write down and -down: each is
    positive on one sign of u where the gate is open. The most active come first, by the square of
    what they write.

    Raises:
        ModelError: the MLP's kind is not known, or no MLP stands behind the dictionary.
    """
    config = trainee.config
    if host is None or config.dictionary.kind == "sae":
        raise ModelError(
            "start.features: expected data, clusters or random, since an sae stands in for no MLP, "
            "got 'neurons'"
        )
    layer = trainee.wiring.layers[at]
    own = neurons(host, [layer]).layers[layer]
    down = own.decoder.rows(torch.arange(len(own.W_enc), device=own.W_enc.device))[:, 0].float()
    inputs = inputs[:RANKED_BY]
    reading, signs = own.W_enc.float(), [1.0]
    rows, write = reading, down
    strength = own.activation(inputs @ reading.T + own.b_enc.float())
    if own.gate is not None:
        if not isinstance(own.gate, NeuronGate):
            raise ModelError("start.features: neurons of a mixture of experts cannot be taken")
        strength = strength * own.gate.to(inputs.device, torch.float32)(inputs)
        opening = own.gate.weight.float()
        rows, write = torch.cat((opening + reading, opening - reading)), torch.cat((down, -down))
        signs = [1.0, -1.0]
    energy = torch.cat([(sign * strength).relu().square().mean(0) for sign in signs])
    best = (energy * write.square().sum(1)).argsort(descending=True, stable=True)
    best = best[: trainee.features_at(at)]
    norm = host.blocks[layer].mlp_norm
    if norm is not None and config.dictionary.read != ReadPoint.NORMED:
        rows = rows * norm.weight.float()
    rows = rows[best] / rows[best].norm(dim=1, keepdim=True).clamp_min(1e-9)
    return rows, write[best] / trainee.writes[at].deviation


@torch.no_grad()
def _written(trainee: Trainee, at: int, sample: Batch, taken: Sequence[int]) -> Tensor:
    """What the first so many features of layers write to one (tokens, D), in normalised units."""
    total = torch.zeros_like(sample.outputs[at])
    for source, first in enumerate(taken[: at + 1]):
        if first and at in trainee.wiring.slots(source):
            x = trainee.reads[source].normalised(sample.inputs[source])
            active = trainee.active(source, x, product_of("float32"), sparse=True)
            values = active.values * active.first(first, 0)
            written = trainee.writes_of(source, active, values)
            total += written[:, trainee.wiring.slots(source).index(at)]
    return total


def _fit_decoder(
    trainee: Trainee,
    at: int,
    sample: Batch,
    taken: Sequence[int],
    fired: dict[int, SparseActive],
) -> None:
    """Fit what new features write to one layer: all that write there, or its own alone.

    What fires is kept in `fired`, for layers that write to several.
    """
    wiring, product = trainee.wiring, product_of("float32")
    sources = [
        one
        for one in range(at + 1)
        if at in wiring.slots(one) and taken[one] < trainee.features_at(one)
    ]
    if len(trainee.share) or len(sources) * trainee.features > JOINT:
        sources = [at]
    found = []
    for source in sources:
        active = fired.get(source)
        if active is None:
            x = trainee.reads[source].normalised(sample.inputs[source])
            made = trainee.active(source, x, product, sparse=True)
            assert isinstance(made, SparseActive)
            active = made
        if len(wiring.slots(source)) > 1 and (at + 2) * trainee.features <= JOINT:
            fired[source] = active
        found.append(_of_all_shards(trainee, active, taken[source]))
    x = trainee.reads[at].normalised(sample.inputs[at])
    left = trainee.writes[at].normalised(sample.outputs[at]) - trainee.base(at, x)
    left = left - _written(trainee, at, sample, taken)
    weight = trainee.writes[at].weight(sample.outputs[at], trainee.config.loss.outliers)
    counts = [trainee.features_at(source) for source in sources]
    rows = decoder(found, left, weight).split(counts)
    for source, fitted in zip(sources, rows, strict=True):
        slot = wiring.slots(source).index(at)
        columns = slice(slot * trainee.width, (slot + 1) * trainee.width)
        trainee.W_dec[source][taken[source] :, columns] = fitted[trainee.own][taken[source] :]


def _of_all_shards(trainee: Trainee, active: SparseActive, begin: int) -> tuple[Pairs, Tensor]:
    """Pairs and values of the features of all ranks; 0 of those before number `begin`."""
    ranks, pairs = trainee.ranks, active.pairs
    if ranks.shards == 1:
        return pairs, active.values * active.first(pairs.features, begin)
    token, feature = ranks.beside(pairs.token), ranks.beside(pairs.feature + trainee.own.start)
    whole = Pairs.sorted(token, feature, active.tokens, trainee.features)
    return whole, ranks.beside(active.values)
