"""Tokens, labels and numbers as text for people."""

import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from graphs.schema import NodeKind
from graphs.scores import Scores

SHOWN = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
"""White space that would not be seen when a token holds nothing else."""
JOINERS = "\u200c\u200d"
"""Zero-width, but part of how emoji and many scripts are written."""
JOINED = {"Lo", "Mn", "Mc", "So", "Sk"}
"""After what a joiner is one: letters without case, marks, emoji."""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Controls, marks of direction and of zero width, half characters, and what is none."""
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\U000e0100-\U000e01ef]")
"""Marks and letters that show nothing: fillers, and selectors that can carry hidden text."""


def visible(text: str) -> str:
    r"""`text` on one line, with everything spelled out that a reader would not see.

    What a terminal, an SVG or a table would act on, and what hides or reverses text: escape and
    all other controls, marks of direction, zero-width characters, lone surrogates, what XML
    forbids. Letters of any script stay, with their marks and joiners; so do emoji.

    Everything that is printed or drawn comes through here: the commands by `tracer.commands.say`,
    pictures by `pictures.dot.text` and `pictures.charts`.

    >>> print(visible("a\tb\x1b[2J\x9b\u202etxt"))
    a⇥b␛[2J\x9b\u202etxt
    """
    return "".join(map(_character, text, ["", *text]))


def _character(char: str, before: str) -> str:
    if char in SHOWN and char != " ":
        return SHOWN[char]
    if char in JOINERS and before and unicodedata.category(before) in JOINED:
        return char
    if char < " ":
        return chr(ord("\N{SYMBOL FOR NULL}") + ord(char))
    if char == "\x7f":
        return "\N{SYMBOL FOR DELETE}"
    if unicodedata.category(char) in HIDDEN or BLANK.match(char):
        return char.encode("ascii", "backslashreplace").decode()
    return char


def token(text: str) -> str:
    r"""A token as a reader knows it: without the space in front, white space made visible.

    >>> token(" Dallas"), token("  "), token("\n"), token("")
    ('Dallas', '␣␣', '⏎', '∅')
    """
    bare = text.strip(" ")
    return visible(bare) if bare else visible(text.replace(" ", SHOWN[" "])) or "∅"


def clipped(text: str, length: int) -> str:
    """The first `length` characters, with an ellipsis where there were more.

    >>> clipped("Texas, TX, Lone", 11)
    'Texas, TX…'
    """
    return text if len(text) <= length else text[: length - 1].rstrip(" ,·") + "…"


def clipped_front(text: str, length: int) -> str:
    """The last `length` characters, with an ellipsis where there were more."""
    return text if len(text) <= length else "…" + text[1 - length :].lstrip()


def percent(share: float) -> str:
    """A share from 0 to 1 with as many digits as matter.

    >>> percent(0.9234), percent(0.0234), percent(0.0004), percent(0)
    ('92%', '2.3%', '<0.1%', '0%')
    """
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1%"
    return f"{value:.1f}%" if 0 < value < 9.95 else f"{value:.0f}%"


def steering(pruned: Mapping[str, Any]) -> str:
    """That pruning kept what steers attention, to add to its thresholds; empty where it did not.

    >>> steering({"keep_attention": True, "only_steering": 12})
    '; what steers attention kept: 12 nodes only for that'
    """
    if pruned.get("keep_attention") is not True:
        return ""
    return f"; what steers attention kept: {pruned.get('only_steering', 0)} nodes only for that"


def held(metadata: Mapping[str, Any]) -> str:
    """What a graph of a hybrid model takes as given and explains nowhere; empty for softmax alone.

    >>> held({"held": {"kernels": [0, 2], "factors": [1]}})
    'held, so not explained: decay, gates, keys, queries in 2 linear layers; gates on heads in 1'
    """
    found = metadata.get("held")
    if not found:
        return ""
    parts = []
    if linear := len(found["kernels"]):
        layers = "layer" if linear == 1 else "layers"
        parts.append(f"decay, gates, keys, queries in {linear} linear {layers}")
    if gated := len(found["factors"]):
        more = "" if parts else " layer" if gated == 1 else " layers"
        parts.append(f"gates on heads in {gated}{more}")
    return f"held, so not explained: {'; '.join(parts)}" if parts else ""


def scores(found: Scores, metadata: Mapping[str, Any], digits: int) -> dict[str, str]:
    """Scores as people read them, those beside them that say what they owe to what.

    Args:
        found: the scores of a graph.
        metadata: of the same graph, for the scores without any feature (`skip_alone`).
        digits: after the point.

    Returns:
        replacement and completeness, each a number and in brackets the one among the nodes alone,
        where it is another one, and the one of a transcoder's linear skip without its features,
        where it has a skip; uncovered, a number. No units: shares from 0 to 1.

    >>> from graphs.scores import ScorePair
    >>> capped = Scores(0.2, 0.3, 0.8, 0.7, ScorePair(0.98, 0.3))
    >>> scores(capped, {"skip_alone": {"replacement": 0.1, "completeness": None}}, 2)["replacement"]
    '0.20 (0.98 among the nodes kept, 0.10 with the linear skip alone)'
    >>> scores(capped, {}, 1)
    {'replacement': '0.2 (1.0 among the nodes kept)', 'completeness': '0.3', 'uncovered': '0.7'}
    """
    alone = metadata.get("skip_alone")
    shown = {}
    for name in ("replacement", "completeness"):
        value, among = (f"{getattr(them, name):.{digits}f}" for them in (found, found.among_nodes))
        beside = [f"{among} among the nodes kept"] if among != value else []
        bare = alone.get(name) if isinstance(alone, dict) else None
        if isinstance(bare, float):
            beside.append(f"{bare:.{digits}f} with the linear skip alone")
        shown[name] = f"{value} ({', '.join(beside)})" if beside else value
    return shown | {"uncovered": f"{found.uncovered:.{digits}f}"}


def label_parts(label: str | None) -> tuple[str, str]:
    """The two parts of a feature's label.

    Returns:
        What the feature promotes, and the token it fires on; '' where the label does not say.

    >>> label_parts("Texas, TX · Dallas"), label_parts("say a capital"), label_parts(None)
    (('Texas, TX', 'Dallas'), ('say a capital', ''), ('', ''))
    """
    text = visible(label or "").strip()
    promoted, dot, on = f" {text}".rpartition(" · ")
    return (promoted.strip(), on.strip()) if dot else (text, "")


def short_label(row: dict[str, Any]) -> str:
    """What a feature stands for, without the token it fires on; its number if unlabelled."""
    return label_parts(row["label"])[0] or f"feature {row['feature']}"


def node(row: dict[str, Any], tokens: Sequence[str]) -> str:
    """A row of the node table in a few words, as in a path."""
    place = row["position"]
    at = f"“{token(tokens[place])}”" if place < len(tokens) else f"position {place}"
    if row["kind"] == NodeKind.EMBEDDING:
        return word(row)
    if row["kind"] == NodeKind.ERROR:
        return f"error (L{row['layer']}, at {at})"
    if row["kind"] == NodeKind.FEATURE:
        return f"{short_label(row)} (L{row['layer']}, at {at})"
    return logit(row)


def route(rows: Sequence[dict[str, Any]], effects: Sequence[float], tokens: Sequence[str]) -> str:
    """A path in words: `→` where a node excites the next, `⊣` where it inhibits.

    Args:
        rows: of the node table, from root to logit.
        effects: of each row on the next.
        tokens: of the prompt.
    """
    signs = ["→ " if effect > 0 else "⊣ " for effect in effects]
    names = [node(row, tokens) for row in rows]
    return " ".join(sign + name for sign, name in zip(["", *signs], names, strict=True))


def word(row: dict[str, Any]) -> str:
    """The token of an embedding or a logit in quotes; its number where the text is unknown."""
    return f"token {row['token']}" if row["text"] is None else f"“{token(row['text'])}”"


def logit(row: dict[str, Any]) -> str:
    """A target: its token and probability, or the label and weight of the user's own."""
    if row["token"] is None:
        return f"{visible(row['label'] or row['id'])} (weight {row['probability'] or 0:g})"
    return f"{word(row)} {percent(row['probability'] or 0)}"


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` characters, the last one clipped.

    >>> wrapped("a city that lies in the state of Texas", 18, 2)
    ['a city that lies', 'in the state of T…']
    """
    found = textwrap.wrap(text, width, break_long_words=True) or [""]
    if len(found) > lines:
        found = [*found[: lines - 1], clipped(" ".join(found[lines - 1 :]), width)]
    return found
