"""From a configuration to a finished dictionary; called again, an interrupted run goes on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
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
from replacement_models.training.finish import Worth, stands_in, worth
from replacement_models.training.fold import folded
from replacement_models.training.harvest import Harvester
from replacement_models.training.interrupt import between_steps
from replacement_models.training.journal import Journal, check_loggers
from replacement_models.training.loop import CHECKPOINTS, Loop
from replacement_models.training.memory import check_memory
from replacement_models.training.pool import Batches, Rows, generator
from replacement_models.training.product import chosen
from replacement_models.training.scales import Scale
from replacement_models.training.source import Cache, Source, manifest
from replacement_models.training.sparsity import calibrate
from replacement_models.training.start import started
from replacement_models.training.text import packed
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring, check_host
from replacement_models.transcoder import Transcoder

CONFIG, SUMMARY, DICTIONARY = "config.json", "summary.json", "transcoder"
START, REVIVE = 10, 11
"""What generators are for; part of their seeds."""
MEASURED_ROWS = 64
"""Held-out rows that the replaced model is compared on."""
MAY_CHANGE = {
    *("run.log_every", "run.checkpoint_every", "run.tensorboard", "run.wandb", "run.threads"),
    "output",
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

    Args:
        config: everything there is to say.
        told: called with words for what is done, and how much of how much.
        score: measures a model with its dictionary, before the end-to-end stage and at the end.

    Returns:
        Where the dictionary is and what it is worth.

    Raises:
        ModelError: a setting does not fit the model or the machine, the corpus cannot be read, or
            the folder holds a run with other settings.
        KeyboardInterrupt: the run was stopped; the same call goes on with it.
    """
    check_loggers(config)
    if config.run.format not in WRITABLE:
        raise ModelError(
            f"run.format: expected one of {', '.join(sorted(WRITABLE))}, got {config.run.format!r}"
        )
    folder = _begun(config)
    with one_writer(folder, "output"), one_call():
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        return _train(config, folder, told, score)


def _train(config: TrainConfig, folder: Path, told: Told, score: Score | None) -> Run:
    told("Loading the model", 0, 0)
    model = ReplacementModel.without_dictionary(config.model, config.run.device, config.run.dtype)
    wiring = _wired(config, model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config.as_mapping(), indent=2) + "\n")
    source = _source(config, model, wiring, folder, told)
    loop = _loop(config, folder, model, wiring, source, told)
    loop.on_divergence = lambda: _scored(loop, score)
    journal = Journal(folder, config, loop.done)
    steps = config.steps
    try:
        with between_steps() as asked:
            loop.run(journal, asked, lambda line: told(_words(line), line["step"], steps))
    finally:
        journal.close()
    told("Measuring", steps, steps)
    return _finished(loop, score)


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


def _wired(config: TrainConfig, model: ReplacementModel) -> Wiring:
    """Layers, once everything that the model decides has been checked."""
    host = model.host
    wiring = Wiring.of(config.dictionary, len(host.blocks))
    check_host(config.dictionary, host.blocks[0].parallel)
    check_memory(config, wiring, host.d_model)
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


