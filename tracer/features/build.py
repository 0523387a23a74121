"""From a corpus to a feature store: pack, pass, describe.

1. pack the corpus into rows of tokens (text/packing.py);
2. pass over them once, batch by batch, committing every few batches (running.py);
3. describe what was seen in tables (feature_table.py, choose.py, tables.py).

All of it happens in a folder beside the store, `STORE.building`; the store appears there whole, in
one rename. A build that was interrupted, by kill -9 too, goes on from its last commit when it is
asked for again, and ends with the same bytes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replacement_models import ReplacementModel
from replacement_models.one_writer import one_writer
from replacement_models.process import one_call
from replacement_models.replaced import special_tokens
from replacement_models.text.documents import Corpus, documents
from replacement_models.text.packing import Packed, pack
from tracer.errors import TraceError
from tracer.features.choose import examples
from tracer.features.dictionary_hash import dictionary_hash
from tracer.features.feature_table import Described, feature_table
from tracer.features.running import Running
from tracer.features.settings import Settings
from tracer.features.statistics import LOWEST, OCTAVES, PARTS, QUANTILES
from tracer.features.tables import (
    ABOUT,
    EXAMPLES,
    FEATURES,
    NAME,
    VERSION,
    WINDOWS,
    example_table,
    layer_file,
    window_table,
    write,
)
from tracer.lenses.affine import AffineLens

BUILDING = ".building"
ROWS, STATE, PLAN = "rows.arrow", "state.safetensors", "plan.json"
"""Files of a build that is under way."""
LONGEST_CONTEXT = 256
"""Tokens a row unless the caller says otherwise, or the model reads fewer."""
WINDOW = 64
JACOBIAN = "jacobian"
Progress = Callable[[int, int | None, str], None]
"""Called with rows done, rows in all (None before they are known), and what is being done."""


@one_call()
@torch.no_grad()
def build(  # noqa: PLR0913  keyword arguments are those of FeatureStore.build
    model: ReplacementModel,
    corpus: Corpus,
    path: Path,
    settings: Settings,
    *,
    field: str = "text",
    lines: bool = False,
    lens: AffineLens | None = None,
    progress: Progress | None = None,
) -> None:
    """Build a feature store, or go on with one that was interrupted.

    Args:
        model: the model and its dictionary.
        corpus: as `text.documents.documents` takes it.
        path: folder to write, which must not exist.
        settings: of the build.
        field: key or column that holds the text.
        lines: every line of plain text is a document of its own.
        lens: a Jacobian lens of this model, to name also the tokens promoted through it.
        progress: called before every batch.

    Raises:
        TraceError: something stands at `path`, or what was begun there was begun with another
            model, corpus or setting, or the lens does not fit.
        ModelError: the corpus cannot be read, or does not fit the model.
    """
    if path.exists():
        raise TraceError(f"{path}: exists; choose another name, or remove it to build it anew")
    if not model.transcoder.present:
        raise TraceError("the model has no dictionary at any layer: there are no features to know")
    check_lens(model, lens)
    texts = documents(corpus, field, lines)
    with one_writer(path, "features"):
        _built(model, texts, path, settings, lens, progress or (lambda done, total, what: None))


def _built(
    model: ReplacementModel,
    texts: Any,
    path: Path,
    settings: Settings,
    lens: AffineLens | None,
    say: Progress,
) -> None:
    beside = path.with_name(path.name + BUILDING)
    begun = beside.exists()
    try:
        beside.mkdir(parents=True, exist_ok=True)
        packed = _packed(model, texts, settings, beside, say)
        about = _about(model, packed, settings, lens)
        _check_plan(beside, about)
    except BaseException:
        if not begun:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    running = _pass(model, packed, settings, beside / STATE, say)
    say(running.rows, running.rows, "Describing features")
    _describe(Described(model, packed, running, settings, lens), about, beside / path.name)
    (beside / path.name).replace(path)
    shutil.rmtree(beside)


def check_lens(model: ReplacementModel, lens: AffineLens | None) -> None:
    """Refuse a lens that does not say what a stream does later, or is another model's.

    Raises:
        TraceError: it is no Jacobian lens, or of other sizes.
    """
    if lens is None:
        return
    if lens.kind != JACOBIAN:
        raise TraceError(
            f"the lens is {lens.kind}, expected {JACOBIAN}: fit one with tracer lens --fit jacobian"
        )
    lens.check_fit(model)


def default_settings(model: ReplacementModel, **given: Any) -> Settings:
    """Settings with what was given, and for the rest what suits the model."""
    given = {name: value for name, value in given.items() if value is not None}
    most = model.host.context
    context = given.setdefault("context", min(LONGEST_CONTEXT, most or LONGEST_CONTEXT))
    if most is not None and context > most:
        raise TraceError(f"context is {context}, but the model reads at most {most} tokens")
    given.setdefault("window", WINDOW if context % WINDOW == 0 else context)
    return Settings(**given)


def _packed(
    model: ReplacementModel, texts: Any, settings: Settings, beside: Path, say: Progress
) -> Packed:
    """Rows of the corpus, read anew each time: what an interrupted build read may have changed."""
    what = "Reading the corpus"
    say(0, None, what)
    return pack(model, texts, settings, beside / ROWS, lambda rows: say(rows, None, what))


def _about(
    model: ReplacementModel, packed: Packed, settings: Settings, lens: AffineLens | None
) -> dict[str, Any]:
    """What a store is made of; two builds that agree in it go on with each other's work."""
    transcoder = model.transcoder
    return {
        "format": NAME,
        "version": VERSION,
        "model": model.name,
        "model_revision": model.revision,
        "transcoders": model.transcoder_name,
        "dictionary_hash": dictionary_hash(model),
        "elsewhere": model.elsewhere,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "corpus": packed.fingerprint,
        "rows": len(packed.tokens),
        "settings": settings.as_json(),
        "features": {str(at): len(transcoder.layers[at].W_enc) for at in transcoder.present},
        "special": sorted(map(model.token_string, special_tokens(model))),
        "quantiles": list(QUANTILES),
        "lens": None if lens is None else lens.content_hash,
        "bins": {"lowest_power": LOWEST, "octaves": OCTAVES, "parts": PARTS},
    }


