"""English text out of Debian's documentation packages: `text.py FOLDER CORPUS.jsonl`.

FOLDER holds the packages unpacked, each in a folder of its own name. Pages become plain text in
pieces of 6,000 letters, shuffled, at most 900,000 letters a package; the same packages give the
same file.
"""

import gzip
import html.parser
import json
import random
import re
import sys
from pathlib import Path

PIECE, LEAST, MOST = 6_000, 800, 900_000
HIDDEN = ("script", "style", "nav", "head")
BLOCKS = ("p", "li", "h1", "h2", "h3", "h4", "div", "tr", "br", "dd", "dt", "pre")
PAGES = {
    "debian-handbook": "en-US/*.html",
    "anarchism": "*.html",
    "python3.11-doc": "*.html",
}
"""Package -> which of its files are read."""
JARGON = "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz"


class Words(html.parser.HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Begin a line where a block begins."""
        if tag in HIDDEN:
            self.hidden += 1
        if tag in BLOCKS:
            self.found.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Show again what follows."""
        if tag in HIDDEN:
            self.hidden = max(0, self.hidden - 1)

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        if not self.hidden:
            self.found.append(data)


def text_of(page: Path) -> str:
    """The text of a page, blank lines and blanks in a row made one."""
    words = Words()
    words.feed(page.read_text(encoding="utf-8", errors="replace"))
    joined = "".join(words.found).replace("\ufffd", "").replace("¶", "")
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", joined)).strip()


def pages(folder: Path, package: str) -> list[Path]:
    """Pages of a package in order, indexes left out."""
    found = sorted((folder / package).rglob(PAGES[package]))
    return [page for page in found if "genindex" not in page.name and not page.is_symlink()]


def pieces(texts: list[str]) -> list[str]:
    """Pieces of all texts, shuffled, up to MOST letters."""
    found = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    found = [piece for piece in found if len(piece) > LEAST]
    random.Random(0).shuffle(found)
    kept, letters = [], 0
    for piece in found:
        if letters > MOST:
            break
        kept.append(piece)
        letters += len(piece)
    return kept


def main(folder: Path, corpus: Path) -> None:
    """Write the corpus."""
    documents = [
        piece for name in PAGES for piece in pieces([text_of(one) for one in pages(folder, name)])
    ]
    with gzip.open(folder / JARGON, "rt", encoding="utf-8", errors="replace") as file:
        jargon = re.sub(r"[ \t]+", " ", file.read())
    others = [jargon[at : at + PIECE] for at in range(0, len(jargon), PIECE)]
    random.Random(0).shuffle(others)
    documents += others[:100]
    random.Random(1).shuffle(documents)
    with corpus.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    print(f"{len(documents)} documents, {sum(map(len, documents)):,} letters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
