"""Documents build, lead somewhere, run, and give nothing of the machine away."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from docs import fill_circuits
from docs.fill_readme import ROOT, code_map, files, main
from graphs.validation_summary import tables

LISTED = [path.as_posix() for path in files()]
WRITTEN = [name for name in LISTED if name.endswith((".md", ".ipynb"))]
PAGES = [name for name in WRITTEN if name.startswith("docs/")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONTEXT = click.Context(main)
COMMANDS = {name: main.get_command(CONTEXT, name) for name in main.list_commands(CONTEXT)}


def text_of(name: str) -> str:
    """A document as Markdown; of a notebook its cells, code fenced."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".ipynb"):
        return text
    cells = json.loads(text)["cells"]
    sources = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    return "\n".join(f"```python\n{source}\n```" if code else source for source, code in sources)


def blocks(name: str, language: str) -> list[str]:
    """Code blocks of one language, in order."""
    return [code for kind, code in FENCE.findall(text_of(name)) if kind == language]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every line `tracer ...` of every document, split as a shell would."""
    for name in WRITTEN:
        for block in blocks(name, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("tracer "):
                    yield name, shlex.split(line, comments=True)


def mentions() -> Iterator[tuple[str, list[str]]]:
    """Every `tracer ...` inside a sentence."""
    for name in WRITTEN:
        for code in re.findall(r"`tracer ([^`]+)`", FENCE.sub("", text_of(name))):
            yield name, code.split()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as a site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "WARNING" not in said
    return folder


class Assets(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        shown = tag != "link" or of.get("rel") in ("stylesheet", "icon", "preload", "preconnect")
        if tag != "a" and shown:
            self.found += [of[name] or "" for name in ("src", "href") if of.get(name)]


def test_the_site_fetches_nothing_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert [one for one in assets.found if one.startswith(("http", "//"))] == [], page


def test_no_markdown_is_left_unread_in_the_site(site: Path):
    for page in site.rglob("*.html"):
        shown = re.sub(r"<code.*?</code>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"```|--8<--|\|---|^:::|\*\*\w|\]\([^)]*\.md", shown) == [], page


def test_the_site_holds_no_code_of_ours(site: Path):
    assert not list(site.rglob("*.py"))


def test_every_function_of_the_reference_is_described(site: Path):
    for page in (site / "api").glob("*.html"):
        named = re.findall(r"^::: (\S+)", text_of(f"docs/api/{page.stem}.md"), re.MULTILINE)
        html = page.read_text(encoding="utf-8")
        assert named
        assert [name for name in named if f'id="{name}"' not in html] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_every_link_within_the_repository_leads_somewhere(name: str):
    prose = FENCE.sub("", text_of(name))
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), target


def anchors(path: Path) -> set[str]:
    """What headings of a document can be linked as."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


OWN = ["mkdocs.yml", "CITATION.cff", *(name for name in LISTED if name.startswith("examples/"))]
SECRETS = re.compile(
    r"(?<![\w./])/(?:work|tmp|root|home|opt|mnt|Users)/|\b(?:pypi\.org|pythonhosted|conda\.)"
    r"|proxy\.golang|localhost"
)


@pytest.mark.parametrize("name", [*WRITTEN, *OWN])
def test_no_document_names_a_path_of_a_machine_or_a_registry(name: str):
    assert SECRETS.findall((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("name", "words"), [*commands()])
def test_a_command_line_shown_parses(name: str, words: list[str]):
    COMMANDS[words[1]].make_context(words[1], words[2:])


def flags_of(command: Any) -> set[str]:
    """Options of a command, of a group those of its commands too."""
    within = getattr(command, "commands", {}).values()
    own = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    return own.union(*map(flags_of, within))


@pytest.mark.parametrize(("name", "words"), [*mentions()])
def test_a_command_named_in_a_sentence_exists(name: str, words: list[str]):
    command = COMMANDS.get(words[0])
    assert command is not None or words[0].isupper() or words[0].startswith("-")
    if command is not None:
        known = flags_of(command)
        assert {word for word in words if word.startswith("-")} <= known


def test_every_option_named_in_a_sentence_exists():
    flags = {"--help", "--version"}
    for command in COMMANDS.values():
        flags |= flags_of(command)
    for name in ["README.md", *PAGES]:
        prose = FENCE.sub("", text_of(name))
        named = re.findall(r"`(--[a-z][a-z-]+)[^`]*`", prose)
        assert set(named) - flags == set(), name


@pytest.mark.parametrize("page", ["trace", "draw", "prove"])
def test_the_commands_of_a_guide_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ran = [words[1:] for name, words in commands() if name == f"docs/guides/{page}.md"]
    for words in ran:
        if words[0] != "validate":  # the page's Python does the same; it takes ten seconds
            CliRunner().invoke(main, words, catch_exceptions=False, standalone_mode=False)
    assert ran


GUIDES = [name for name in PAGES if blocks(name, "python")]


@pytest.mark.parametrize("name", GUIDES)
def test_the_python_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(name, "python"))
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def summary() -> dict[str, Any]:
    """A validation with every figure there can be."""
    ranks = ("influence", "top_half", "feature_to_feature", "activation", "direct")
    steps = {"1": {"cosine": 1.0, "cosine_median": 1.0, "error_median": 0.0, "count": 1}}
    kept = ("circuit", "silent_left", "without_errors", "random", "rest", "empty", "minimal")
    kinds = ("necessity", "sufficiency", "composition", "specificity", "scrubbing")
    evidence = [{"kind": kind, "value": 1.0, "control": 0.0, "says": ""} for kind in kinds]
    return {
        "features": 30,
        "verdict": {"evidence": evidence},
        "spearman": {**dict.fromkeys(ranks, 1.0), "feature_targets": 1},
        "responses": dict.fromkeys(("nothing", "attention", "attention and norms"), steps),
        "faithfulness": {**dict.fromkeys(kept, 1.0), "clean": 1.0, "features": 1, "errors": 1},
        "scrubbing": [{"name": "x", "survives": 1.0}],
    }


def test_every_figure_of_a_validation_stands_in_the_index_of_numbers():
    listed = text_of("docs/numbers/index.md")
    names = [row[0].strip() for table in tables(summary()) for row in table.rows]
    assert "above nothing kept" in names
    for name in names:
        assert "scrubbed" in listed if name == "x" else name in listed, name


def test_every_number_has_a_page_that_says_how_it_is_made_and_read():
    for name in PAGES:
        if name.startswith("docs/numbers/") and not name.endswith("index.md"):
            text = text_of(name)
            assert Path(name).name in text_of("docs/numbers/index.md")
            for part in ("**What", "How to read", "misleads.**"):
                assert part in text or part.replace("misleads", "mislead") in text, (name, part)


def test_the_map_of_the_code_is_what_ls_shows():
    shown = re.search(r"<!-- map -->\n(.*?)\n<!-- to here -->", text_of("README.md"), re.DOTALL)
    assert shown is not None
    folders = {Path(name).parts[0] for name in LISTED if "/" in name} - {".ci"}
    named = re.findall(r"\| (?:— )?\[(.*?)\]\((.*?)\)", shown[1])
    assert {target for _, target in named if "/" not in target} == folders | {"cli.py"}
    assert shown[1] == code_map(), "make readme"


def test_the_page_on_circuits_shows_what_was_measured():
    page = (ROOT / "docs" / "numbers" / "circuit-keeps.md").read_text("utf-8")
    assert fill_circuits.table() in page
