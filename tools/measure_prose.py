"""Measures how easy files are to read: sentences and lines of Markdown, comments of Python.

    python -m tools.measure_prose README.md docs virnucpro

A directory stands for all its `.md` and `.py` files. Tables, code, headings and the targets of
links do not count as prose.
"""

from __future__ import annotations

import argparse
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK_TARGET = re.compile(r"\]\([^)]*\)")
_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")
_SENTENCE_END = re.compile(r"[.!?]['\")*`]*\s+(?=\S)")
_PRAGMA = re.compile(r"#\s*(noqa|type:|!|fmt:|pragma)")


def read_prose(text: str) -> Iterator[list[str]]:
    """Yield the paragraphs and list items of a Markdown text, each as its lines."""
    paragraph: list[str] = []
    for line in [*_FENCE.sub("", text).splitlines(), ""]:
        starts_block = not line.strip() or line.lstrip().startswith(("|", "#", "<!--", ":::"))
        is_code = line.startswith("    ") and not paragraph
        if (starts_block or is_code or _ITEM.match(line)) and paragraph:
            yield paragraph
            paragraph = []
        if not starts_block and not is_code:
            paragraph.append(_LINK_TARGET.sub("]", line))


def measure_markdown(path: Path) -> tuple[int, int, int]:
    """Return the number of words, the number of sentences and the longest line of prose."""
    num_words = num_sentences = max_line = 0
    for paragraph in read_prose(path.read_text(encoding="utf-8")):
        max_line = max(max_line, *(len(line) for line in paragraph))
        text = _ITEM.sub("", " ".join(line.strip() for line in paragraph))
        words = [sum(map(is_word, part.split())) for part in _SENTENCE_END.split(text)]
        num_words += sum(words)
        num_sentences += sum(count > 0 for count in words)
    return num_words, num_sentences, max_line


def is_word(text: str) -> bool:
    """Return whether a piece of text has a letter or a digit."""
    return any(map(str.isalnum, text))


def count_comments(path: Path) -> tuple[int, int]:
    """Return the number of comments that are no instructions to a tool, and of lines."""
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    comments = (token.string for token in tokens if token.type == tokenize.COMMENT)
    return sum(not _PRAGMA.match(comment) for comment in comments), tokens[-1].end[0] - 1


def main() -> None:
    """Print a line for each Markdown file and one for all Python files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", type=Path, nargs="+", help="files and directories")
    roots = parser.parse_args().paths
    files = sorted({f for root in roots for f in (root.rglob("*") if root.is_dir() else [root])})
    print("words  words/sentence  longest line  file")
    for path in (path for path in files if path.suffix == ".md"):
        words, sentences, max_line = measure_markdown(path)
        print(f"{words:5}  {words / max(1, sentences):14.1f}  {max_line:12}  {path}")
    counts = [count_comments(path) for path in files if path.suffix == ".py"]
    if counts:
        comments, lines = map(sum, zip(*counts, strict=True))
        print(f"{100 * comments / lines:.1f} comments per 100 lines, {lines} lines of Python")


if __name__ == "__main__":
    main()
