"""A Hugging Face folder or GGUF file as data: no code of it runs, no weight of it is made up.

Every `from_pretrained` of the package is in here, told not to run what a folder brings. A folder
that asks for its own code is refused by name before transformers sees it, since transformers
would ask on the terminal, or (`custom_generate`, before version 5) not ask at all.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from replacement_models.errors import ModelError
from replacement_models.formats.storage.finite import finite
from replacement_models.gguf_file import (
    SUFFIX,
    bar_hidden,
    from_pretrained_options,
    unpacked,
    unplaced_tensors,
)
from replacement_models.hosts import check_family
from replacement_models.hosts.weights import store_outputs_first
from replacement_models.placing import DeviceMap, check_covered
from replacement_models.process import quiet_transformers

AS_DATA: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Told to every `from_pretrained`."""
CONFIGURATIONS = (
    *("config.json", "tokenizer_config.json", "generation_config.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
"""Where a folder can name classes of its own."""
CODE_KEY, CODE_FILE = "auto_map", Path("custom_generate") / "generate.py"
ADAPTER = "adapter_config.json"
HARMLESS = re.compile(
    r"(^|\.)(attn|attention)\.(bias|masked_bias)$"  # causal masks that GPT-like models once saved
    r"|rotary_emb\.inv_freq$"  # rotary frequencies, which the configuration says
    r"|(^|\.)position_ids$"  # 0, 1, 2, ...
)
"""Tensors that old files hold and no model needs. Beside them, what transformers knows: weights
tied to others, and each class's `_keys_to_ignore_on_load_missing` and `_unexpected`."""
EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
"""Layer, number and weight in the name of an expert's tensor."""
DEEPEST = 10_000
"""Layers of a model: more is a mistake, and would be built without end."""
NAMED = 3
"""Tensors that an error names."""


def load_model(
    place: Path, dtype: torch.dtype, device: torch.device, device_map: DeviceMap | None = None
) -> Any:
    """The model of a Hugging Face folder or a GGUF file.

    Args:
        place: a folder, or a GGUF file.
        dtype: of its weights.
        device: where they come to lie.
        device_map: where each part of the model does instead.

    Returns:
        A causal language model of transformers, in evaluation mode.

    Raises:
        ModelError: it brings code, is of no supported family, is torn, its weights are not those
            that its configuration asks for, or are no finite numbers.
    """
    folder, options = from_pretrained_options(place)
    if not options and not (folder / "config.json").is_file():
        inside = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
        hint = f"; name the file in it, {inside[0]}" if inside else ""
        raise ModelError(f"{folder}: is no Hugging Face model folder (no config.json){hint}")
    refuse_code(folder)
    refuse_elsewhere(folder)
    try:
        configuration, kind = _classes(folder, bool(options))
        config = configuration.from_pretrained(folder, **AS_DATA, **options)
        check_family(config.model_type)
        check_depth(place, config)
        # Some quantised models can be placed only as they are loaded.
        quantised = getattr(config, "quantization_config", None) is not None
        model, found = _weights(
            kind,
            folder,
            options,
            config=config,
            dtype=dtype,
            device_map=device_map or ({"": device} if quantised else None),
        )
        if options:
            found["unexpected_keys"] = {*found["unexpected_keys"], *unplaced_tensors(place)}
        check_weights(place, found)
        check_covered(place, device_map, model)
        if not quantised:
            check_finite(place, model)
            if device_map is None:
                model.to(device)
            store_outputs_first(model)
        return model
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if odd := [] if options else odd_experts(folder):
            reason = f"weights of experts differ from the others': {_first(odd)}"
        raise ModelError(f"{place}: the model cannot be loaded ({reason})") from error


def _classes(folder: Path, from_file: bool) -> tuple[Any, Any]:
    """Of configuration and model: transformers' own, or those of what it does not know."""
    if not from_file and _model_type(folder / "config.json") == "tracr":
        from replacement_models.tracr_model import TracrConfig, TracrForCausalLM

        return TracrConfig, TracrForCausalLM
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoConfig, AutoModelForCausalLM


def _model_type(configuration: Path) -> str | None:
    """What it names; None where it cannot be read, which transformers says better."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(configuration.read_text("utf-8"))
        return found.get("model_type") if isinstance(found, dict) else None
    return None


def _weights(
    kind: Any, folder: Path, options: dict[str, Any], **how: Any
) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of the weights it found."""
    how |= options | unpacked() if options else {"use_safetensors": True}
    with quiet_transformers(), bar_hidden() if options else nullcontext():
        model, found = kind.from_pretrained(
            folder,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_weights` says which, where transformers does not
            **AS_DATA,
            **how,
        )
    return model.eval(), found


def load_tokenizer(place: Path) -> Any:
    """The model's tokenizer.

    Returns:
        A tokenizer of transformers; None where there is none, so that token ids still work.

    Raises:
        ModelError: it brings code, or is torn.
    """
    folder, options = from_pretrained_options(place)
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not options and not any((folder / name).is_file() for name in names):
        return None
    refuse_code(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **AS_DATA, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{place}: the tokenizer cannot be loaded ({reason})") from error


def refuse_code(folder: Path) -> None:
    """Refuse a folder that asks for code of its own, or for another model beneath an adapter.

    Raises:
        ModelError: which file asks, and for what.
    """
    for name in CONFIGURATIONS:
        for asked in _code_named(folder / name):
            raise ModelError(
                f"{folder / name}: {CODE_KEY} names code to run ({brief(asked)}), and no code of a "
                f"model's folder is run: take {CODE_KEY} out of the file if transformers has the "
                "model's own class, or another copy of the model"
            )
    if (folder / CODE_FILE).exists():
        raise ModelError(
            f"{folder / CODE_FILE}: no code of a model's folder is run: remove it, or take another "
            "copy of the model"
        )
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder / ADAPTER}: adapters are no part of what is traced, and may name a model "
            "elsewhere: merge them into the weights (peft's merge_and_unload), or remove it"
        )


def _code_named(file: Path) -> Iterator[Any]:
    """What stands under `CODE_KEY`, however deep. What is torn, transformers says."""
    try:
        parts = [json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, RecursionError):
        return
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get(CODE_KEY):
                yield part[CODE_KEY]
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def brief(value: Any) -> str:
    """JSON, at most 100 characters of it."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_weights(place: Path, found: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those that the configuration asks for.

    Args:
        place: the folder or file.
        found: what `from_pretrained` gives with `output_loading_info`: `missing_keys`,
            `unexpected_keys`, `mismatched_keys` (name, shape in the file, shape asked for) and
            `error_msgs`.

    Raises:
        ModelError: names the first tensors.
    """
    missing = sorted(found["missing_keys"])
    unexpected = sorted(name for name in found["unexpected_keys"] if not HARMLESS.search(name))
    misshapen = sorted(
        f"{name} is {tuple(held)}, expected {tuple(asked)}"
        for name, held, asked in found["mismatched_keys"]
    )
    for names, wrong in (
        (misshapen, "have another shape than its configuration asks for"),
        (missing, "are missing, which its configuration asks for"),
        (unexpected, "have no place in the model that its configuration describes"),
        (found.get("error_msgs") or (), "cannot be loaded"),
    ):
        if names:
            raise ModelError(
                f"{place}: weights {wrong}: {_first(names)}; the files are not of one model or "
                "not whole: copy or download it again"
            )


def check_depth(place: Path, config: Any) -> None:
    """Refuse a number of layers that nobody can build.

    Raises:
        ModelError: says it.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers is not None and (type(layers) is not int or not 0 < layers <= DEEPEST):
        raise ModelError(
            f"{place}: its configuration has {layers!r:.80} layers, expected 1 to {DEEPEST}"
        )


def check_finite(place: Path, model: Any) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    Raises:
        ModelError: names the tensor, and its file where the file calls it the same.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta:  # offloaded weights stay put away
            finite(tensor, _file_of(place, name), name)


def _file_of(place: Path, name: str) -> Path:
    """The safetensors file that holds a tensor; the folder where none does."""
    for path in sorted(place.glob("*.safetensors")) if place.is_dir() else ():
        with suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return path
    return place


def refuse_elsewhere(folder: Path) -> None:
    """Refuse an index of weights that names files outside the folder.

    Raises:
        ModelError: which index, and which file.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            continue  # transformers says what is wrong with it
        for name in listed:
            if not isinstance(name, str) or Path(name).name != name:
                raise ModelError(
                    f"{index}: weight_map names {brief(name)}, expected files in this folder: copy "
                    "or download the model again"
                )


def odd_experts(folder: Path) -> list[str]:
    """What keeps the experts of a layer from being put together, as transformers 5 does.

    Returns:
        Names of tensors that only other experts of their layer have, or have in another shape.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return []
    parts = [part for name in shapes if (part := EXPERT.fullmatch(name))]
    counts = Counter((part[1], part[3], str(shapes[part[0]])) for part in parts)
    experts = {(part[1], part[2]) for part in parts}
    odd = []
    for layer, weight in dict.fromkeys((part[1], part[3]) for part in parts):
        usual = max((n, shape) for (*at, shape), n in counts.items() if at == [layer, weight])[1]
        names = [f"{layer}{number}{weight}" for place, number in experts if place == layer]
        odd += [name for name in names if str(shapes.get(name)) != usual]
    return sorted(odd)


def _first(names: Iterable[str]) -> str:
    """The first few of some names, on one line."""
    lines = [" ".join(name.split()) for name in names]
    more = len(lines) - NAMED
    return ", ".join(lines[:NAMED]) + (f" and {more} more" if more > 0 else "")
