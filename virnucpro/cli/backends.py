"""`virnucpro backends`: the installed backends, and what those lack that cannot be used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo, echo_wrapped, format_table
from virnucpro.config import BackendsConfig

if TYPE_CHECKING:
    from virnucpro.backend.registry import BackendListing

_COLUMNS = ("name", "molecule", "dimension", "package", "version", "status", "trainable")
_MOLECULES = {"dna": "DNA", "protein": "protein"}


@config_command("backends")
def backends_command(ctx: click.Context, config: BackendsConfig) -> None:
    """List the installed backends.

    A backend computes vectors from DNA or proteins. Other packages can add backends;
    docs/backends.md explains how. `trainable` says whether `train --finetune` can fine-tune its
    models. A backend with the status `incomplete` needs a package that is not installed.

    \b
    Examples:
      virnucpro backends
      virnucpro backends --json
    """
    from virnucpro.backend.registry import describe_backends

    listings = list(map(_describe, describe_backends()))
    if config.json:
        echo(json.dumps(listings, indent=2))
        return
    table = format_table(_COLUMNS, list(map(_make_row, listings)), num_left=len(_COLUMNS))
    heading, *lines = table.splitlines()
    echo(heading)
    for line, listing in zip(lines, listings, strict=True):
        echo(line)
        if listing["reason"]:
            # Below its line, because the reason is too long for a column.
            echo_wrapped("    ", listing["reason"])


def _describe(listing: BackendListing) -> dict[str, Any]:
    info = listing.info
    status = "broken" if listing.reason else "incomplete" if listing.missing else "ok"
    return {
        "name": listing.name,
        "molecule": _MOLECULES[info.alphabet] if info else None,
        "dimension": info.embedding_dim if info else None,
        "package": listing.distribution,
        "version": listing.version,
        "status": status,
        "reason": listing.reason or listing.missing,
        "trainable": bool(info.linear_layers) if info else None,
        "linear_layers": info.linear_layers if info else None,
    }


def _make_row(listing: dict[str, Any]) -> tuple[str, ...]:
    # JSON has null here. A person is told why there is no number.
    if listing["molecule"]:
        shown = {
            "dimension": listing["dimension"] or "by weights",
            "trainable": "yes" if listing["trainable"] else "no",
        }
        listing = listing | shown
    return tuple(str(listing[column] or "-") for column in _COLUMNS)
