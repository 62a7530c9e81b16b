"""`virnucpro backends`: what is installed, and what of it is broken."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click

from virnucpro.backend.registry import BackendListing, describe_backends

_COLUMNS = ("name", "molecule", "dimension", "package", "version", "status")
_MOLECULES = {"dna": "DNA", "protein": "protein"}


@click.command("backends")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def backends_command(as_json: bool) -> None:
    """List the installed backends.

    A backend turns DNA or proteins into vectors. Packages may bring their own;
    docs/backends.md tells how.

    \b
    Examples:
      virnucpro backends
      virnucpro backends --json
    """  # noqa: D301 (click reads the \b)
    listings = describe_backends()
    if as_json:
        click.echo(json.dumps([_describe(listing) for listing in listings], indent=2))
        return
    rows = [_COLUMNS, *(_make_row(listing) for listing in listings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row, reason in zip(rows, [None, *(listing.reason for listing in listings)], strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
        if reason is not None:
            click.echo(textwrap.fill(reason, 80, initial_indent="    ", subsequent_indent="    "))


def _describe(listing: BackendListing) -> dict[str, Any]:
    info = listing.info
    return {
        "name": listing.name,
        "molecule": _MOLECULES[info.alphabet] if info else None,
        "dimension": info.embedding_dim if info else None,
        "package": listing.distribution,
        "version": listing.version,
        "status": "ok" if listing.reason is None else "broken",
        "reason": listing.reason,
    }


def _make_row(listing: BackendListing) -> tuple[str, ...]:
    described = _describe(listing)
    if listing.info is not None and listing.info.embedding_dim is None:
        described["dimension"] = "by weights"
    return tuple(str(described[column] or "-") for column in _COLUMNS)
