"""Every setting of a training run, as values that are checked where they are made.

A run's file in YAML has the sections below by name; `template` writes one with all of them. Every
field says what it is in the line under it, with its unit.
"""

from dataclasses import dataclass, field
from typing import Any

from replacement_models.errors import ModelError
from replacement_models.training.settings import Section, setting

KINDS = ("per_layer", "cross_layer", "sae")
ACTIVATIONS = ("jump_relu", "relu", "topk", "batch_topk", "gated")
STARTS = ("auto", "neurons", "clusters", "data", "random")
SITES = ("mlp_out", "attn_out", "resid_pre", "resid_mid")
PRECISIONS = ("auto", "float32", "bfloat16")
FLOATS = ("float32", "float16", "bfloat16")
PER_TOKEN = ("relu", "gated")
"""Activations whose only hold on L0 is the penalty."""


@dataclass(frozen=True)
class DictionaryConfig(Section):
    """What is trained."""

    kind: str = setting("per_layer", among=KINDS)
    """per_layer and cross_layer transcoders stand in for MLPs, an sae for what it reads."""
    features: int = setting(4096, least=1)
    """Features a layer."""
    widths: tuple[int, ...] | None = setting(None, least=1)
    """Features of each layer trained, at most `features`; null is so many in all of them."""
    layers: tuple[int, ...] | None = setting(None, least=0)
    """Layers that get a dictionary; null is all of the model's."""
    span: int | None = setting(None, least=1)
    """cross_layer: layers a feature writes to, its own included; null is its own and all later."""
    tied: bool = setting(False)
    """cross_layer: one decoder row a feature, scaled for each layer it writes to."""
    skip: bool = setting(False)
    """A linear map from what is read to what is written beside the features (transcoders)."""
    read: str = setting("normed", among=("residual", "normed_unweighted", "normed"))
    """Where a transcoder reads: before the MLP's norm, after its division, or as the MLP."""
    write: str = setting("mlp_output", among=("mlp_output", "post_norm"))
    """What a transcoder reconstructs: the MLP's output before or after a post-norm."""
    site: str = setting("mlp_out", among=SITES)
    """What an sae reads and reconstructs, at every layer."""
    activation: str = setting("jump_relu", among=ACTIVATIONS)
    """Which features fire: above a threshold each, above zero, the k largest of a token or of a
    batch, or where a gate is open. batch_topk and gated are written as the thresholds they are."""
    l0: tuple[float, ...] = setting((16.0,), above=0.0)
    """Active features a token and layer, met within 10 %: one number, or one a layer trained."""
    prefixes: tuple[int, ...] = setting((), least=1)
    """Matryoshka: the first so many features reconstruct alone too, as [256, 1024]."""

    def check(self) -> None:
        """Refuse what contradicts itself."""
        if self.kind != "cross_layer" and (self.span is not None or self.tied):
            name, value = ("tied", self.tied) if self.tied else ("span", self.span)
            raise self.wrong(name, f"none, since kind is {self.kind}", value)
        if self.kind == "sae" and self.skip:
            raise self.wrong("skip", "false, since an sae would copy what it reads", True)
        if max(self.l0) >= self.features:
            raise self.wrong("l0", f"less than the {self.features} features", max(self.l0))
        if max(self.widths or (1,)) > self.features:
            raise self.wrong("widths", f"at most features, {self.features}", self.widths)
        if self.activation == "topk" and any(value != int(value) for value in self.l0):
            raise self.wrong("l0", "whole numbers for topk", self.l0)
        if list(self.prefixes) != sorted(set(self.prefixes)):
            raise self.wrong("prefixes", "rising numbers", self.prefixes)
        if self.prefixes and self.prefixes[-1] >= self.features:
            raise self.wrong("prefixes", f"less than the {self.features} features", self.prefixes)

    def features_of(self, layers: int) -> tuple[int, ...]:
        """Features of each of so many layers, from below."""
        return (self.features,) * layers if self.widths is None else self.widths


@dataclass(frozen=True)
class StartConfig(Section):
    """What training starts from; inputs and outputs are scaled to norms of √D first."""

    features: str = setting("auto", among=STARTS)
    """First encoder rows: the MLP's own neurons, detectors of clusters, tokens, or at random; auto
    takes neurons where an MLP of a known kind stands behind, else tokens."""
    dictionary: str | None = setting(None)
    """Folder of a finished dictionary of jump_relu features that layers start from; a run so goes
    on from another under other settings. Its layers may differ in width; where one has fewer
    features than are trained, the others start as new ones on what those leave unexplained. Null is
    none."""
    dictionary_layers: tuple[int, ...] | None = setting(None, least=0)
    """Layers that start from it; the others start on what it leaves unexplained. Null is all."""
    tokens: int = setting(16384, least=64)
    """Tokens that norms, skip and first features are read off."""
    decoder: bool = setting(True)
    """Fit the first decoder to the first features by least squares."""
    threshold: float = setting(0.7, above=0.0)
    """First threshold, in units of a pre-activation whose input has norm √D and its row norm 1."""
    detector_steps: int = setting(800, least=1)
    """clusters: steps that fit the detectors."""
    clustered: float = setting(0.7, above=0.0, most=1.0)
    """clusters: clusters sought, as a share of the features; the others start at tokens."""

    def check(self) -> None:
        """Nothing contradicts itself here."""


