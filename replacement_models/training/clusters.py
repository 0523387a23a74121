"""First features from clusters of outputs: one direction each, and a detector fitted to its inputs.

What made the embedded default: clusters whose centres point the same way become one feature, and
encoder rows are fitted to tell a cluster's inputs from all others.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

SAME_DIRECTION = 0.05
"""Clusters of outputs whose centres' cosine is at least 1 less this start as one feature."""
ROUNDS = 8
DETECTOR_RATE = 0.1
DETECTOR_BALANCE = 8.0
"""Weight of a token inside a detector's cluster; those outside have 1."""
DETECTOR_TOKENS = 1024
MOST = 8192
"""Clusters; merging compares all pairs."""
LOOKS = 64
"""Times that seeds are drawn, at what is then still far from all of them."""
ROWS = 1024
"""Tokens compared with all centres at once; their distances stay in the cache."""


def averages(
    data: Float[Tensor, "tokens width"], member: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, "clusters width"]:
    """The mean of each cluster's tokens; empty ones get zeros."""
    sums = data.new_zeros(count, data.shape[1]).index_add_(0, member, data)
    return sums / torch.bincount(member, minlength=count).clamp_min(1)[:, None]


def clusters(
    data: Float[Tensor, "tokens width"],
    count: int,
    generator: torch.Generator,
    weight: Float[Tensor, " tokens"] | None = None,
) -> Int[Tensor, " tokens"]:
    """The cluster of each token, numbered from 0.

    k-means started at `seeds`; then clusters whose centres point the same way become one.

    Args:
        data: what is clustered.
        count: clusters before any become one, at most `MOST` and the tokens.
        generator: draws the seeds.
        weight: of each token when seeds are drawn; None: 1 of all.
    """
    count = min(count, len(data), MOST)
    centres = data[seeds(data, count, generator, weight)]
    member = torch.zeros(len(data), dtype=torch.long, device=data.device)
    for _ in range(ROUNDS):
        member = torch.cat([one.argmin(1) for one in distances(data, centres)])
        centres = averages(data, member, count)
    used, member = member.unique(return_inverse=True)
    centres = centres[used]
    merge = centres.norm(dim=1) > 0
    merged = torch.arange(len(used), device=data.device)
    if int(merge.sum()) > 1:
        tree = linkage(centres[merge].cpu().numpy(), "average", metric="cosine")
        found = torch.from_numpy(fcluster(tree, SAME_DIRECTION, "distance")).long()
        merged[merge] = found.to(data.device) + len(used)
    merged = merged.unique(return_inverse=True)[1]
    return merged[member]


def distances(
    data: Float[Tensor, "tokens width"], centres: Float[Tensor, "clusters width"]
) -> Iterator[Float[Tensor, "some clusters"]]:
    """Squared, less the tokens' own squares; of `ROWS` tokens after another."""
    squares, across = centres.square().sum(1), centres.T
    return (torch.addmm(squares, some, across, alpha=-2) for some in data.split(ROWS))


def seeds(
    data: Float[Tensor, "tokens width"],
    count: int,
    generator: torch.Generator,
    weight: Float[Tensor, " tokens"] | None = None,
) -> Int[Tensor, " count"]:
    """Tokens far from one another: each is drawn by its square distance to those drawn before.

    At random, tokens that are rare would hardly ever be one, however much is written at them.
    Source: Arthur and Vassilvitskii 2007, "k-means++"; some at a time as in Bahmani et al. 2012,
    "Scalable k-means++".
    """
    squares = data.square().sum(1)
    weight = torch.ones_like(squares) if weight is None else weight
    far, drawn = (data - data.mean(0)).square().sum(1), torch.zeros(0, dtype=torch.long)
    while len(drawn) < count:
        chance = (weight * far).double().cpu().clamp_min(1e-12)
        chance[drawn] = 0
        some = min(-(-count // LOOKS), count - len(drawn))
        new = torch.multinomial(chance, some, generator=generator)
        drawn = torch.cat((drawn, new))
        centres = data[new.to(data.device)]
        apart = torch.cat([one.amin(1) for one in distances(data, centres)])
        far = torch.minimum(far, (apart + squares).clamp_min(0))
    return drawn.to(data.device)


def detectors(
    x: Float[Tensor, "tokens d_model"],
    member: Int[Tensor, " tokens"],
    threshold: float,
    steps: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "clusters d_model"], Float[Tensor, " clusters"]]:
    """Rows and biases that tell each cluster's inputs from all others.

    What a linear map can do: pre-activations of twice the threshold inside a cluster, and below
    half of it outside, in one-sided least squares.

    Args:
        x: inputs.
        member: the cluster of each.
        threshold: of a feature.
        steps: of Adam.
        generator: draws the tokens.
    """
    count, wanted = int(member.max()) + 1, 2 * threshold
    rows, bias = x.new_zeros(count, x.shape[1]), x.new_zeros(count)
    optimiser = torch.optim.Adam((rows, bias), lr=DETECTOR_RATE)
    each = torch.arange(DETECTOR_TOKENS, device=x.device)
    for step in range(steps):
        drawn = torch.randint(len(x), (DETECTOR_TOKENS,), generator=generator).to(x.device)
        some, own = x[drawn], member[drawn]
        missed = torch.addmm(bias, some, rows.T)
        inside = missed[each, own] - wanted
        missed.sub_(threshold / 2).relu_()
        missed[each, own] = DETECTOR_BALANCE * inside
        missed.mul_(2 / DETECTOR_TOKENS)
        rows.grad, bias.grad = (some.T @ missed).T, missed.sum(0)
        for group in optimiser.param_groups:
            group["lr"] = DETECTOR_RATE * max(0.02, 1 - step / steps)
        optimiser.step()
    return rows, bias
