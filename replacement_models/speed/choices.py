"""Which way products go: measured once for every class of them, remembered, and on record.

A class is a purpose, a size in steps of four, how both operands lie in memory and a number of
threads. Other ways differ in the last bits of a float32, so what was chosen is part of how a result
came about: it stays the same for the process and, through the user's cache folder, for the next;
`noted` lists what was used and takes such a list.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from time import thread_time
from typing import NamedTuple

import torch
from torch import Tensor

from replacement_models.speed.choice_file import ChoiceFile
from replacement_models.speed.probe import fastest
from replacement_models.speed.ways import COMPILED, LAYOUTS, available, layout

BUDGET = 0.3
"""Seconds that a process measures in all. Later classes go the way of the nearest known one."""
MOST_IN_BLOCKS = 16
"""Rows of the largest class that may go through blocks."""
MOST_TURNED = 64
"""Rows or columns of the largest class in which the order in memory makes a difference."""
USES = {"map": 12, "product": 3, "few": 1, "score": 1}
"""What products are for, and how often a shape recurs: a map of a forward pass, once in every
layer; a large product of the sweep; and small ones, of few rows or of scores, which earn no
compiling."""
SCORES = {"torch", "torch turned"}
"""Ways of a small product of scores, which is made where there is room for it."""
STEPS = (4096, 1024, 256, 64, 16, 4, 1)
WRITTEN = re.compile(
    rf"({'|'.join(USES)}) (\d+)\+ x (\d+)\+ by (\d+)\+, "
    rf"({'|'.join(LAYOUTS)}) by ({'|'.join(LAYOUTS)}), threads (\d+)"
)


class ProductClass(NamedTuple):
    """Products that go the same way; rows, inner size and columns are at least what stands here."""

    purpose: str
    rows: int
    inner: int
    columns: int
    x: str
    weight: str
    threads: int

    @classmethod
    def of(cls, purpose: str, x: Tensor, weight: Tensor) -> "ProductClass":
        """The class of `x @ weight.T` on as many threads as torch has now."""
        rows, inner, columns = (
            next(step for step in STEPS if size >= step) for size in (*x.shape, len(weight))
        )
        read, by = (layout(matrix) or "plain" for matrix in (x, weight))  # scattered are copied
        return cls(purpose, rows, inner, columns, read, by, torch.get_num_threads())

    @classmethod
    def read(cls, text: str) -> "ProductClass | None":
        """The class that is written like this; None if none is."""
        found = WRITTEN.fullmatch(text)
        if found is None:
            return None
        purpose, rows, inner, columns, x, weight, threads = found.groups()
        return cls(purpose, int(rows), int(inner), int(columns), x, weight, int(threads))

    def __str__(self) -> str:
        """As in metadata and in the cache: rows x inner by columns."""
        return (
            f"{self.purpose} {self.rows}+ x {self.inner}+ by {self.columns}+, "
            f"{self.x} by {self.weight}, threads {self.threads}"
        )

    def ways(self) -> list[str]:
        """Names of the ways that may be the fastest."""
        either = min(self.rows, self.columns) <= MOST_TURNED
        return [
            way
            for way in available()
            if (either or "turned" not in way)
            and (way not in COMPILED or self.purpose != "few")
            and (way in SCORES or self.purpose != "score")
            and (way != "blocks" or self.rows <= MOST_IN_BLOCKS)
        ]

    def distance(self, other: "ProductClass") -> int:
        """Steps between two classes; what is not a size counts as three."""
        pairs = zip(self[1:4], other[1:4], strict=True)
        steps = sum(abs(STEPS.index(one) - STEPS.index(two)) for one, two in pairs)
        named = zip(self[:1] + self[4:], other[:1] + other[4:], strict=True)
        return steps + 3 * sum(one != two for one, two in named)


Probe = Callable[[list[str], Tensor, Tensor, int], str]


class Choices:
    """The ways chosen in one process."""

    def __init__(
        self, file: ChoiceFile | None = None, probe: Probe = fastest, budget: float = BUDGET
    ) -> None:
        """Nothing is chosen yet but what the file holds, read when it is first asked for."""
        self._file, self._probe = file or ChoiceFile(), probe
        self._ways: dict[ProductClass, str] = {}
        self._left, self._lock = budget, Lock()

    def way(self, product: ProductClass, x: Tensor, weight: Tensor) -> str:
        """The name of the way for products like `x @ weight.T`, which are of that class."""
        with self._lock:
            if product not in self._ways:
                self._ways = self._kept() | self._ways
            if product not in self._ways:
                self._ways[product] = self._settled(product, x, weight)
                self._file.add(str(product), self._ways[product])
            return self._ways[product]

    def _kept(self) -> dict[ProductClass, str]:
        """What the file holds that can be had here."""
        read = {ProductClass.read(text): way for text, way in self._file.read().items()}
        return {one: way for one, way in read.items() if one and way in one.ways()}

    def _settled(self, product: ProductClass, x: Tensor, weight: Tensor) -> str:
        ways = product.ways()
        if self._left > 0:
            begin = thread_time()
            found = self._probe(ways, x, weight, USES[product.purpose])
            self._left -= thread_time() - begin
            return found
        near = sorted(self._ways, key=lambda other: (product.distance(other), other))
        return next((self._ways[other] for other in near if self._ways[other] in ways), "torch")


process = Choices()
"""Those of this process."""
MOST_CLASSES = 4096
"""Shapes whose class is remembered: a small product takes little longer than telling it."""
_classes: dict[tuple[str, tuple[int, ...]], tuple[ProductClass, str]] = {}


@dataclass(frozen=True)
class _Note:
    given: Mapping[str, str]
    used: dict[str, str] = field(default_factory=dict)


_note: ContextVar[_Note | None] = ContextVar("note", default=None)


@contextmanager
def noted(given: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Inside, in this context, note which ways products go; those `given` come before all others.

    Returns:
        Names of ways by how their class is written, filled while the products are made.
    """
    note = _Note(given or {})
    token = _note.set(note)
    try:
        yield note.used
    finally:
        _note.reset(token)


def chosen(purpose: str, x: Tensor, weight: Tensor) -> str:
    """The name of the way for `x @ weight.T`, float32 on the CPU and large enough to earn it."""
    (product, name), note = _class_of(purpose, x, weight), _note.get()
    way = None if note is None else note.given.get(name)
    if way is None:
        way = process.way(product, x, weight)
    if note is not None:
        note.used[name] = way
    return way


def _class_of(purpose: str, x: Tensor, weight: Tensor) -> tuple[ProductClass, str]:
    """The class of a product and how it is written, remembered by shapes and strides."""
    sizes = (*x.shape, *weight.shape, *x.stride(), *weight.stride(), torch.get_num_threads())
    found = _classes.get((purpose, sizes))
    if found is None:
        product = ProductClass.of(purpose, x, weight)
        if len(_classes) >= MOST_CLASSES:
            _classes.clear()
        found = _classes[purpose, sizes] = product, str(product)
    return found


def refused(given: Mapping[str, str]) -> str | None:
    """What is wrong with a list of choices; None if nothing is."""
    for name, way in given.items():
        if ProductClass.read(name) is None:
            return f"{name!r} is no class of products, expected such as a graph's metadata names"
        if way not in available():
            return f"{name!r} goes by {way!r}, expected one of {', '.join(available())}"
    return None
