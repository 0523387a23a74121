"""Named groups of nodes (supernodes): what they are, how they change, and `groups.json`.

A node is in at most one group. Groups say how a graph is read and drawn; nodes, effects and
scores are the same with and without them.

Source: Ameisen et al. 2025, "Circuit Tracing", where nodes of like meaning are grouped by hand.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from graphs.schema import GraphError

FILE = "groups.json"
"""Beside the tables of a graph."""
FORMAT = 1
"""Of the file."""
LONGEST = 200
"""Characters of a name."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some nodes of a graph under one name."""

    name: str
    """What people call it."""

    members: tuple[str, ...]
    """Ids of its nodes, at least one."""

    place: tuple[float, float] | None = None
    """Where a viewer put it: x and y in the viewer's own units; None: anywhere."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise GraphError(f"a group has the name {self.name!r}: expected some text")
        if any("\ud800" <= char <= "\udfff" for char in self.name):
            raise GraphError(f"group {self.name!r:.80} has half a character in its name")
        if len(self.name) > LONGEST:
            raise GraphError(f"group {self.name!r:.40} has a name of {len(self.name)} characters: "
                             f"expected at most {LONGEST}")  # fmt: skip
        if not self.members or not all(isinstance(one, str) for one in self.members):
            raise GraphError(f"group {self.name!r} has the members {self.members!r:.80}: expected "
                             "at least one node id")  # fmt: skip
        if len(set(self.members)) < len(self.members):
            twice = next(one for one in self.members if self.members.count(one) > 1)
            raise GraphError(f"group {self.name!r} has the member {twice} twice: name it once")
        if self.place is not None and not _is_place(self.place):
            raise GraphError(f"group {self.name!r} has the place {self.place!r:.80}: expected two "
                             "finite numbers, or none")  # fmt: skip


def _is_place(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        and all(isfinite(x) for x in value)
    )


def check(groups: Iterable[Group], ids: Iterable[str]) -> None:
    """Refuse groups that do not belong to some nodes.

    Args:
        groups: of one graph.
        ids: of its nodes.

    Raises:
        GraphError: two groups of one name, a member that is no node, or a node in two groups.
    """
    known, names, owner = set(ids), set[str](), dict[str, str]()
    for group in groups:
        if group.name in names:
            raise GraphError(f"two groups have the name {group.name!r}: give each its own")
        names.add(group.name)
        for member in group.members:
            if member not in known:
                raise GraphError(f"group {group.name!r} has the member {member!r:.80}, which is no "
                                 "node: take ids from the column 'id'")  # fmt: skip
            if member in owner:
                raise GraphError(f"node {member} is in the groups {owner[member]!r} and "
                                 f"{group.name!r}: expected it in one")  # fmt: skip
            owner[member] = group.name


def grouped(groups: Sequence[Group], new: Group) -> tuple[Group, ...]:
    """Groups with a new one, in the place of one of its name; its members leave all others.

    Returns:
        All groups, in their order.

    >>> texas, texan = Group("Texas", ("a", "b")), Group("Dallas", ("b",))
    >>> [(one.name, one.members) for one in grouped((texas,), texan)]
    [('Texas', ('a',)), ('Dallas', ('b',))]
    """
    taken = set(new.members)
    parts = [(group, tuple(one for one in group.members if one not in taken)) for group in groups]
    changed = [
        new if group.name == new.name else replace(group, members=members)
        for group, members in parts
        if members or group.name == new.name
    ]
    return tuple(changed if new in changed else [*changed, new])


def without(groups: Sequence[Group], name: str) -> tuple[Group, ...]:
    """Groups less the one of a name.

    Returns:
        The others, in their order.

    Raises:
        GraphError: none has it.
    """
    find(groups, name)
    return tuple(group for group in groups if group.name != name)


def renamed(groups: Sequence[Group], name: str, new: str) -> tuple[Group, ...]:
    """Groups, one of them under another name.

    Returns:
        All groups, in their order.

    Raises:
        GraphError: none has the name, or another one has the new name.
    """
    find(groups, name)
    if new != name and any(group.name == new for group in groups):
        raise GraphError(f"two groups have the name {new!r}: give each its own")
    return tuple(replace(one, name=new) if one.name == name else one for one in groups)


def left(groups: Iterable[Group], ids: Iterable[str]) -> tuple[Group, ...]:
    """Groups of the nodes that are left: members that are gone are dropped, as are empty groups.

    Returns:
        What is left of the groups, in their order.

    >>> left([Group("Texas", ("a", "b")), Group("Dallas", ("c",))], ["b"])
    (Group(name='Texas', members=('b',), place=None),)
    """
    kept = set(ids)
    parts = ((group, tuple(one for one in group.members if one in kept)) for group in groups)
    return tuple(replace(group, members=members) for group, members in parts if members)


def find(groups: Iterable[Group], name: str) -> Group:
    """The group of a name.

    Raises:
        GraphError: none has it; the message names those there are.
    """
    names = []
    for group in groups:
        if group.name == name:
            return group
        names.append(group.name)
    known = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    raise GraphError(f"no group has the name {name!r}: expected {known or 'none, there are none'}")


def to_json(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Groups as JSON holds them.

    Returns:
        One dict a group with name, members and place (two numbers or None).
    """
    return [
        {"name": one.name, "members": list(one.members), "place": one.place and list(one.place)}
        for one in groups
    ]


def from_json(values: object) -> tuple[Group, ...]:
    """What `to_json` gave.

    Returns:
        The groups, in their order.

    Raises:
        GraphError: it is no list of groups.
    """
    if not isinstance(values, list):
        raise GraphError(f"groups are {values!r:.60}: expected a list of them")
    found = []
    for at, value in enumerate(values):
        if not isinstance(value, dict) or not isinstance(value.get("members"), list):
            raise GraphError(f"group {at} is {value!r:.60}: expected name, members and place")
        place = value.get("place")
        held = tuple(place) if isinstance(place, list) else place
        found.append(Group(value.get("name", ""), tuple(value["members"]), held))
    return tuple(found)


def to_bytes(groups: Iterable[Group]) -> bytes:
    """The content of `groups.json`: the same groups give the same bytes."""
    value = {"format": FORMAT, "groups": to_json(groups)}
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def from_bytes(content: bytes) -> tuple[Group, ...]:
    """What `groups.json` holds; `check` says whether it belongs to a graph.

    Returns:
        The groups, in the order of the file.

    Raises:
        GraphError: it is torn, foreign, or of another format.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise GraphError(f"{FILE} is no JSON: {reason:.100}: mend or remove it") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        got = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise GraphError(f"{FILE} has format {got!r:.40}, expected {FORMAT}: read it with the "
                         "release of tracer that wrote it, or remove it")  # fmt: skip
    try:
        return from_json(value.get("groups"))
    except GraphError as error:
        raise GraphError(f"{FILE}: {error}") from error
