"""From a configuration to a finished dictionary; called again, an interrupted run goes on."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from replacement_models.errors import ModelError
from replacement_models.formats.files import WRITABLE, save_transcoder
from replacement_models.one_writer import one_writer
from replacement_models.process import one_call
from replacement_models.replaced import special_tokens
from replacement_models.replacement import ReplacementModel
from replacement_models.training import checkpoint
from replacement_models.training.config import TrainConfig
from replacement_models.training.dealt import DealtBatches
from replacement_models.training.finish import Worth, check_format, stands_in, worth
from replacement_models.training.fold import folded
from replacement_models.training.harvest import Harvester
from replacement_models.training.interrupt import between_steps
from replacement_models.training.journal import Journal, check_loggers
from replacement_models.training.loop import CHECKPOINTS, Loop
from replacement_models.training.memory import Share, check_memory
from replacement_models.training.pool import Batches, Rows, generator
from replacement_models.training.product import chosen
from replacement_models.training.ranks import ALONE, Ranks
from replacement_models.training.rare import Counted, counted, kept, narrowed, text_once
from replacement_models.training.scales import Scale
from replacement_models.training.shards import whole
from replacement_models.training.source import Cache, Source, manifest
from replacement_models.training.sparsity import calibrate
from replacement_models.training.start import started
from replacement_models.training.text import packed
from replacement_models.training.torchrun import device_of, on_this_machine, ranks_begun
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring, check_host
from replacement_models.transcoder import Transcoder

CONFIG, SUMMARY, DICTIONARY = "config.json", "summary.json", "transcoder"
START, REVIVE = 10, 11
"""What generators are for; part of their seeds."""
MEASURED_ROWS = 64
"""Held-out rows that the replaced model is compared on, if `data.held_out_tokens` are as many."""
MAY_CHANGE = {
    *("run.log_every", "run.checkpoint_every", "run.tensorboard", "run.wandb", "run.threads"),
    *("run.measure_every", "output", "ranks.shards", "ranks.wait"),
}
"""Fields that may differ when a run is taken up."""

Told = Callable[[str, int, int], None]
Score = Callable[[ReplacementModel, Sequence[Sequence[int]]], Mapping[str, Any]]
"""Measures of a model with its dictionary on prompts, those that need graphs."""
PROMPT = 16
"""Tokens of a prompt that is taken from held-out text."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    transcoder: Path
    """Folder of the finished dictionary, inside the run's."""
    config: TrainConfig
    worth: Worth
    """On held-out tokens, layer by layer."""
    summary: Mapping[str, Any]
    """What summary.json holds."""


def train(
    config: TrainConfig,
    told: Told = lambda words, done, total: None,
    score: Score | None = None,
) -> Run:
    """Train a dictionary, or go on with a run that was interrupted.

    Under torchrun all ranks call it, and train one dictionary together.

    Args:
        config: everything there is to say.
        told: called with words for what is done, and how much of how much.
        score: measures a model with its dictionary, before the end-to-end stage and at the end.

    Returns:
        Where the dictionary is and what it is worth.

    Raises:
        ModelError: a setting does not fit the model or the machine, the corpus cannot be read, the
            folder holds a run with other settings, or one of several ranks was lost.
        KeyboardInterrupt: the run was stopped; the same call goes on with it.
    """
    with ranks_begun(config) as ranks, one_call():
        check_loggers(config)
        if config.run.format not in WRITABLE:
            said = f"expected one of {', '.join(sorted(WRITABLE))}, got {config.run.format!r}"
            raise ModelError(f"run.format: {said}")
        folder = _begun(config)
        ranks.wait()
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        with one_writer(folder, "output") if ranks.first else nullcontext():
            return _train(config, folder, told if ranks.first else _unheard, score, ranks)


def _unheard(words: str, done: int, total: int) -> None:
    """What ranks but the first one say."""


