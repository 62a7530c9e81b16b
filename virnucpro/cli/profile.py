"""`virnucpro profile`: how fast a model is, by the number of tokens in a batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import device_options, require_single_process
from virnucpro.cli.tables import format_table
from virnucpro.config import ComputeConfig, PredictConfig
from virnucpro.embedding.budgets import store_budget
from virnucpro.errors import UsageError

if TYPE_CHECKING:
    from virnucpro.workflows.profile import BudgetProfile

_DEFAULT_WEIGHTS = {
    PredictConfig.dna_backend: PredictConfig.dna_weights,
    PredictConfig.protein_backend: PredictConfig.protein_weights,
}


@click.command("profile", short_help="Find the fastest batches of a device, for later runs.")
@click.option(
    "-m", "--model", required=True, metavar="NAME", help="A name that `virnucpro backends` lists."
)
@click.option(
    "--weights", metavar="WEIGHTS", help="File, directory or hub id.  [default: as in predict]"
)
@device_options
@click.option(
    "--min-batch",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    default=512,
    show_default=True,
    help="The smallest batch.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="The largest batch.  [default: 131072, on a CPU 8192]",
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="From one batch to the next.  [default: double each time]",
)
@click.option(
    "--test-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FASTA",
    help="Sequences to measure on.  [default: random open frames of 500 bp]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="JSON",
    help="Also write the measurements to this file.",
)
@click.pass_context
def profile_command(ctx: click.Context, /, **options: Any) -> None:
    """Measure throughput against the tokens in a batch, and keep the best.

    Later runs on the same model of GPU, with the same backend, size of model,
    precision and attention, cut their batches by it. Batches are still smaller
    where memory is short. docs/command-line.md says where it is kept.

    \b
    Examples:
      virnucpro profile -m esm2
      virnucpro profile -m dnabert-s --weights models/DNABERT-S --precision fp16
    """  # noqa: D301 (click reads the \b)
    require_single_process(ctx)
    location = options["weights"] or _DEFAULT_WEIGHTS.get(options["model"])
    if location is None:
        raise UsageError(f"backend {options['model']}: which weights? Name them with --weights")
    from virnucpro.workflows.profile import BudgetRange, profile_budgets

    profile = profile_budgets(
        ComputeConfig(**{name: options[name] for name in ("device", "precision", "attention")}),
        options["model"],
        location,
        BudgetRange(options["min_batch"], options["max_batch"], options["step"]),
        options["test_file"],
    )
    _echo(profile)
    if options["output"] is not None:
        _write(options["output"], profile, location)
    path = store_budget(profile.key, profile.best)
    click.echo(f"\nBest: {profile.best} tokens a batch. Later runs read it in {path}")


def _echo(profile: BudgetProfile) -> None:
    rows = [
        (
            str(budget_tokens),
            f"{speed.tokens_per_s:,.0f}",
            f"{speed.sequences_per_s:,.0f}",
            f"{speed.peak_memory_bytes / 2**30:.2f}" if speed.peak_memory_bytes else "-",
        )
        for budget_tokens, speed in profile.speeds.items()
    ]
    click.echo(f"{profile.key.backend}, {profile.key.precision}, on {profile.key.device}\n")
    click.echo(format_table(("tokens a batch", "tokens/s", "sequences/s", "GiB"), rows))


def _write(path: Path, profile: BudgetProfile, location: str) -> None:
    document = {
        **dataclasses.asdict(profile.key),
        "weights": location,
        "measurements": [
            {"batch_tokens": budget_tokens, **dataclasses.asdict(speed)}
            for budget_tokens, speed in profile.speeds.items()
        ],
        "best_batch_tokens": profile.best,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
