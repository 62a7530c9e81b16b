"""Adds files outside docs/ to the site of the docs, and makes links work there.

Links are written as they work in the repository, for example `../virnucpro/checkpoints/FORMAT.md`.
mkdocs knows only what lies in docs/. So this hook publishes some other files, and rewrites each
link to a published file for the place that the file has in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

PUBLISHED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "virnucpro/checkpoints/FORMAT.md": "format.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples/index.md",
    "examples/example.fasta": "examples/example.fasta",
    "examples/labels.tsv": "examples/labels.tsv",
    "examples/slurm.sh": "examples/slurm.sh",
    "virnucpro/reports/schemas/run.json": "schemas/run.json",
    "virnucpro/reports/schemas/report.json": "schemas/report.json",
    "virnucpro/reports/schemas/migration.json": "schemas/migration.json",
    "virnucpro/reports/schemas/records.json": "schemas/records.json",
    "virnucpro/reports/schemas/chunks.json": "schemas/chunks.json",
    "virnucpro/reports/schemas/viral_regions.json": "schemas/viral_regions.json",
}
"""Where a file of the repository is in the site."""

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the published files to the files of the site."""
    for path, place in PUBLISHED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with its links rewritten; mkdocs reports those that lead nowhere."""
    source = posixpath.relpath(page.file.abs_src_path or "", ROOT)

    def rewrite(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if path not in PUBLISHED and not path.startswith("docs/"):
            return link["path"]
        place = PUBLISHED.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(rewrite, markdown)