def _loop(
    config: TrainConfig,
    folder: Path,
    model: ReplacementModel,
    wiring: Wiring,
    source: Source,
    told: Told,
) -> Loop:
    """A new loop, or the one that the last checkpoint is of."""
    run = config.run
    path = checkpoint.newest(folder / CHECKPOINTS)
    state = None if path is None else checkpoint.read_state(path)
    if state is not None:
        _check_state(path, state)
    told("Running the model", 0, 0)
    held = source.of_rows(source.rows.held_out, config.data.held_out_tokens)
    if len(held) < 2:
        raise ModelError("data.held_out: no token is left to measure on; give more text")
    if state is None:
        sample = _sample(config, source)
        drawn = generator(run.seed, START)
        trainee = started(config, wiring, model.host, sample, drawn, told)
        like = trainee.b_dec[0].detach()
        precision = chosen(run.precision, run.batch, config.dictionary.features, like)
    else:
        trainee, precision = _empty(config, wiring, held), str(state["precision"])
    loop = Loop(
        config,
        folder,
        model,
        trainee,
        source,
        Batches(source, source.rows.chunks, run.batch, run.seed),
        held,
        precision,
        generator(run.seed, REVIVE),
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


def _sample(config: TrainConfig, source: Source) -> Batch:
    """Tokens of the first pools, in no order."""
    wanted = config.start.tokens
    size = min(config.run.batch, wanted)
    batches = Batches(source, source.rows.chunks, size, config.run.seed)
    found: list[Batch] = []
    while sum(map(len, found)) < wanted and batches.place.pool < 2 * source.rows.chunks:
        found.append(next(batches))
    from replacement_models.training.harvest import joined

    return joined(found).rows(slice(0, wanted))


def _empty(config: TrainConfig, wiring: Wiring, like: Batch) -> Trainee:
    """Room for what a checkpoint holds."""

    def scales(tensors: Any) -> list[Scale]:
        return [Scale(torch.zeros_like(x[0]), x.new_zeros(()), x.new_zeros(())) for x in tensors]

    return Trainee(config, wiring, scales(like.inputs), scales(like.outputs))


def _words(line: Mapping[str, Any]) -> str:
    """A step's numbers for a terminal."""
    dead = f", dead {100 * line['dead']:.1f} %" if line["dead"] else ""
    away = f", KL {line['divergence']:.3f}" if "divergence" in line else ""
    return (
        f"error {line['error']:.4f}, L0 {line['l0']:.1f}{dead}{away}, "
        f"{line['tokens_per_second']:,.0f} tokens/s"
    )


def _scored(loop: Loop, score: Score | None) -> dict[str, Any]:
    """What the dictionary is worth as it is now, in figures that need the whole model."""
    config, model = loop.config, loop.model
    assert model is not None
    transcoder = folded(loop.trainee, len(model.host.blocks), model.name)
    if config.dictionary.kind == "sae":
        return {}
    standing = replace(model, transcoder=transcoder.to(model.device, model.dtype))
    found: dict[str, Any] = dict(stands_in(standing, _held_rows(loop), loop.where))
    return found if score is None else found | dict(score(standing, _prompts(loop)))


def _prompts(loop: Loop) -> list[list[int]]:
    """The beginnings of some held-out rows."""
    assert loop.source is not None
    rows = loop.source.tokens[loop.source.rows.held_out, :PROMPT]
    some = rows[(rows >= 0).all(1)][: loop.config.data.prompts]
    return [[int(token) for token in row] for row in some]


def _held_rows(loop: Loop) -> Iterator[np.ndarray]:
    """Held-out rows of text, those without fill, some at a time."""
    assert loop.source is not None
    rows = loop.source.tokens[loop.source.rows.held_out[:MEASURED_ROWS]]
    lengths = (rows >= 0).sum(1)
    for length in sorted(set(lengths.tolist())):
        if length > 1:
            some = rows[lengths == length][:, :length]
            for begin in range(0, len(some), loop.config.divergence.rows):
                yield some[begin : begin + loop.config.divergence.rows]


def _finished(loop: Loop, score: Score | None) -> Run:
    """Calibrate, measure, write; a run that has been finished is read again."""
    config, model, folder = loop.config, loop.model, loop.folder
    assert model is not None
    assert loop.source is not None
    moved = calibrate(loop.trainee, loop.held)
    transcoder = folded(loop.trainee, len(model.host.blocks), model.name)
    found = worth(
        transcoder,
        loop.trainee.wiring.layers,
        loop.trainee.writes,
        loop.held,
        config.loss.outliers,
    )
    summary = {
        "steps": loop.done,
        "tokens": loop.done * config.run.batch,
        "seconds": loop.seconds,
        "cpu_seconds": loop.cpu_seconds,
        "harvested_tokens": loop.source.harvested,
        "precision": loop.precision,
        "layers": list(loop.trainee.wiring.layers),
        "wanted_l0": list(loop.trainee.l0),
        "thresholds_moved": moved,
        **asdict(found),
        **loop.notes,
        "replaced": _scored(loop, score),
    }
    place = folder / DICTIONARY
    if not place.exists():
        save_transcoder(_plain(transcoder), place, config.run.format)
    partial = folder / f"{SUMMARY}.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / SUMMARY)
    return Run(folder, place, config, found, summary)


def _plain(transcoder: Transcoder) -> Transcoder:
    """On the CPU, as files hold it."""
    return transcoder.to("cpu", torch.float32)
