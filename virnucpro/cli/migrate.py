"""`virnucpro migrate`: turns features and classifiers of older programs into our formats."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.bars import counting_bars
from virnucpro.config import PredictConfig
from virnucpro.errors import UsageError

_CLASSIFIER_SUFFIX = ".safetensors"


@click.command("migrate", short_help="Bring features and classifiers of older programs along.")
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="SOURCE...",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A directory for features, FILE.safetensors for a classifier.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is and would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    default=min(4, os.cpu_count() or 1),
    help="Processes that read files.  [default: by the machine, up to 4]",
)
@click.option(
    "--verify",
    type=click.IntRange(min=1),
    metavar="N",
    help="Embed N rows again and compare; needs --dna-weights or --protein-weights.",
)
@click.option("--dna-weights", metavar="WEIGHTS", help="For --verify, as in predict.")
@click.option("--protein-weights", metavar="WEIGHTS", help="For --verify, as in predict.")
@click.option(
    "-d", "--device", metavar="DEVICE", default="auto", show_default=True, help="For --verify."
)
@click.option("--dna-dim", type=int, default=768, show_default=True, help="Of the features.")
@click.option("--protein-dim", type=int, default=2560, show_default=True, help="Of the features.")
@click.option("--dna-backend", default=PredictConfig.dna_backend, show_default=True, metavar="NAME")
@click.option(
    "--protein-backend", default=PredictConfig.protein_backend, show_default=True, metavar="NAME"
)
@click.option(
    "-e",
    "--chunk-length-bp",
    "--expected-length",
    type=click.IntRange(min=1),
    metavar="BP",
    help="Chunk length that a classifier was trained on.",
)
@click.pass_context
def migrate_command(ctx: click.Context, /, sources: tuple[Path, ...], **options: Any) -> None:
    """Bring features and classifiers of older programs along.

    SOURCE is a file, a directory of features, or a whole run directory of the
    original VirNucPro or of the optimized fork (v1.0, v2.0). What a file is, its
    contents tell. Sources are never changed; run the same command again to go on
    after an interruption. Exit code 1: some files were refused.

    To finish an old run, `virnucpro predict --resume` in its directory does all
    this by itself.

    \b
    Examples:
      virnucpro migrate old_run --dry-run
      virnucpro migrate old_run -o features
      virnucpro migrate 500_model.pth -o 500.safetensors -e 500
    """  # noqa: D301 (click reads the \b)
    output: Path | None = options["output"]
    if output is None and not options["dry_run"]:
        raise UsageError("there is nowhere to write to: give -o, or --dry-run to write nothing")
    if output is not None and output.suffix == _CLASSIFIER_SUFFIX:
        _migrate_classifier(sources, output, options)
        return
    report = _migrate_features(sources, output, options)
    if options["as_json"]:
        import json

        click.echo(json.dumps(report, indent=2))
    else:
        _echo_report(report, dry_run=options["dry_run"])
    ctx.exit(1 if report["counts"]["files refused"] else 0)


def _migrate_classifier(sources: tuple[Path, ...], output: Path, options: dict[str, Any]) -> None:
    from virnucpro.scoring.classifier import ClassifierMetadata
    from virnucpro.workflows.migrate import migrate_classifier

    if len(sources) != 1:
        raise UsageError(f"{len(sources)} sources: a classifier is one file; give one source")
    if options["chunk_length_bp"] is None:
        number = re.match(r"\d+", sources[0].name)
        hint = f" (its name suggests -e {number[0]})" if number else ""
        raise UsageError(
            f"{sources[0]}: does not tell the chunk length that it was trained on; give it with "
            f"-e{hint}"
        )
    metadata = ClassifierMetadata(
        dna_backend=options["dna_backend"],
        protein_backend=options["protein_backend"],
        dna_dim=options["dna_dim"],
        protein_dim=options["protein_dim"],
        chunk_length_bp=options["chunk_length_bp"],
    )
    migrate_classifier(sources[0], output, metadata, dry_run=options["dry_run"])
    click.echo(f"{'Would write' if options['dry_run'] else 'Written'}: {output}")


def _migrate_features(
    sources: tuple[Path, ...], output: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.legacy.verification import Verification
    from virnucpro.workflows.migrate import MigrationConfig, migrate_features

    given = {"dna": options["dna_weights"], "protein": options["protein_weights"]}
    weights: Any = {
        alphabet: (options[f"{alphabet}_backend"], location)
        for alphabet, location in given.items()
        if location is not None
    }
    if (options["verify"] is None) != (not weights):
        raise UsageError("--verify and --dna-weights or --protein-weights are only useful together")
    config = MigrationConfig(
        sources=sources,
        output_dir=None if options["dry_run"] else output,
        dims=EmbeddingDims(options["dna_dim"], options["protein_dim"]),
        jobs=options["jobs"],
        verification=Verification(options["verify"], weights, options["device"])
        if weights
        else None,
    )
    with counting_bars() as show:
        return migrate_features(config, show)


def _echo_report(report: dict[str, Any], *, dry_run: bool) -> None:
    for entry in report["files"]:
        click.echo(entry["path"])
        if entry["generation"] is not None:
            dims = " + ".join(str(dim) for dim in entry["dims"].values()) or "-"
            click.echo(
                f"  version {entry['version']} ({entry['generation']}); {entry['kind']}, "
                f"{entry['rows']:,} rows of {dims} numbers, precision {entry['precision']}"
            )
        taken = ", ".join(f"{num:,} {alphabet}" for alphabet, num in entry["taken"].items())
        if taken:
            click.echo(f"  {'would be taken' if dry_run else 'taken'}: {taken}")
        for note in entry["notes"]:
            click.echo(f"  note: {note}")
        if entry["error"] is not None:
            click.echo(f"  refused: {entry['error']}")
    for name, value in (report["counts"] | report.get("verified", {})).items():
        click.echo(f"{name}: {_show(value)}")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(item)}" for name, item in value.items()) or "0"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"
