"""`virnucpro backends`: the installed backends, and which of them are broken."""

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
    models.

    \b
    Examples:
      virnucpro backends
      virnucpro backends --json
    """
    from virnucpro.backend.registry import describe_backends

    listings = describe_backends()
    if config.json:
        echo(json.dumps([_describe(listing) for listing in listings], indent=2))
        return
    table = format_table(_COLUMNS, list(map(_make_row, listings)), num_left=len(_COLUMNS))
    heading, *lines = table.splitlines()
    echo(heading)
    for line, listing in zip(lines, listings, strict=True):
        echo(line)
        if listing.reason is not None:
            # Below its line, because the reason is too long for a column.
            echo_wrapped("    ", listing.reason)


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
        "trainable": bool(info.linear_layers) if info else None,
        "linear_layers": info.linear_layers if info else None,
    }


def _make_row(listing: BackendListing) -> tuple[str, ...]:
    described = _describe(listing)
    # JSON has null here. A person is told why there is no number.
    if listing.info is not None and listing.info.embedding_dim is None:
        described["dimension"] = "by weights"
    if listing.info is not None:
        described["trainable"] = "yes" if listing.info.linear_layers else "no"
    return tuple(str(described[column] or "-") for column in _COLUMNS)
