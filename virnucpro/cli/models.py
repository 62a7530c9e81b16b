"""`virnucpro models`: the published models, and what is done with them."""

from __future__ import annotations

import json
import logging
from typing import Any

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.starting import is_quiet
from virnucpro.cli.terminal import echo, format_table
from virnucpro.config import (
    PUBLISHED,
    DownloadModelsConfig,
    ListModelsConfig,
    ModelConfig,
    PublishedModel,
    VerifyModelsConfig,
)

logger = logging.getLogger(__name__)


@click.group("models")
def models_command() -> None:
    """List, download, check and remove the published models."""


@config_command("models list", short_help="List the published models, and where they are.")
def list_command(ctx: click.Context, config: ListModelsConfig) -> None:
    """List the published models: size, licence, and where they are on this machine.

    \b
    Examples:
      virnucpro models list
      virnucpro models list --json
    """
    described = [_describe(model) for model in PUBLISHED.values()]
    if config.json:
        echo(json.dumps(described, indent=2))
        return
    columns = ("name", "size", "licence", "revision", "here", "about")
    rows = [tuple(_shorten(one)[column] for column in columns) for one in described]
    echo(format_table(columns, rows, num_left=len(columns)))


@config_command("models download", short_help="Download models, and check them.")
def download_command(ctx: click.Context, config: DownloadModelsConfig) -> None:
    """Download models, and compare every file with its digest.

    A download that broke off continues where it stopped. Models of the Hugging Face hub go to the
    hub's cache (HF_HOME), and HF_ENDPOINT names another hub. With --to, all models go to one
    directory.

    \b
    Examples:
      virnucpro models download 500 dnabert-s esm2-3b
      virnucpro models download 500 dnabert-s esm2-3b --to /shared/virnucpro
      VIRNUCPRO_MODELS=/shared/virnucpro virnucpro predict contigs.fasta
      virnucpro models download 500 --mirror https://files.example.org/virnucpro
    """
    from virnucpro.workflows.models import download_model

    # The hub's library draws bars of its own, and knows nothing of --quiet.
    if is_quiet(ctx):
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    for name in config.names:
        path = download_model(name, config.to, config.mirror)
        logger.info("%s: %s", name, path)


@config_command("models verify", short_help="Compare models with their digests.")
def verify_command(ctx: click.Context, config: VerifyModelsConfig) -> None:
    """Compare every file of the models with its digest, without a network.

    Without NAME, the command also reads all weights whose digests earlier runs have kept.

    Exit code 1: a file has another digest, or a model is missing.

    \b
    Examples:
      virnucpro models verify
      virnucpro models verify 500 dnabert-s
    """
    from virnucpro.workflows.models import find_published, verify_model, verify_remembered

    # Without names: a model that was never downloaded is not missing.
    here = [name for name, model in PUBLISHED.items() if find_published(model) is not None]
    for name in config.names or here:
        files = verify_model(name)
        for file in files:
            echo(f"{name}: {file.path}: {'ok' if file.wanted else 'no digest is known'}")
        if not files:
            echo(f"{name}: ships with this package")
    for file in () if config.names else verify_remembered():
        echo(f"used before: {file.path}: ok")


@config_command("models path", short_help="Show where a model is.")
def path_command(ctx: click.Context, config: ModelConfig) -> None:
    """Show the file or the directory of a model.

    Exit code 1: the model is not on this machine.

    \b
    Example:
      virnucpro models path esm2-650m
    """
    from virnucpro.workflows.models import require_published

    echo(str(require_published(config.name)))


@config_command("models remove", short_help="Remove a model from this machine.")
def remove_command(ctx: click.Context, config: ModelConfig) -> None:
    """Remove a model from the directory of models and from the hub's cache.

    \b
    Example:
      virnucpro models remove esm2-15b
    """
    from virnucpro.workflows.models import remove_model

    removed = remove_model(config.name)
    for path in removed:
        echo(f"Removed: {path}")
    if not removed:
        echo(f"{config.name}: is not on this machine")


for _command in (list_command, download_command, verify_command, path_command, remove_command):
    models_command.add_command(_command)


def _describe(model: PublishedModel) -> dict[str, Any]:
    from virnucpro.workflows.models import find_published

    path = find_published(model)
    return {
        "name": model.name,
        "about": model.about,
        "licence": model.licence,
        "bytes": model.num_bytes,
        "source": model.url or model.location,
        "digests": dict(model.digests),
        "path": None if path is None else str(path),
    }


def _shorten(described: dict[str, Any]) -> dict[str, str]:
    """Return what the table says of a model."""
    revision = described["source"].partition("@")[2]
    size = described["bytes"]
    return {
        "name": described["name"],
        "size": f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB",
        "licence": described["licence"],
        "revision": revision[:8] or "-",
        "here": "yes" if described["path"] else "-",
        "about": described["about"],
    }
