"""Fills templates to pages that need nothing but themselves: no network, and no JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from virnucpro import __version__
from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.errors import count, format_rounded, format_seconds
from virnucpro.reports.citation import format_citation, read_citation
from virnucpro.reports.pages.records import show_text


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template and write the page whole.

    Args:
        path: The file to write.
        template: The name of the template.
        content: What the template shows. All text in it is escaped.

    Raises:
        OutputError: The file cannot be written.
    """
    script = _read("page.js")
    page = _environment().get_template(template)
    with open_whole(path) as file:
        # In pieces: a page of 100,000 records takes some megabytes.
        file.writelines(
            page.generate(
                **content,
                script=Markup(script),
                script_digest=_digest(script),
                style=Markup(_read("page.css")),
                version=__version__,
                works=[format_citation(work) for work in read_citation()[1]],
            )
        )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("virnucpro.reports.pages"),
        # Ids and names of files come from anywhere.
        autoescape=True,
        # A template that names what nobody gives is an error, and no empty place on the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "as_data": _as_data,
        "commas": "{:,}".format,
        "count_of": count,
        "number": lambda value: f"{value:,}" if isinstance(value, int) else value,
        "rounded": format_rounded,
        "seconds": partial(format_seconds, tenths=True),
        "show": show_text,
    }
    return environment


def _as_data(value: Any) -> Markup:
    """Return JSON that may stand in a script element: no `<` can end the element."""
    # NaN is no JSON: the browser would refuse all of the data.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _digest(script: str) -> str:
    """Return what the page's policy allows to run: this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return files("virnucpro.reports.pages").joinpath("templates", name).read_text("utf-8")
