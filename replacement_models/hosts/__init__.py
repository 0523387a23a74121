"""Model families, one module each: a function from a Hugging Face model to a `Host`.

To add a family, write a module with one function like those beside this file and list it in
`support.py` under the `model_type` of its configurations. The laws in tests/test_laws.py then say
whether it is right.
"""

from torch import nn

from replacement_models.errors import ModelError
from replacement_models.host import Host
from replacement_models.hosts.support import HOSTS, Support, support

__all__ = ["HOSTS", "Support", "check_family", "host_of", "support"]


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
    found = support(family)
    if not found.supported:
        raise ModelError(
            f"model type {family!r} is not supported ({found.reason}); supported are "
            f"{', '.join(sorted(HOSTS))}"
        )
