"""The replacement model: a language model and the transcoders that stand in for its MLPs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement_models.checkpoint import load_model, load_tokenizer
from replacement_models.dictionaries.neurons import NEURONS, neurons
from replacement_models.dictionaries.partial import ERROR, check_fit, cover
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.folding import FoldedLayer, fold_all, virtual_weights
from replacement_models.formats.files import content_hash, load_transcoder, transcoder_folder
from replacement_models.formats.labels import read_labels
from replacement_models.gguf_file import gguf_file, note
from replacement_models.host import Host
from replacement_models.hosts import host_of
from replacement_models.hosts.as_described import check_layout
from replacement_models.hub import folder_of, local_path
from replacement_models.placing import DeviceMap, checked_map, device_named
from replacement_models.process import one_call
from replacement_models.recording import Recording, record
from replacement_models.speed.threads import one_thread
from replacement_models.transcoder import Transcoder, TranscoderLayer

EMBEDDED = Path(__file__).parent / "tiny"
"""The model that ships with the project."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, eq=False)
class ReplacementModel:
    """A host, a transcoder that fits it, and where both came from."""

    host: Host
    transcoder: Transcoder
    tokenizer: Any = None
    """A Hugging Face tokenizer; None when only token ids are used."""
    name: str = ""
    revision: str = ""
    folder: Path | None = None
    """Where the language model was loaded from, a file or a folder; None in memory."""
    transcoder_name: str = ""
    transcoder_hash: str = ""
    elsewhere: str = ""
    """What stands at layers without a dictionary, "error" or "neurons"; "" where none lacks one."""
    labels: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Names of features by (layer, feature), where the dictionary's folder has them."""
    dictionary_folder: Path | None = None
    """Where the dictionary was loaded from, the model's folder for its own neurons; None in memory.
    What is known of its features stands beside it."""
    corpus: Callable[[], Sequence[str | Sequence[int]]] | None = None
    """Makes prompts like those the model was trained on, to take means over; None where no such
    corpus is known."""
    swaps: Callable[[Any, Transcoder, int], Mapping[str, Any]] | None = None
    """Swaps what the model knows in so many pairs, through features of a dictionary of all its
    layers; None where nothing is known of it."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it was loaded, a line each."""
    loaded_with: Mapping[str, Any] | None = None
    """Arguments with which `load` gives it again, in any folder; None where it was made in
    memory."""

    def __repr__(self) -> str:
        places = ", ".join(map(str, self.host.devices))
        where = f"{str(self.dtype).removeprefix('torch.')} on {places}"
        source = f"{self.transcoder_name}, " if self.transcoder_name else ""
        return (
            f"ReplacementModel({self.name}, {self.host.family}, {source}{self.transcoder}, {where})"
        )

    def __post_init__(self) -> None:
        check_fit(self.host, self.transcoder, whole=True)

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        transcoders: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        lazy: bool | None = None,
        elsewhere: str | None = None,
        device_map: DeviceMap | None = None,
    ) -> "ReplacementModel":
        """Load a model and its transcoders.

        Args:
            name: Hugging Face folder, hub id `owner/name[@revision]` or GGUF file, whose weights
                are dequantised (`notes` says so); None is the model that ships with the project.
            transcoders: folder or hub id, in a format `formats/` knows; "neurons" is the model's
                own MLP neurons instead (neurons.py); None only with `name` None.
            device: a torch device.
            dtype: "float32", "float64" or "bfloat16".
            lazy: leave decoder rows on disk; None decides by size.
            elsewhere: what stands at layers that have no dictionary: "error", the MLP's output is
                no feature's, or "neurons", its own; None refuses such a set.
            device_map: spread the model over several devices instead: "auto", "balanced",
                "balanced_low_0", "sequential", or module to device, whole layers each ("disk": read
                when called for), as `from_pretrained` of transformers takes it. Dictionaries stand
                beside their layers.

        Returns:
            The model in evaluation mode, its dictionary beside it, both on `device` in `dtype`.

        Raises:
            ModelError: anything is missing, torn, unsupported, or does not fit the rest.
        """
        again: dict[str, Any] = {"name": _anywhere(name), "transcoders": _anywhere(transcoders)}
        again |= {"device": device, "dtype": dtype, "lazy": lazy, "elsewhere": elsewhere}
        again |= {} if device_map is None else {"device_map": device_map}
        if name is None:
            name, transcoders = EMBEDDED / "model", transcoders or EMBEDDED / "clt"
        elif transcoders is None:
            raise ModelError(
                f"{name}: transcoders is missing; name the folder or hub id of a set, or take the "
                'model\'s own with transcoders="neurons"'
            )
        spread = checked_map(name, device, device_map)
        where, kind = device_named(device), _dtype(dtype)
        file = gguf_file(name)
        folder, revision = (file, "") if file else folder_of(str(name), MODEL_FILES)
        bare = transcoders == NEURONS
        dictionary = None if bare else load_transcoder(transcoders, lazy)
        place = None if bare else transcoder_folder(transcoders)
        with one_call():  # transformers changes torch's default type, among much else, meanwhile
            host = host_of(load_model(folder, kind, where, spread))
            places = [block.device for block in host.blocks]
            fitted = (dictionary or neurons(host)).beside(places, kind)
            covering = cover(host, fitted, elsewhere)
            tokenizer = load_tokenizer(folder)
        return cls(
            host=host,
            transcoder=covering,
            elsewhere="" if elsewhere is None or covering is fitted else elsewhere,
            tokenizer=tokenizer,
            name=public_name(name),
            revision=revision,
            folder=folder,
            corpus=_own_corpus(folder, tokenizer),
            swaps=_own_swaps(folder, tokenizer),
            notes=_notes(file, dtype),
            loaded_with=again,
            **_origin(transcoders, place, folder),
        )

    @classmethod
    def without_dictionary(
        cls, name: str | Path | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> "ReplacementModel":
        """Load a model alone: every MLP's whole output is error. What training starts from.

        Args:
            name: as for `load`.
            device: a torch device.
            dtype: "float32", "float64" or "bfloat16".

        Returns:
            The model in evaluation mode, its parameters without gradients.

        Raises:
            ModelError: it is missing, torn or unsupported.
        """
        name = EMBEDDED / "model" if name is None else name
        where, kind = device_named(device), _dtype(dtype)
        file = gguf_file(name)
        folder, revision = (file, "") if file else folder_of(str(name), MODEL_FILES)
        with one_call():
            host = host_of(load_model(folder, kind, where))
            tokenizer = load_tokenizer(folder)
        host.model.requires_grad_(False)
        empty = [TranscoderLayer.empty(host.unembedding[0], 1) for _ in host.blocks]
        return cls(
            host=host,
            transcoder=PerLayerTranscoder(empty),
            elsewhere=ERROR,
            tokenizer=tokenizer,
            name=public_name(name),
            revision=revision,
            folder=folder,
            corpus=_own_corpus(folder, tokenizer),
            swaps=_own_swaps(folder, tokenizer),
            notes=_notes(file, dtype),
        )

    @classmethod
    @one_call()
    def from_huggingface(
        cls,
        model: Any,
        tokenizer: Any,
        transcoder: Transcoder,
        name: str = "",
        elsewhere: str | None = None,
    ) -> "ReplacementModel":
        """Wrap a Hugging Face model that is already in memory; it stays as it is.

        Args:
            model: a causal language model of a supported family, on one device or spread over
                several by accelerate in whole layers.
            tokenizer: its tokenizer, or None.
            transcoder: moved to the model's dtype, each layer to the device of the model's.
            name: what graphs call the model; its configuration's name if empty.
            elsewhere: as for `load`.

        Returns:
            The model itself, not a copy, with the dictionary beside it.

        Raises:
            ModelError: the family is not supported, or the transcoder does not fit.
        """
        host = host_of(model.eval())
        fitted = transcoder.beside([block.device for block in host.blocks], host.unembedding.dtype)
        covering = cover(host, fitted, elsewhere)
        return cls(
            host,
            covering,
            tokenizer,
            name or str(model.config.name_or_path),
            elsewhere="" if elsewhere is None or covering is fitted else elsewhere,
        )

    @one_call()
    def with_transcoders(
        self, transcoders: str | Path, lazy: bool | None = None, elsewhere: str | None = None
    ) -> "ReplacementModel":
        """Put another dictionary beside the same language model, whose weights are shared.

        Args:
            transcoders: as for `load`, and so are the others.
            lazy: leave decoder rows on disk; None decides by size.
            elsewhere: what stands at layers that have no dictionary.

        Returns:
            Another replacement model of the same host; this one stays as it is.

        Raises:
            ModelError: the dictionary is missing, torn, or does not fit the model.
        """
        bare = transcoders == NEURONS
        found = neurons(self.host) if bare else load_transcoder(transcoders, lazy)
        fitted = found.beside([block.device for block in self.host.blocks], self.dtype)
        covering = cover(self.host, fitted, elsewhere)
        place = None if bare else transcoder_folder(transcoders)
        given = {"transcoders": _anywhere(transcoders), "lazy": lazy, "elsewhere": elsewhere}
        return replace(
            self,
            transcoder=covering,
            elsewhere="" if elsewhere is None or covering is fitted else elsewhere,
            loaded_with=None if self.loaded_with is None else {**self.loaded_with, **given},
            **_origin(transcoders, place, self.folder),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights, recording and sweep."""
        return self.host.unembedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model over several devices, where its logits are."""
        return self.host.device

    @cached_property
    def folded(self) -> tuple[FoldedLayer, ...]:
        """Weights folded for the sweep; made at first use, kept with the model."""
        return fold_all(list(self.host.blocks), self.transcoder)

    @cached_property
    def virtual_weights(self) -> tuple[Tensor | None, ...]:
        """Products of the maps of neighbouring layers; made at first use, kept with the model."""
        return virtual_weights(self.folded)

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """(D,) mean unembedding row, taken off every token target."""
        return self.host.unembedding.mean(0)

    def tokenize(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt: text gets the model's BOS in front; ids are taken as they stand.

        Returns:
            Ids, one a position.

        Raises:
            ModelError: empty, too long, an id out of range, or text without a tokenizer.
        """
        ids = self._ids_of_text(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        if not ids:
            raise ModelError("prompt is empty; give some text or at least one token id")
        vocabulary, context = self.host.vocabulary, self.host.context
        wrong = [i for i in ids if not 0 <= i < vocabulary]
        if wrong:
            made = "; the tokenizer belongs to another model" if isinstance(prompt, str) else ""
            raise ModelError(f"prompt: token id {wrong[0]} is not in 0..{vocabulary - 1}{made}")
        if context is not None and len(ids) > context:
            raise ModelError(
                f"prompt: {len(ids)} tokens, but {self.name or 'the model'} reads at most {context}"
            )
        return tuple(ids)

    def token_string(self, token: int) -> str:
        """One vocabulary entry as text."""
        if self.tokenizer is None:
            return str(token)
        known = self._texts.get(token)
        if known is None:
            known = self._texts[token] = vocabulary_text(self.tokenizer, token)
        return known

    @cached_property
    def _texts(self) -> dict[int, str]:
        """Entries that were asked for: a label asks for several, over many prompts for the same."""
        return {}

    @one_call()
    def record(
        self,
        prompt: str | Sequence[int],
        keep_patterns: bool = True,
        last_logits: bool = False,
    ) -> Recording:
        """Run the unmodified model once on a prompt, under hooks that are always removed.

        Args:
            prompt: text, or token ids taken as they stand.
            keep_patterns: hold all attention patterns in memory; otherwise they are made anew,
                layer by layer, whenever they are needed.
            last_logits: only those of the last position: large vocabularies take long.

        Returns:
            Activations, norm denominators, residual streams and logits of every position, (P, ...).

        Raises:
            ModelError: the prompt cannot be tokenized or does not fit the model, or the model
                computes something else than its host says.
        """
        tokens = self.tokenize(prompt)
        recording = record(self.host, self.transcoder, tokens, keep_patterns, last_logits)
        with one_thread():  # of one position: threads would wait for each other
            check_layout(self.host, recording, self.transcoder)
        return recording

    def _ids_of_text(self, prompt: str) -> list[int]:
        if self.tokenizer is None:
            raise ModelError("prompt is text, but this model has no tokenizer; give token ids")
        if not prompt.strip():
            raise ModelError("prompt is empty; give some text or at least one token id")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ModelError(f"prompt is not valid Unicode ({error.reason})") from error
        ids: list[int] = list(self.tokenizer(prompt).input_ids)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _own_corpus(folder: Path, tokenizer: Any) -> Callable[[], Sequence[str]] | None:
    """Where the corpus of the model that ships with the project is; None for any other model."""
    if folder.resolve() != (EMBEDDED / "model").resolve():
        return None
    from replacement_models.tiny.recipe.corpus import own_sentences

    return partial(own_sentences, tokenizer)


def _own_swaps(
    folder: Path, tokenizer: Any
) -> Callable[[Any, Transcoder, int], Mapping[str, Any]] | None:
    """What swaps the facts of the model that ships with the project; None for any other model."""
    if folder.resolve() != (EMBEDDED / "model").resolve():
        return None
    return partial(_swapped, tokenizer)


def _swapped(tokenizer: Any, model: Any, transcoder: Transcoder, count: int) -> Mapping[str, Any]:
    """Import it when it is asked for: loading a model shall not wait."""
    from replacement_models.tiny.recipe.own_swaps import own_swaps

    return own_swaps(tokenizer, model, transcoder, count)


def _anywhere(name: str | Path | None) -> str | None:
    """What names the same in every working folder."""
    if name is None or name == NEURONS:
        return name
    path = local_path(name)
    return str(path.absolute() if path.exists() else name)


def _origin(transcoders: str | Path, place: Path | None, model: Path | None) -> dict[str, Any]:
    """Fields that say where a dictionary came from; a model's own neurons have no place."""
    return {
        "transcoder_name": public_name(transcoders),
        "transcoder_hash": "" if place is None else content_hash(place),
        "labels": {} if place is None else read_labels(place),
        "dictionary_folder": place or model,
    }


def _notes(file: Path | None, dtype: str) -> tuple[str, ...]:
    found = None if file is None else note(file, dtype)
    return () if found is None else (found,)


def vocabulary_text(tokenizer: Any, token: int) -> str:
    """One entry of a tokenizer's vocabulary as text.

    Returns:
        What it decodes to; where that is no text of its own, as for part of a character, its name.
    """
    text: str = tokenizer.decode([token])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        text = str(tokenizer.convert_ids_to_tokens(token) or f"[{token}]")
    return text


def public_name(name: str | Path) -> str:
    """Hub ids as they are; of paths the last two parts, so that graphs hold no home folders."""
    path = local_path(name)
    if not path.exists():
        return str(name)
    if path.resolve().is_relative_to(EMBEDDED.resolve()):
        return f"embedded/{path.name}"
    return "/".join(path.resolve().parts[-2:])
