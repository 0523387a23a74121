"""Name the features of a transcoder by what they were measured to fire on.

    python -m replacement_models.tiny.recipe.name_features

writes `clt/labels.json` and `plt/labels.json`. No one looks at a feature: a name is given where a
feature passes a test, on seen cities and on generated sentences, and the rest keep their default
labels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.checkpoint import AS_DATA
from replacement_models.formats import load_transcoder
from replacement_models.formats.labels import write_labels
from replacement_models.tiny.recipe.behaviours import asked
from replacement_models.tiny.recipe.corpus import (
    SHARES,
    TWO_HOP,
    TWO_HOP_OTHER,
    Encoder,
    Source,
    pack,
    sentences,
    whole_words,
)
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities
from replacement_models.tiny.recipe.swaps import Laboratory
from replacement_models.tiny.recipe.taps import recorded_mlps

STATE_SHARE, STATE_COVERAGE, STATES = 0.2, 0.2, 2
"""A feature is named after at most so many states that hold this share of its activation each and
at least half together, if it fires on this share of their cities."""
TOKEN_SHARE = 0.8
"""A feature is named after the token that holds this share of its activation."""
RELATION_FIRES, RELATION_SPARES = 0.8, 0.2
"""A feature says a kind of thing if it fires on this share of the questions for it, and on less
than that share of the others."""
HANDFUL, SHOWN = 8, 3
"""A feature that fires on at most so many cities is named after the strongest of them, if cities
hold half of its activation."""
ROWS, SEED = 200, 808

Names = dict[tuple[int, int], str]


def name_features(lab: Laboratory, source: Source) -> Names:
    """Names by (layer, feature)."""
    totals = token_totals(lab, source)
    names = token_names(lab, totals)
    names.update(city_names(lab, source, totals))
    names.update(relation_names(lab, source))
    names.update(state_names(lab, source))
    return names


def state_names(lab: Laboratory, source: Source) -> Names:
    """`a city in Texas` at the city, `Texas` at the last position."""
    profile = lab.profile(list(source.cities.seen))
    fits = (profile.purity >= STATE_SHARE) & (profile.coverage >= STATE_COVERAGE)
    names: Names = {}
    for site, form in ((1, "{}"), (0, "a city in {}")):
        for layer, feature in fits[:, site].any(0).nonzero().tolist():
            purity = profile.purity[:, site, layer, feature] * fits[:, site, layer, feature]
            best = [index for index in purity.argsort(descending=True).tolist() if purity[index]]
            if float(purity[best[:STATES]].sum()) >= 0.5:
                states = " or ".join(lab.states[index] for index in best[:STATES])
                names[layer, feature] = form.format(states)
    return names


def city_names(
    lab: Laboratory, source: Source, totals: Float[Tensor, "layers vocabulary features"]
) -> Names:
    """`Dallas, Barre`: the cities, strongest first, of a feature for a handful of cities."""
    cities = sorted(source.cities.state_of)
    active = lab.activations(cities)[:, 0]
    ids = torch.tensor([lab.tokenizer.encode(city)[1] for city in cities])
    for_cities = totals[:, ids].sum(1) >= 0.5 * totals.sum(1)
    few = (active > 0).sum(0).sub(1) < HANDFUL
    names: Names = {}
    for layer, feature in (few & for_cities).nonzero().tolist():
        value = active[:, layer, feature]
        fires = [row for row in value.argsort(descending=True).tolist()[:SHOWN] if value[row] > 0]
        if fires:
            names[layer, feature] = ", ".join(cities[row] for row in fires)
    return names


def relation_names(lab: Laboratory, source: Source) -> Names:
    """`say a capital`: fires where the answer is a capital and hardly where it is anything else."""
    kinds = {"capital": TWO_HOP[0]} | {
        template.rpartition("[{")[2].partition("}")[0]: template for template in TWO_HOP_OTHER
    }
    cities = list(source.cities.seen)[::5]
    rates = {}
    for kind, template in kinds.items():
        texts = [asked(template.format(**source.city_facts(city))).text for city in cities]
        rates[kind] = (last_activations(lab, texts) > 0).float().mean(0)
    names: Names = {}
    for kind, rate in rates.items():
        others = torch.stack([other for name, other in rates.items() if name != kind]).amax(0)
        for layer, feature in ((rate >= RELATION_FIRES) & (others < RELATION_SPARES)).nonzero():
            say = {"largest": "largest city"}.get(kind, kind)
            names[int(layer), int(feature)] = f"say a{'n' if say[0] == 'a' else ''} {say}"
    return names


@torch.no_grad()
def last_activations(
    lab: Laboratory, texts: Sequence[str]
) -> Float[Tensor, "texts layers features"]:
    """Activations at the last position of prompts of one length."""
    ids = torch.tensor([lab.tokenizer.encode(text) for text in texts])
    with recorded_mlps(lab.model) as (inputs, _):
        lab.model(ids)
    layers = [lab.transcoder.encode(layer, x[:, -1])[1] for layer, x in enumerate(inputs)]
    return torch.stack(layers, 1)


@torch.no_grad()
def token_totals(lab: Laboratory, source: Source) -> Float[Tensor, "layers vocabulary features"]:
    """Activation of every feature on every token, summed over generated sentences."""
    stream = sentences(source, SEED, SHARES)
    ids = torch.from_numpy(pack(stream, Encoder(lab.tokenizer), ROWS, 64)[0]).long()
    with recorded_mlps(lab.model) as (inputs, _):
        lab.model(ids)
    tokens = ids[:, 1:].flatten()
    totals = []
    for layer, x in enumerate(inputs):
        active = lab.transcoder.encode(layer, x[:, 1:].flatten(0, 1))[1]
        empty = torch.zeros(len(lab.tokenizer), active.shape[1])
        totals.append(empty.index_add_(0, tokens, active))
    return torch.stack(totals)


def token_names(lab: Laboratory, totals: Float[Tensor, "layers vocabulary features"]) -> Names:
    """The token a feature fires on, where one holds most of its activation."""
    shares, tokens = (totals / totals.sum(1, keepdim=True).clamp_min(1e-9)).max(1)
    names: Names = {}
    for layer, feature in (shares >= TOKEN_SHARE).nonzero().tolist():
        text = str(lab.tokenizer.decode([int(tokens[layer, feature])])).strip()
        names[layer, feature] = f"“{text}”"
    return names


def main() -> None:
    """Name the features of both shipped transcoders."""
    folder = PACKAGE / "model"
    model = GPT2LMHeadModel.from_pretrained(folder, **AS_DATA, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **AS_DATA)
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    for name in ("clt", "plt"):
        transcoder = load_transcoder(PACKAGE / name).to("cpu", torch.float32)
        lab = Laboratory(model, tokenizer, transcoder, source)
        write_labels(name_features(lab, source), PACKAGE / name)


if __name__ == "__main__":
    main()
