"""Which single faults a file could have: each a piece of its text, and what stands there instead.

Faults are those that people make: a comparison that includes its bound, a sign, an option that is
not handed on, two branches or arguments the wrong way around, a step left out. Nothing is changed
in texts, types, decorators and what is raised: such faults are either no faults or seen at once.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

COMPARED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
OTHERS = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax",
          "argmax": "argmin", "zeros": "ones", "floor": "ceil", "ceil": "floor"}  # fmt: skip
PATHS = {"folder", "path", "root", "file", "here", "home", "place", "output", "parent"}
ASKED = {"isinstance", "issubclass", "getattr", "hasattr", "setattr"}
EITHER_WAY = {"min", "max"}
"""Of these two arguments in the other order are no fault, nor is `strict`, which only asserts."""
Change = tuple[str, ast.AST, str]
"""The kind of fault, what is replaced, and by what."""


@dataclass(frozen=True)
class Mutant:
    """One fault in one file."""

    path: str
    line: int
    kind: str
    begin: int
    """Where the replaced text begins, in bytes of the file."""
    before: str
    after: str
    number: int
    """Among those of its name in the file."""

    @property
    def name(self) -> str:
        """What it is called where it is set aside: moves with the code, not with the line."""
        which = f" ({self.number + 1})" if self.number else ""
        return f"{self.path}{which}: {self.before} -> {self.after}"

    def applied(self, source: str) -> str:
        """The file with the fault."""
        whole, before = source.encode(), self.before.encode()
        assert whole[self.begin : self.begin + len(before)] == before
        end = self.begin + len(before)
        return (whole[: self.begin] + self.after.encode() + whole[end:]).decode()


def mutants(path: str, source: str) -> list[Mutant]:
    """Every fault that a file could have, in the order of its text."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    changes = []
    for kind, node, after in _changes(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = source.encode()[begin:end].decode()
        changes.append((begin, after, before, kind, node.lineno))  # type: ignore[attr-defined]
    met: Counter[tuple[str, str]] = Counter()
    found = []
    for begin, after, before, kind, line in sorted(changes):
        found.append(Mutant(path, line, kind, begin, before, after, met[before, after]))
        met[before, after] += 1
    return found


def draw(
    root: Path, groups: Mapping[str, Sequence[str]], counts: Mapping[str, int], seed: int
) -> dict[str, list[Mutant]]:
    """Draw faults of each group of files by a seed.

    Those with the smallest hashes are drawn, so that code changed in one place moves no other draw.

    Args:
        root: of the tree.
        groups: the files of each, relative to the root.
        counts: how many faults of each.
        seed: of the draw.
    """
    drawn = {}
    for name, files in groups.items():
        every = [
            one
            for file in sorted(files)
            for one in mutants(file, (root / file).read_text(encoding="utf-8"))
        ]
        drawn[name] = sorted(every, key=lambda one: _lot(one, seed))[: counts[name]]
    return drawn


def _lot(one: Mutant, seed: int) -> bytes:
    change = f"{one.path}: {one.before} -> {one.after}"
    return sha256(f"{seed} {one.number} {change}".encode()).digest()


def _changes(node: ast.AST) -> Iterator[Change]:
    for child in _looked_into(node):
        if isinstance(child, ast.expr | ast.stmt):
            yield from _of(child)
        yield from _changes(child)


def _looked_into(node: ast.AST) -> Iterator[ast.AST]:
    """Children that compute something: no types, decorators, texts and nothing that is raised."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__"):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _of(node: ast.expr | ast.stmt) -> Iterator[Change]:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            yield "constant", node, _other_constant(node.value)
        case ast.Expr(value=ast.Call()):
            yield "step left out", node, "pass"
        case ast.If(test=test) if "TYPE_CHECKING" not in ast.unparse(test):
            yield "condition", test, f"(not {_text(test)})"
        case ast.Call():
            yield from _of_call(node)
        case ast.Subscript(value=value, slice=ast.Slice(lower, upper, step)) if lower and upper:
            yield "slice", node, _text(ast.Subscript(value, ast.Slice(None, upper, step)))
            yield "slice", node, _text(ast.Subscript(value, ast.Slice(lower, None, step)))
        case _:
            yield from _of_operation(node)


def _other_constant(value: object) -> str:
    if isinstance(value, bool):
        return str(not value)
    return repr(value + 1 if isinstance(value, int) else value * 2 or 1.0)  # type: ignore[operator]


def _of_operation(node: ast.expr | ast.stmt) -> Iterator[Change]:
    match node:
        case ast.Compare(left, [op], right) if type(op) in COMPARED:
            yield "comparison", node, _text(ast.Compare(left, [COMPARED[type(op)]()], right))
        case ast.BinOp(left, op, right) if type(op) in COMPUTED and not _are_texts(left, right):
            yield "arithmetic", node, _text(ast.BinOp(left, COMPUTED[type(op)](), right))
        case ast.AugAssign(target, op, value) if type(op) in COMPUTED:
            changed = ast.AugAssign(target, COMPUTED[type(op)](), value)
            yield "arithmetic", node, ast.unparse(changed)
        case ast.BoolOp(op, values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "and, or", node, _text(ast.BoolOp(other, values))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "sign", node, _text(operand)
        case ast.IfExp(test, body, orelse):
            yield "branches", node, _text(ast.IfExp(test, orelse, body))


def _of_call(node: ast.Call) -> Iterator[Change]:
    for keyword in node.keywords:
        if keyword.arg not in (None, "strict") and not _is_text(keyword.value):
            rest = [other for other in node.keywords if other is not keyword]
            yield "option dropped", node, ast.unparse(ast.Call(node.func, node.args, rest))
    first = node.args[:2]
    named = len(first) == 2 and all(isinstance(arg, ast.Name) for arg in first)
    if named and ast.unparse(node.func) not in ASKED | EITHER_WAY:
        turned = [first[1], first[0], *node.args[2:]]
        yield "arguments turned", node, ast.unparse(ast.Call(node.func, turned, node.keywords))
    match node.func:
        case ast.Name(id=name) if name in OTHERS:
            yield "other function", node.func, OTHERS[name]
        case ast.Attribute(value=value, attr=name) if name in OTHERS:
            yield "other function", node.func, ast.unparse(ast.Attribute(value, OTHERS[name]))


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _are_texts(*sides: ast.expr) -> bool:
    """Whether texts or paths are joined: anything else in their place ends in an error at once."""
    return any(_is_text(side) or (PATHS & set(ast.unparse(side).split("."))) for side in sides)
