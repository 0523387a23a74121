"""The viewer's modules as one script: each keeps a scope of its own, nothing is fetched.

The modules are plain ES modules that a browser, or node's test runner, reads as they stand. Here
`import {a} from "./b.mjs"` becomes `const {a} = b$;` and what a module exports the value of its
function. Only the forms that the modules use are understood; any other is an error.
"""

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "modules"
STYLE = Path(__file__).parent / "viewer.css"
IMPORT = re.compile(r'^import (?:\{([^}]*)\} from )?"\./(\w+)\.mjs";\n', re.MULTILINE)
EXPORT = re.compile(
    r"^export (?:async )?(?:function|class|const|let) (\[[^\]]*\]|\w+)", re.MULTILINE
)
RENAMED = re.compile(r"(\w+) as (\w+)")
COMMENT = re.compile(r"^\s*(?://[^\n]*|/\*\*(?:(?!\*/).)*\*/)\n", re.MULTILINE | re.DOTALL)
INDENT = re.compile(r"^ +", re.MULTILINE)
LAST = re.compile(r",\n(?=[)\]}])|;\n(?=\})")
"""The comma after the last of a list, the semicolon after the last of a block."""
OPEN = re.compile(r"(?<=[{(\[,;])\n|\n(?=[})\].?:&|])")
"""Lines may be joined here, since no text runs over lines and no comment ends one; a test
holds both."""


TEMPLATE = r"`(?:[^`$]|\$(?!\{)|\$\{[^`{}]*(?:\{[^`{}]*\}[^`{}]*)*\})*`"
"""One that holds no other."""
TEXT = rf"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|{TEMPLATE})"""
SPACE = re.compile(rf"{TEXT}|(?<=[^\w$+\-`]) +| +(?=[^\w$+\-`])")
"""Texts, which stay as they are, and spaces that part no words and no signs."""
SIGN = re.compile(rf"{TEXT}| ?([+\-]=?) ?")
"""Texts, and a sign with the spaces about it."""
SIGNS = re.compile(r"[+\-] ?[+\-]")
"""Two signs, whose spaces mean something."""
SHORTER = {
    "const": "let",
    "undefined": "void 0",
    "true": "!0",
    "false": "!1",
}
"""Words, and what means the same here: nothing is assigned to what is constant, and no module has
a name of its own for these."""
WORD = re.compile(rf"{TEXT}|(?<![\w$.])({'|'.join(SHORTER)})(?![\w$:])")
LONE = re.compile(rf"{TEXT}|(?<![\w$])\((\w+)\)(?==>)")
"""Texts, and the one argument of an arrow function that is not async."""
DIVISION = re.compile(r"(?<=[\w)\]]) /(?= [\w(])")


@cache
def style() -> str:
    """The style sheet.

    Returns:
        CSS on few lines.
    """
    text = STYLE.read_text(encoding="utf-8")
    short = re.sub(r"\s*([{};,])\s*", r"\1", re.sub(r": (?=[^;{}]*;)", ":", text))
    return short.replace(";}", "}")


@cache
def script(entry: str) -> str:
    """A module with all it imports, in the order in which they need each other.

    Args:
        entry: name of a file in modules/, without its suffix.

    Returns:
        Statements; the entry's exports are the properties of the last constant, `<entry>$`.
    """
    done: list[str] = []
    _visit(entry, done, ())
    return '"use strict";\n' + "".join(_wrapped(name) for name in done)


def _source(name: str) -> str:
    return (FOLDER / f"{name}.mjs").read_text(encoding="utf-8")


def _visit(name: str, done: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import each other: {' -> '.join((*above, name))}")
    if name not in done:
        for _, needed in IMPORT.findall(_source(name)):
            _visit(needed, done, (*above, name))
        done.append(name)


def _wrapped(name: str) -> str:
    source = _source(name)
    exports = [part.strip() for found in EXPORT.findall(source)
               for part in found.strip("[]").split(",")]  # fmt: skip
    body = IMPORT.sub(_constants, source)
    body = re.sub(
        r"^export (?=(?:async )?(?:function|class|const|let) )", "", body, flags=re.MULTILINE
    )
    if left := re.search(r"^(?:import|export)\b.*", body, re.MULTILINE):
        raise ValueError(f"{name}.mjs: cannot join {left[0]!r}")
    lines = LAST.sub("\n", INDENT.sub("", COMMENT.sub("", body))).split("\n")
    body = OPEN.sub("", "\n".join(map(_squeezed, lines)))
    return f"const {name}$ = (() => {{\n{body}return {{ {', '.join(exports)} }};\n}})();\n"


def _squeezed(line: str) -> str:
    """A line without needless spaces; one with a template in another, or a pattern, as it is."""
    whole = "`" in re.sub(TEMPLATE, "", line) or "/" in DIVISION.sub(
        "", SPACE.sub(_text_away, line)
    )
    if whole:
        return line
    short = SPACE.sub(lambda found: found[1] or "", line)
    short = WORD.sub(lambda found: found[1] or SHORTER[found[2]], short)
    short = LONE.sub(lambda found: found[1] or found[2], short)
    return short if SIGNS.search(line) else SIGN.sub(lambda found: found[1] or found[2], short)


def _text_away(found: re.Match[str]) -> str:
    """Spaces stay, so that a division is known by them."""
    return '""' if found[1] else found[0]


def _constants(found: re.Match[str]) -> str:
    names = RENAMED.sub(r"\1: \2", " ".join((found[1] or "").split()))
    return f"const {{ {names} }} = {found[2]}$;\n" if names.strip() else ""