@dataclass(frozen=True)
class LossConfig(Section):
    """What is minimised: squared error over the variance, summed over what is written, and more."""

    penalty: str = setting("tanh", among=("tanh", "tanh_quad", "l1"))
    """On activation times decoder norm: saturating, saturating and dearer for features that fire
    often, or proportional. A token's sum."""
    frequent: float = setting(0.01, above=0.0)
    """tanh_quad: a feature that fires on this share of the tokens costs twice as much a firing, one
    that fires on k times the share 1 + k times as much."""
    tanh_scale: float = setting(1.0, above=0.0)
    """The factor inside tanh; the larger, the more a small activation costs beside a large one."""
    penalty_start: tuple[float, ...] = setting((3e-4,), above=0.0)
    """First weight of the penalty, one number or one a layer trained; then it follows L0."""
    gain: float = setting(1.0, least=0.0)
    """How fast that weight follows: natural logarithms in a tenth of the run at e times the L0."""
    nudge: float = setting(0.0, least=0.0)
    """How far all thresholds of a layer move a step at e times the L0, in units of a
    pre-activation; 0 leaves L0 to the penalty, which spares rare features, until the end."""
    bandwidth: float = setting(0.4, above=0.0)
    """Width of the window around a threshold through which it learns."""
    pre_activation: float = setting(6e-3, least=0.0)
    """Weight of what dead features lack to their thresholds, times decoder norms."""
    aux: float = setting(1 / 32, least=0.0)
    """Weight of the error that the strongest dead features leave of what is left over (AuxK)."""
    aux_k: int = setting(64, least=1)
    """Dead features a token that may help so."""
    dead_after: int = setting(50_000, least=1)
    """Tokens without firing after which a feature counts as dead."""
    revive_every: int = setting(200, least=0)
    """Steps between restarts of dead features at badly explained tokens, in the first 60 % of a
    run; 0 is never."""
    outliers: float = setting(20.0, above=0.0)
    """A token of more than so many times the median square norm weighs less, in inverse measure."""

    def check(self) -> None:
        """Nothing contradicts itself here."""


@dataclass(frozen=True)
class OptimiserConfig(Section):
    """Adam."""

    rate: float = setting(1e-3, above=0.0)
    """Peak learning rate."""
    warmup: float = setting(0.02, least=0.0, most=1.0)
    """Share of the steps in which it rises."""
    decay: float = setting(0.4, least=0.0, most=1.0)
    """Share of the steps in which it falls, at the end, linearly."""
    betas: tuple[float, ...] = setting((0.9, 0.99), least=0.0, most=0.99999)
    """Decay of both averages."""
    clip: float | None = setting(1.0, above=0.0)
    """Largest norm of all gradients together; null is none."""

    def check(self) -> None:
        """Two betas."""
        if len(self.betas) != 2:
            raise self.wrong("betas", "two numbers", self.betas)


@dataclass(frozen=True)
class DivergenceConfig(Section):
    """An end-to-end stage: the model with all its MLPs replaced is to say what it says itself."""

    share: float = setting(0.0, least=0.0, most=1.0)
    """Share of the steps, at the end, that have it; 0 is no such stage."""
    weight: float = setting(1.0, least=0.0)
    """Of the divergence, in nats a token."""
    sharp: float = setting(0.0, least=0.0)
    """Of the same between distributions sharpened four times, in units of `weight`: it is about
    which token comes first where several are about as likely."""
    rows: int = setting(4, least=1)
    """Rows of text a step."""

    def check(self) -> None:
        """Nothing contradicts itself here."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Text, and what the model makes of it."""

    corpus: str | None = setting(None)
    """File or folder of text, JSONL or Parquet, or hf:owner/name[:config][@split]; null is the
    embedded model's own."""
    field: str = setting("text")
    """Key or column that holds the text."""
    lines: bool = setting(False)
    """Every line of plain text is a document."""
    alone: bool = setting(False)
    """Every document begins a row, as a prompt does."""
    context: int = setting(256, least=2)
    """Tokens a row, BOS included; at most what the model reads."""
    max_tokens: int | None = setting(None, least=1)
    """Read at most so many tokens of the corpus."""
    skip_positions: int = setting(1, least=0)
    """First positions of a row that take no part, beside all special tokens."""
    rows: int = setting(16, least=1)
    """Rows a forward pass; part of what makes a run repeat exactly."""
    buffer: int = setting(32768, least=64)
    """Tokens of a chunk; batches are drawn from halves of two chunks."""
    held_out: float = setting(0.02, above=0.0, most=0.5)
    """Share of the rows that figures are taken on, never trained on; thresholds are set on them
    and, where they are less than 16,384 tokens, on text not yet read beside them."""
    held_out_tokens: int = setting(32768, least=64)
    """At most so many tokens of them."""
    prompts: int = setting(4, least=0)
    """Prompts out of held-out text that the dictionary is scored on by their graphs; 0 is none."""
    cache: str | None = setting(None)
    """Folder in which what the model makes of the text is kept; null makes it anew each time."""
    cache_type: str = setting("float32", among=FLOATS)
    """Numbers in the cache; only float32 gives what no cache gives."""

    def check(self) -> None:
        """Nothing contradicts itself here."""