def _train(config: TrainConfig, folder: Path, told: Told, score: Score | None, ranks: Ranks) -> Run:
    told("Loading the model", 0, 0)
    run = config.run
    model = ReplacementModel.without_dictionary(config.model, device_of(run.device), run.dtype)
    wiring = _wired(config, model, ranks)
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        (folder / CONFIG).write_text(json.dumps(config.as_mapping(), indent=2) + "\n")
    source = ranks.first_then_others(lambda: _source(config, model, wiring, folder, told))
    loop = _loop(source, wiring, folder, told, ranks)
    loop.on_divergence = lambda: _once(loop, lambda trainee: _scored(loop, trainee, score))
    loop.on_measure = lambda: _once(loop, lambda trainee: _measured(loop, trainee, score))
    journal = Journal(folder, config, loop.done) if ranks.first else None
    steps = config.steps
    try:
        with between_steps() as asked:
            loop.run(journal, asked, lambda line: told(_words(line), line["step"], steps))
    finally:
        if journal is not None:
            journal.close()
    return _finished(loop, told, score)


def _begun(config: TrainConfig) -> Path:
    """The run's folder, new or of the same run.

    Raises:
        ModelError: something else stands there.
    """
    folder = Path(config.output)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"output: {folder} exists and is no run (it has no {CONFIG})")
    try:
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); name another output") from error
    for name, value in _flat(config.as_mapping()).items():
        if name not in MAY_CHANGE and before.get(name) != value:
            raise ModelError(
                f"output: the run in {folder} was begun with {name} {before.get(name)!r:.60}, now "
                f"it is {value!r:.60}; name another output, or remove it"
            )
    return folder


