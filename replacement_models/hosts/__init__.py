"""Model families, one module each: a function from a Hugging Face model to a `Host`.

To add a family, write a module with one function like those beside this file and list it in
`support.py` under the `model_type` of its configurations. The laws in tests/test_laws.py then say
whether it is right.
"""

from dataclasses import replace

import torch
from torch import nn

from replacement_models.errors import ModelError
from replacement_models.host import Host
from replacement_models.hosts.support import HOSTS, Support, support
from replacement_models.recording import norms

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
__all__ = ["HOSTS", "Support", "check_family", "host_of", "support"]


def host_of(model: nn.Module) -> Host:
    """Name the parts of a Hugging Face causal language model.

    Raises:
        ModelError: the family is not supported, or this model is not built as its family is.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    check_family(family)
    try:
        host = HOSTS[family](model)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} is not built as models of type {family!r} are ({error}); give "
            "the causal language model itself, without a wrapper"
        ) from error
    _check_norms(host)
    _check_devices(host)
    if host.unembedding.dtype not in DTYPES:
        raise ModelError(
            f"model is in {host.unembedding.dtype}, expected one of {DTYPES}; load it with one"
        )
    return replace(host, final_norm=host.final_norm.to(host.device))


def _check_devices(host: Host) -> None:
    """A layer stands on one device; parameters on the meta device come to it when called."""
    for layer, block in enumerate(host.blocks):
        parts = [block.value, block.output, *(norm.weight for norm in norms(block))]
        devices = {str(part.device) for part in (*parts, *block.module.parameters())} - {"meta"}
        if len(devices) > 1:
            raise ModelError(
                f"layer {layer} of the model is spread over {', '.join(sorted(devices))}, expected "
                "one device a layer (Nemotron-H: a mixer and the MLP above it): give a device_map "
                "that names whole layers"
            )


def _check_norms(host: Host) -> None:
    """Norms must compute what their weights say, in this release of transformers too."""
    found = [norm for block in host.blocks for norm in norms(block)]
    first = [] if host.embedding_norm is None else [host.embedding_norm]
    for norm in (*first, *found, host.final_norm):
        if norm.fixed:
            continue
        weight = norm.weight
        x = torch.linspace(-1, 2, len(weight), device=weight.device, dtype=weight.dtype)
        expected = norm.frozen(x, norm.scale(x))
        with torch.no_grad():
            error = float((norm.module(x) - expected).abs().max() / expected.abs().max())
        if error > 16 * max(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps):
            raise ModelError(
                f"{type(norm.module).__name__} of the {host.family} model differs by {error:.1%} "
                "from what its weights say; this release of transformers is not supported"
            )


def check_family(family: str) -> None:
    """Refuse a family by its `model_type`.

    Raises:
        ModelError: the family is not supported.
    """
    found = support(family)
    if not found.supported:
        raise ModelError(
            f"model type {family!r} is not supported ({found.reason}); supported are "
            f"{', '.join(sorted(HOSTS))}"
        )