@dataclass(frozen=True)
class RunConfig(Section):
    """How long, how fast, what is written down."""

    tokens: int = setting(2_000_000, least=1)
    """Tokens trained on; the corpus is read again where it has fewer."""
    batch: int = setting(2048, least=8)
    """Tokens a step."""
    seed: int = setting(0, least=0)
    """Of everything drawn."""
    device: str = setting("cpu")
    """cpu, cuda, cuda:1, ..."""
    dtype: str = setting("float32", among=("float32", "bfloat16"))
    """Numbers of the model; the dictionary is float32."""
    threads: int | None = setting(None, least=1)
    """Threads; null leaves them as they are."""
    precision: str = setting("auto", among=PRECISIONS)
    """Of the encoder's product: auto takes bfloat16 where a probe finds it faster."""
    sparse_below: float = setting(0.05, least=0.0, most=1.0)
    """Density of activations below which a step computes with the active ones alone."""
    log_every: int = setting(50, least=1)
    """Steps between lines of log.jsonl."""
    checkpoint_every: int = setting(500, least=1)
    """Steps between checkpoints; the last two are kept."""
    measure_every: int = setting(0, least=0)
    """Steps between measurements on held-out text, into log.jsonl: errors, and of transcoders what
    the model says and what graphs score with every MLP replaced; 0 is at the end alone."""
    tensorboard: bool = setting(False)
    """Write TensorBoard's files too."""
    wandb: str | None = setting(None)
    """Project of Weights & Biases to log to as well."""
    format: str = setting("tracer")
    """Layout of the finished dictionary: tracer, circuit-tracer, ..."""
    drop_below: float = setting(0.0, least=0.0, most=100_000.0)
    """Leave out of the finished dictionary the features that fire on fewer than so many of 100,000
    tokens, so that layers may differ in width; 0 keeps all. Counted at the end, on the text trained
    on, once through it at most."""
    set_thresholds: bool = setting(True)
    """Move thresholds at the end until each layer's L0 is what was asked for; false leaves them as
    they were trained, where the penalty alone decides L0 or another run goes on from this one."""

    def check(self) -> None:
        """Nothing contradicts itself here."""


@dataclass(frozen=True)
class RanksConfig(Section):
    """Processes that train together, as many as `tracer train --ranks` or torchrun starts."""

    shards: int | None = setting(None, least=1)
    """Ranks that share out the features of every layer; all of them together read so many times the
    tokens of one (data parallel). null is all ranks: what takes least memory a rank."""
    wait: float = setting(3600.0, above=0.0)
    """Seconds that ranks wait for one of them, while it reads the corpus, say, or scores graphs."""

    def check(self) -> None:
        """How many there are is known at the start of a run."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """One training run."""

    output: str = setting("dictionary")
    """Folder of the run: checkpoints, log, curves, and the finished dictionary in it."""
    model: str | None = setting(None)
    """Folder, hub id or GGUF file; null is the embedded model."""
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    start: StartConfig = field(default_factory=StartConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    def check(self) -> None:
        """What sections say of each other."""
        if self.divergence.share and self.dictionary.kind == "sae":
            raise ModelError(
                "divergence.share: expected 0, since an sae stands in for no MLP, got "
                f"{self.divergence.share}"
            )
        if self.dictionary.tied and self.start.dictionary is not None:
            raise ModelError(
                "dictionary.tied: expected false with start.dictionary, whose features have a "
                "decoder row for each layer, got True"
            )
        if self.dictionary.activation == "batch_topk" and not self.run.set_thresholds:
            raise ModelError(
                "run.set_thresholds: expected true with batch_topk, which is written as the "
                "threshold found at the end, got False"
            )
        if self.data.corpus is None and self.model is not None:
            raise ModelError(
                "data.corpus: expected a file, a folder or hf:owner/name, since only the embedded "
                "model brings text of its own, got null"
            )
        if self.run.batch * 2 > self.data.buffer:
            raise ModelError(
                f"run.batch: expected at most half of data.buffer ({self.data.buffer}), got "
                f"{self.run.batch}"
            )

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.run.tokens // self.run.batch)

    def as_mapping(self) -> dict[str, Any]:
        """Sections and fields by name, as YAML and JSON hold them."""
        return {key: _plain(value) for key, value in self.__dict__.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return {key: _plain(inner) for key, inner in value.__dict__.items()}
    return list(value) if isinstance(value, tuple) else value