def _flat(mapping: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Fields by `section.field`."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        inner = _flat(value, f"{before}{key}.") if isinstance(value, dict) else {}
        found |= inner or {f"{before}{key}": value}
    return found


def _wired(config: TrainConfig, model: ReplacementModel, ranks: Ranks) -> Wiring:
    """Layers, once everything that the model decides has been checked."""
    host = model.host
    wiring = Wiring.of(config.dictionary, len(host.blocks))
    check_host(config.dictionary, host.blocks)
    check_format(config, wiring, len(host.blocks))
    check_memory(config, wiring, host.d_model, Share(ranks.shards, ranks.parts, on_this_machine()))
    return wiring


def _source(
    config: TrainConfig, model: ReplacementModel, wiring: Wiring, folder: Path, told: Told
) -> Source:
    """The text, and what makes activations of it."""
    text = packed(config, model, folder, lambda rows: told("Reading the corpus", rows, 0))
    tokens, data = text.tokens, config.data
    a_row = max(1.0, float((tokens[:4096] >= 0).sum(1).mean()))
    groups = max(1, round(data.buffer / a_row / data.rows))
    rows = Rows.of(len(tokens), data.held_out, groups * data.rows, config.run.seed)
    harvester = Harvester(model, config, wiring.layers, special_tokens(model))
    cache = None
    if data.cache is not None:
        about = manifest(config, model, text.fingerprint, rows)
        cache = Cache.open(Path(data.cache), about, harvester)
    return Source(harvester, tokens, rows, cache)


def _loop(source: Source, wiring: Wiring, folder: Path, told: Told, ranks: Ranks) -> Loop:
    """A new loop, or the one that the last checkpoint is of."""
    config, model = source.harvester.config, source.harvester.model
    run = config.run
    path = checkpoint.newest(folder / CHECKPOINTS)
    state = None if path is None else checkpoint.read_state(path)
    if state is not None:
        _check_state(path, state)
    told("Running the model", 0, 0)
    begin = time.process_time()
    held = source.of_rows(source.rows.held_out, config.data.held_out_tokens)
    if len(held) < 2:
        raise ModelError("data.held_out: no token is left to measure on; give more text")
    if state is None:
        sample = _sample(config, source, ranks)
        drawn = generator(run.seed, START)
        trainee = started(config, wiring, model.host, sample, drawn, told, ranks)
        like, features = trainee.b_dec[0].detach(), config.dictionary.features
        precision = ranks.by_the_first(lambda: chosen(run.precision, run.batch, features, like))
    else:
        trainee, precision = _empty(config, wiring, held, ranks), str(state["precision"])
    loop = Loop(
        config,
        folder,
        model,
        trainee,
        source,
        _batches(source, run.batch, ranks, ranks.parts),
        held,
        precision,
        generator(run.seed, REVIVE),
        notes={"start_cpu_seconds": time.process_time() - begin},
    )
    if path is not None and state is not None:
        loop.take_up(path, state)
    return loop


def _check_state(path: Any, state: Mapping[str, Any]) -> None:
    """Refuse what no run wrote.

    Raises:
        ModelError: a field is missing or of another type.
    """
    kinds: dict[str, Any] = {"step": int, "place": dict, "notes": dict, "precision": str}
    kinds |= dict.fromkeys(("seconds", "cpu_seconds", "harvested"), (int, float))
    for name, kind in kinds.items():
        got = state.get(name)
        whole = name != "place" or sorted(map(str, got or {})) == ["batch", "pool"]
        if not isinstance(got, kind) or not whole:
            raise ModelError(
                f"{path}/state.json: {name} is {got!r:.60}, no run wrote that; remove it"
            )


def _batches(source: Source, size: int, ranks: Ranks, parts: int) -> Batches | DealtBatches:
    """The stream of batches; of several ranks each gets its part, or all of it where parts is 1."""
    seed = source.harvester.config.run.seed
    if ranks.count == 1:
        return Batches(source, source.rows.chunks, size, seed)
    return DealtBatches.of(source, ranks, size, seed, parts)


def _sample(config: TrainConfig, source: Source, ranks: Ranks) -> Batch:
    """Tokens of the first pools, in no order."""
    wanted = config.start.tokens
    batches = _batches(source, min(config.run.batch, wanted), ranks, 1)
    found: list[Batch] = []
    while sum(map(len, found)) < wanted and batches.place.pool < 2 * source.rows.chunks:
        found.append(next(batches))
    from replacement_models.training.harvest import joined

    return joined(found).rows(slice(0, wanted))


def _empty(config: TrainConfig, wiring: Wiring, like: Batch, ranks: Ranks = ALONE) -> Trainee:
    """Room for what a checkpoint holds."""

    def scales(tensors: Any) -> list[Scale]:
        return [Scale(torch.zeros_like(x[0]), x.new_zeros(()), x.new_zeros(())) for x in tensors]

    return Trainee(config, wiring, scales(like.inputs), scales(like.outputs), ranks)


def _words(line: Mapping[str, Any]) -> str:
    """A step's numbers for a terminal."""
    dead = f", dead {100 * line['dead']:.1f} %" if line["dead"] else ""
    away = f", KL {line['divergence']:.3f}" if "divergence" in line else ""
    return (
        f"error {line['error']:.4f}, L0 {line['l0']:.1f}{dead}{away}, "
        f"{line['tokens_per_second']:,.0f} tokens/s"
    )


def _once(loop: Loop, measure: Callable[[Trainee], dict[str, Any]]) -> dict[str, Any]:
    """What the first rank measures of the whole dictionary, told to all."""
    trainee = whole(loop.trainee)
    found: dict[str, Any] = loop.ranks.by_the_first(lambda: measure(trainee))
    return found


def _scored(loop: Loop, trainee: Trainee, score: Score | None) -> dict[str, Any]:
    """What the dictionary is worth as it is now, in figures that need the whole model."""
    config, model = loop.config, loop.model
    assert model is not None
    transcoder = folded(trainee, len(model.host.blocks), model.name)
    if config.dictionary.kind == "sae":
        return {}
    standing = replace(model, transcoder=transcoder.to(model.device, model.dtype))
    found: dict[str, Any] = dict(stands_in(standing, _held_rows(loop), loop.where))
    return found if score is None else found | dict(score(standing, _prompts(loop)))


def _measured(loop: Loop, trainee: Trainee, score: Score | None) -> dict[str, Any]:
    """Means over layers on held-out tokens with thresholds as they stand, and scores."""
    found = _worth(loop, trainee, affine=False)
    means = {name: mean(getattr(found, name)) for name in ("error", "error_weighted", "l0", "dead")}
    return means | _scored(loop, trainee, score)


def _worth(loop: Loop, trainee: Trainee, affine: bool = True) -> Worth:
    """The dictionary as it is now, layer by layer."""
    assert loop.model is not None
    return worth(
        folded(trainee, len(loop.model.host.blocks), loop.model.name),
        trainee.wiring.layers,
        trainee.writes,
        loop.held.to(trainee.b_dec[0].device),
        loop.config.loss.outliers,
        affine,
    )


def _prompts(loop: Loop) -> list[list[int]]:
    """The beginnings of some held-out rows."""
    assert loop.source is not None
    rows = loop.source.tokens[loop.source.rows.held_out, :PROMPT]
    some = rows[(rows >= 0).all(1)][: loop.config.data.prompts]
    return [[int(token) for token in row] for row in some]


def _held_rows(loop: Loop) -> Iterator[np.ndarray]:
    """Held-out rows of text, those without fill, some at a time."""
    assert loop.source is not None
    tokens = loop.source.tokens
    most = min(MEASURED_ROWS, -(-loop.config.data.held_out_tokens // tokens.shape[1]))
    rows = tokens[loop.source.rows.held_out[:most]]
    lengths = (rows >= 0).sum(1)
    for length in sorted(set(lengths.tolist())):
        if length > 1:
            some = rows[lengths == length][:, :length]
            for begin in range(0, len(some), loop.config.divergence.rows):
                yield some[begin : begin + loop.config.divergence.rows]


def _finished(loop: Loop, told: Told, score: Score | None) -> Run:
    """Calibrate, measure, write; a run that has been finished is read again."""
    moved, count = calibrate(loop.trainee, loop.held, loop.new()), None
    if loop.config.run.drop_below:
        assert loop.source is not None
        told("Counting what fires", loop.done, loop.done)
        count = counted(loop.trainee, text_once(loop.source, loop.ranks))
    told("Measuring", loop.done, loop.done)
    harvested = loop.harvested
    trainee = whole(loop.trainee, torch.device("cpu"))  # where there is most room
    summary: dict[str, Any] = loop.ranks.by_the_first(
        lambda: _written(loop, *_without_rare(loop, trainee, count, moved), harvested, score)
    )
    named: dict[str, Any] = {one.name: summary[one.name] for one in fields(Worth)}
    listed = {k: tuple(v) for k, v in named.items() if isinstance(v, list)}  # as JSON has tuples
    found = Worth(**named | listed)
    return Run(loop.folder, loop.folder / DICTIONARY, loop.config, found, summary)


def _without_rare(
    loop: Loop, trainee: Trainee, found: Counted | None, moved: list[float]
) -> tuple[Trainee, dict[str, Any]]:
    """The dictionary that is written, thresholds set for what is left of it; what is said of it."""
    if found is None:
        return trainee, {"left_out": [0] * len(moved), "thresholds_moved": moved}
    chosen = kept(trainee, found)
    narrow = narrowed(trainee, chosen)
    again = calibrate(narrow, loop.held.to(narrow.b_dec[0].device))
    anew = loop.config.dictionary.activation == "batch_topk"  # whose limit starts from nothing
    said = {
        "left_out": [len(a) - len(b) for a, b in zip(found.fired, chosen, strict=True)],
        "counted_tokens": found.tokens,
        "thresholds_moved": [b if anew else a + b for a, b in zip(moved, again, strict=True)],
    }
    prefixes = loop.config.dictionary.prefixes
    if prefixes:
        said["prefixes"] = [[int((some < one).sum()) for one in prefixes] for some in chosen]
    return narrow, said


def _written(
    loop: Loop, trainee: Trainee, said: dict[str, Any], harvested: int, score: Score | None
) -> dict[str, Any]:
    """What summary.json holds, once it and the dictionary are written."""
    config, model, folder = loop.config, loop.model, loop.folder
    assert model is not None
    transcoder = folded(trainee, len(model.host.blocks), model.name)
    found = _worth(loop, trainee)
    summary = {
        "steps": loop.done,
        "tokens": loop.done * config.run.batch,
        "seconds": loop.seconds,
        "cpu_seconds": loop.cpu_seconds,
        "harvested_tokens": harvested,
        "precision": loop.precision,
        "layers": list(trainee.wiring.layers),
        "wanted_l0": list(trainee.l0),
        **said,
        **asdict(found),
        **loop.notes,
        "replaced": _scored(loop, trainee, score),
    }
    place = folder / DICTIONARY
    if not place.exists():
        save_transcoder(_plain(transcoder), place, config.run.format)
    partial = folder / f"{SUMMARY}.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / SUMMARY)
    return summary


def _plain(transcoder: Transcoder) -> Transcoder:
    """On the CPU, as files hold it."""
    return transcoder.to("cpu", torch.float32)