def _check_plan(beside: Path, about: dict[str, Any]) -> None:
    """Write down what is being built; refuse to go on with anything else."""
    plan = beside / PLAN
    if not plan.is_file():
        _write_json(plan, about)
        return
    before = json.loads(plan.read_text(encoding="utf-8"))
    flat, other = (
        {**{k: v for k, v in one.items() if k != "settings"}, **one["settings"]}
        for one in (about, before)
    )
    changed = [name for name in flat if flat[name] != other.get(name)]
    if changed:
        name = changed[0]
        raise TraceError(
            f"{beside}: holds a build that was begun with {name} {other.get(name)!r:.80}, now it "
            f"is {flat[name]!r:.80}; go on with the former, or remove that folder to begin anew"
        )


def _pass(
    model: ReplacementModel, packed: Packed, settings: Settings, state: Path, say: Progress
) -> Running:
    """See every row once, from the last commit on."""
    running = Running.empty(model, settings)
    if state.is_file():
        running.load(state)
    total, share = len(packed.tokens), settings.sampled_tokens / packed.tokens.size
    until = settings.batch * settings.shard
    while running.rows < total:
        say(running.rows, total, "Running the model")
        rows = packed.tokens[running.rows : running.rows + settings.batch]
        running.add(model, torch.from_numpy(rows.astype(np.int64)), settings, share)
        if running.rows % until == 0 or running.rows == total:
            running.save(state)
    return running


def _describe(about: Described, written: dict[str, Any], store: Path) -> None:
    """All tables of a store, and last what it was made of."""
    shutil.rmtree(store, ignore_errors=True)
    used = []
    for layer in about.layers:
        found = examples(about.running.layers[layer], about.settings)
        used.append(found.window)
        write(example_table(found), layer_file(store, EXAMPLES, layer))
        write(feature_table(about, layer), layer_file(store, FEATURES, layer))
    numbers = np.unique(np.concatenate(used))
    shown = window_table(numbers, about.windows[numbers], about.settings.context, about.text_of)
    write(shown, store / WINDOWS)
    seen = {"tokens_counted": about.running.counted, "map_share": [*about.plane.share]}
    _write_json(store / ABOUT, {**written, **seen})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
