"""`virnucpro migrate`: turns features and classifiers of older programs into our formats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import counting_bars, echo
from virnucpro.config import MigrateConfig
from virnucpro.errors import UsageError, count

_CLASSIFIER_SUFFIX = ".safetensors"


@config_command(
    "migrate", short_help="Convert features and classifiers of the original and the fork."
)
def migrate_command(ctx: click.Context, config: MigrateConfig) -> None:
    """Convert features and classifiers of the original VirNucPro or of the fork (v1.0, v2.0).

    The contents of a file decide its kind. Sources are never changed. After an interruption, run
    the same command again to continue. Exit code 1: some files were refused.

    You do not need this command to finish an old run: `virnucpro predict --resume -o OLD_RUN`
    reads the files of the run itself.

    \b
    Examples:
      virnucpro migrate old_run --dry-run
      virnucpro migrate old_run -o features
      virnucpro migrate 500_model.pth -o 500.safetensors -e 500
    """
    from virnucpro.workflows.migrate import migrate_features

    output = config.output_path
    if output is None and not config.dry_run:
        raise UsageError("no output: give -o, or --dry-run to write nothing")
    # Features go to a directory, so this ending means a classifier.
    if output is not None and output.suffix == _CLASSIFIER_SUFFIX:
        _migrate_classifier(config, output)
        return
    with counting_bars() as show:
        report = migrate_features(config, show)
    if config.json:
        echo(json.dumps(report, indent=2))
    else:
        _echo_report(report, dry_run=config.dry_run)
    ctx.exit(1 if report["counts"]["files refused"] else 0)


def _migrate_classifier(config: MigrateConfig, output: Path) -> None:
    from virnucpro.scoring.classifier import ClassifierMetadata
    from virnucpro.workflows.migrate import migrate_classifier

    source = config.sources[0]
    if len(config.sources) != 1:
        raise UsageError(f"{len(config.sources)} sources: a classifier is migrated from one file")
    if config.chunk_length_bp is None:
        # The published files are 300_model.pth and 500_model.pth.
        number = re.match(r"\d+", source.name)
        hint = f" (its name suggests -e {number[0]})" if number else ""
        raise UsageError(
            f"{source}: older classifiers do not say for which chunk length they were trained; "
            f"give the length with -e{hint}"
        )
    metadata = ClassifierMetadata(
        dna_backend=config.dna_backend,
        protein_backend=config.protein_backend,
        dna_dim=config.dna_dim,
        protein_dim=config.protein_dim,
        chunk_length_bp=config.chunk_length_bp,
    )
    migrate_classifier(source, output, metadata, dry_run=config.dry_run)
    echo(f"{'Would write' if config.dry_run else 'Written'}: {output}")


def _echo_report(report: dict[str, Any], *, dry_run: bool) -> None:
    for entry in report["files"]:
        echo(entry["path"])
        # Of a file that is not recognized, there is nothing to say but the reason.
        if entry["generation"] is not None:
            dims = " + ".join(str(dim) for dim in entry["dims"].values()) or "-"
            echo(
                f"  version {entry['version']} ({entry['generation']}); {entry['kind']}, "
                f"{count(entry['rows'], 'row')} of {dims} numbers, precision {entry['precision']}"
            )
        taken = ", ".join(f"{num:,} {alphabet}" for alphabet, num in entry["taken"].items())
        if taken:
            echo(f"  {'would be taken' if dry_run else 'taken'}: {taken}")
        for note in entry["notes"]:
            echo(f"  note: {note}")
        if entry["error"] is not None:
            echo(f"  refused: {entry['error'].removeprefix('refused, because ')}")
    for name, value in (report["counts"] | report.get("verified", {})).items():
        echo(f"{name}: {_show(value)}")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(item)}" for name, item in value.items()) or "0"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"
