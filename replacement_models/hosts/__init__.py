"""Model families, one module each: a function from a Hugging Face model to a `Host`.

To add a family, write a module with one function like those beside this file and list it here under
the `model_type` of its configurations. The laws in tests/test_laws.py then say whether it is right.
"""

from collections.abc import Callable

from torch import nn

from replacement_models.errors import ModelError
from replacement_models.host import Host
from replacement_models.hosts.gpt2 import gpt2
from replacement_models.hosts.llama import llama

HOSTS: dict[str, Callable[[nn.Module], Host]] = {
    "gpt2": gpt2,
    "llama": llama,
}


def host_of(model: nn.Module) -> Host:
    """Name the parts of a Hugging Face causal language model.

    Raises:
        ModelError: the family is not supported.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    check_family(family)
    return HOSTS[family](model)


def check_family(family: str) -> None:
    """Refuse a family by its `model_type`.

    Raises:
        ModelError: the family is not supported.
    """
    if family not in HOSTS:
        raise ModelError(
            f"model type {family!r} is not supported; supported are {', '.join(sorted(HOSTS))}"
        )
