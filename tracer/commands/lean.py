"""What a command never needs of torch and transformers, left out of its process.

Transformers imports distributed tensors, the compiler and the losses of object detectors with every
language model: half of what `tracer trace` takes on a small one. A command neither shards nor
compiles, so for its process torch says that distribution is not built in, and the compiler's place
is kept empty while the model is loaded; whoever calls it after all gets the real one.

Torch says in Python what a thousand operators would give on its meta device, and transformers reads
all of its models' files to know their classes (`narrow.py`): both wait until they are asked for.
Nothing that is imported is garbage, so the collector does not look for any meanwhile.

Only a process that is the command's own does so (`tracer.commands.run`): what transformers imports
meanwhile keeps what it was given, and a notebook may compile later.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from operator import eq
from types import ModuleType
from typing import Any, TypeVar

import click

from tracer.commands.narrow import narrow_table

T = TypeVar("T")
OWN_PROCESS = "the process ends with the command"
DYNAMO = "torch._dynamo"


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that tells the compiler how to take a function, where nothing is compiled."""
    return _as_it_is if function is None else function


EXPORT, METAS = "torch.export", "torch._meta_registrations"
PRIMS = "torch._prims.rng_prims"
SHAPES = "torch.fx.experimental.symbolic_shapes"
ASKED: dict[str, dict[str, Any]] = {
    SHAPES: {"expect_true": bool, "sym_eq": eq},
    DYNAMO: dict.fromkeys(("disable", "assume_constant_result", "allow_in_graph"), _as_it_is),
    "transformers.loss.loss_utils": {"LOSS_MAPPING": {"ForCausalLM": None}},
}
"""Module -> what is asked of it while torch or transformers is imported."""
LOADING = (DYNAMO, f"{DYNAMO}._trace_wrapped_higher_order_op", "transformers.loss.loss_utils")


def lean_process() -> None:
    """Where the process is the command's own, import torch without what no command asks of it.

    Whatever imports torch comes after it: interventions and targets are read before the model.
    """
    if not _own_process():
        return
    first = "torch" not in sys.modules
    with _uncollected(), _stand_ins(METAS), _stand_ins(EXPORT) as export:
        import torch.distributed
    vars(torch).update(export)
    # What a torch built without distribution answers; transformers asks.
    torch.distributed.is_available = lambda: False
    narrow_table()
    if first:
        vars(torch)["Generator"] = _Generator


class _LateGenerator(type):
    """The class of random generators, which torch completes beside its Python metas."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _generator_class())

    def __call__(cls, *args: Any, **options: Any) -> Any:
        import torch

        import_module(PRIMS)
        real = vars(torch)["Generator"] = _generator_class()
        return real(*args, **options)


class _Generator(metaclass=_LateGenerator):
    """Makes a `torch.Generator`."""


def _generator_class() -> Any:
    import torch

    return torch._C.Generator


def lean_loading(load: Callable[[], T]) -> T:
    """What `load` gives, without what no command asks for where the process is the command's own.

    Args:
        load: loads a model; is called again where torch's meta device turns out to be asked for
            what it says in Python alone.
    """
    if not _own_process():
        return load()
    try:
        with _uncollected(), _leanly():
            return load()
    except Exception as error:
        if METAS in sys.modules or not isinstance(error.__cause__ or error, NotImplementedError):
            raise
    import_module(METAS)
    return lean_loading(load)


@contextmanager
def lean_gradients() -> Iterator[None]:
    """Let gradients compare shapes without sympy where the process is the command's own."""
    with _stand_ins(SHAPES) if _own_process() else nullcontext():
        yield


@contextmanager
def _leanly() -> Iterator[None]:
    import torch

    normal = torch.nn.init.normal_
    # Weights that a checkpoint fills anyway; on torch's meta device this would import sympy.
    torch.nn.init.normal_ = lambda tensor, *_, **__: tensor
    try:
        with _stand_ins(*LOADING):
            yield
    finally:
        torch.nn.init.normal_ = normal


@contextmanager
def _uncollected() -> Iterator[None]:
    """Make what is made meanwhile none of the garbage collector's business."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _own_process() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().obj is OWN_PROCESS


@contextmanager
def _stand_ins(*names: str) -> Iterator[dict[str, Any]]:
    """Keep places of modules that are not imported yet; gives what stands there, by last name."""
    absent = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield {name.rpartition(".")[2]: module for name, module in absent.items()}
    finally:
        _remove(absent)


class _StandIn(ModuleType):
    """A module's place: what is named in `ASKED`, and callables that import the module."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return ASKED.get(self.__name__, {}).get(name) or _later(self.__name__, name)


def _later(module: str, name: str) -> Callable[..., Any]:
    """Call what a module calls `name`; the module is imported then."""

    def call(*args: Any, **options: Any) -> Any:
        _remove((*LOADING, module))
        return getattr(import_module(module), name)(*args, **options)

    return call


def _remove(names: Iterable[str]) -> None:
    for name in names:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
            parent, _, leaf = name.rpartition(".")
            vars(sys.modules.get(parent, ModuleType(""))).pop(leaf, None)
