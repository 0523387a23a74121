"""Read a prompt through a lens: what every layer would answer at every position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from graphs.pictures import charts
from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.sites import Site
from tracer.attribution.targets import token_id
from tracer.errors import TraceError
from tracer.lenses.affine import KINDS as FITTED
from tracer.lenses.affine import AffineLens
from tracer.lenses.named import named_rows, overtakings
from tracer.lenses.readings import KINDS, divergences, reader, stream_sites

Prompt = str | Sequence[int]
CELLS = pa.schema(
    [
        *(("site", pa.string()), ("layer", pa.int32()), ("position", pa.int32())),
        *(("text", pa.string()), ("token", pa.int32()), ("top", pa.string())),
        *(("probability", pa.float64()), ("kl", pa.float64())),
    ]
)
LAYERS = pa.schema(
    [
        *(("site", pa.string()), ("layer", pa.int32())),
        *(("kl", pa.float64()), ("kl_answer", pa.float64())),
    ]
)


@dataclass(frozen=True, eq=False)
class LensReading:
    """What a lens reads of one prompt, as Arrow tables; probabilities and KL are in float64."""

    kind: str
    position: int
    """Where the answer is read: what the model says there is the final answer."""
    texts: tuple[str, ...]
    """Token string of every position."""
    table: pa.Table
    """A row a site and position, from below: site, layer, position, text, token (likeliest), top
    (its string), probability, kl (to the model's answer at that position, in nats)."""
    layers: pa.Table
    """A row a site: site, layer, kl (mean over positions counted), kl_answer (at `position`)."""
    named: pa.Table
    """A row a named token, site and position: token, name, site, layer, position, rank (1 is the
    likeliest), probability, logit, lead (its logit less that of the token the model itself answers
    there), leader (the likeliest token's string)."""
    overtaken: pa.Table
    """A row a named token, at `position`: token, name, best_rank, best_site, ahead_until (the last
    site at which it stood before the model's answer), overtaken_at (the next site), by (the
    likeliest token there), leads_from (where the lead begins that it keeps to the end)."""

    __repr__ = one_line

    def heat_map(self, name: str | None = None) -> str:
        """Layers by positions as SVG text.

        Args:
            name: colour by the probability of this named token and write its rank into the cells;
                None colours by the likeliest token's probability and writes that token.

        Returns:
            SVG; layers from above, the last at the top.

        Raises:
            TraceError: no such token was named.
        """
        rows, value, shown = self.table, "probability", "top"
        title = f"{self.kind} lens: likeliest token"
        if name is not None:
            rows = self.named.filter(pc.equal(self.named["name"], name))
            title, shown = f"{self.kind} lens: rank of {name!r}", "rank"
            if not rows.num_rows:
                raise TraceError(f"heat map: {name!r} is not among the tokens that were named")
        shape = (self.layers.num_rows, len(self.texts))
        numbers = rows[value].to_numpy().reshape(shape)[::-1]
        texts = np.array([str(one) for one in rows[shown].to_pylist()], object).reshape(shape)
        sites = self.layers["site"].to_pylist()[::-1]
        return charts.heat_map(title, sites, list(self.texts), numbers, texts[::-1].tolist())


@one_call()
@torch.no_grad()
def lens(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    prompt: Prompt,
    kind: str | None = None,
    *,
    lens: AffineLens | str | Path | None = None,
    tokens: Sequence[str | int] = (),
    position: int = -1,
    sites: Sequence[Site | str] | None = None,
    skip_positions: int = 1,
) -> LensReading:
    """Read every stream of a prompt as if it were the last.

    Args:
        model: the model.
        prompt: text, or token ids taken as they stand.
        kind: "logit", "tuned", "jacobian" or "local"; None is that of `lens`, without one "logit".
        lens: a fitted lens or its file, which "tuned" and "jacobian" need.
        tokens: whose rank to follow.
        position: where the answer is read; negative counts from the end.
        sites: of the stream; None is those entering each layer and the final norm.
        skip_positions: leave the first so many positions out of the mean KL; to the local lens
            their features and errors are constants.

    Returns:
        Tables; see `LensReading`.

    Raises:
        TraceError: kind and lens do not go together, the lens is of another model, a token is
            unknown, or a position or site does not exist.
        ModelError: the prompt does not fit the model.
    """
    chosen = chosen_lens(model, kind, lens)
    wanted = stream_sites(model, sites)
    if isinstance(chosen, AffineLens):
        chosen.check_sites(wanted)
    ids = [token_id(model, token) for token in tokens]
    prompt_ids = model.tokenize(prompt)
    at = _position(position, len(prompt_ids))
    if not 0 <= skip_positions < len(prompt_ids):
        raise TraceError(
            f"skip_positions is {skip_positions}, but the prompt has {len(prompt_ids)} tokens; "
            "leave at least one"
        )
    recording = model.record(prompt_ids, keep_patterns=chosen == "local")
    read = reader(model, recording, chosen, skip_positions)
    texts = [model.token_string(token) for token in recording.tokens]
    answers, parts = recording.logits.argmax(-1), []
    for site in wanted:
        logits = read(site)
        kl = divergences(recording.logits, logits)
        summary = {"site": str(site), "layer": site.layer}
        summary |= {"kl": float(kl[skip_positions:].mean()), "kl_answer": float(kl[at])}
        named = named_rows(model, site, logits, answers, ids)
        parts.append((_cells(model, texts, site, logits, kl), summary, named))
    cells, layers, followed = zip(*parts, strict=True)
    named = pa.concat_tables(followed)
    return LensReading(
        kind=chosen if isinstance(chosen, str) else chosen.kind,
        position=at,
        texts=tuple(texts),
        table=pa.concat_tables(cells),
        layers=pa.Table.from_pylist(list(layers), schema=LAYERS),
        named=named,
        overtaken=overtakings(named, at),
    )


def chosen_lens(
    model: ReplacementModel, kind: str | None, lens: AffineLens | str | Path | None
) -> AffineLens | str:
    """What a kind and a lens mean together: the name of one that needs no fitting, or a fitted one.

    Raises:
        TraceError: they contradict each other, one is missing, or the lens is of another model.
    """
    if kind is not None and kind not in KINDS:
        raise TraceError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if lens is None:
        if kind in FITTED:
            raise TraceError(
                f"the {kind} lens has to be fitted first; name its file, or make one: "
                f"tracer lens --fit {kind} -o {kind}.safetensors"
            )
        return kind or "logit"
    loaded = lens if isinstance(lens, AffineLens) else AffineLens.load(lens)
    if kind not in (None, loaded.kind):
        raise TraceError(f"kind is {kind!r}, but the lens given is a {loaded.kind} lens")
    loaded.check_fit(model)
    return loaded


def _position(position: int, count: int) -> int:
    if not -count <= position < count:
        raise TraceError(
            f"position is {position}, but the prompt has {count} tokens: expected {-count} to "
            f"{count - 1}"
        )
    return position % count


def _cells(
    model: ReplacementModel, texts: Sequence[str], site: Site, logits: Tensor, kl: Tensor
) -> pa.Table:
    """One site's rows of the table."""
    top = logits.double().softmax(-1).max(-1)
    count, tokens = len(texts), top.indices.tolist()
    columns = {
        "site": [str(site)] * count,
        "layer": [site.layer] * count,
        "position": range(count),
        "text": texts,
        "token": tokens,
        "top": [model.token_string(token) for token in tokens],
        "probability": top.values.tolist(),
        "kl": kl.tolist(),
    }
    return pa.table(columns, schema=CELLS)
