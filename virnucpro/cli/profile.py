"""`virnucpro profile`: how fast a model is, by the number of tokens in a batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.whole_files import refuse_existing, write_json
from virnucpro.cli.options import config_command
from virnucpro.cli.starting import make_compute_config, require_single_process
from virnucpro.cli.terminal import echo, format_table
from virnucpro.config import PredictConfig, ProfileConfig
from virnucpro.errors import UsageError

if TYPE_CHECKING:
    from virnucpro.workflows.profile import BudgetProfile

# Only these two backends have weights that a user need not name.
_DEFAULT_WEIGHTS = {
    PredictConfig.dna_backend: PredictConfig.dna_weights,
    PredictConfig.protein_backend: PredictConfig.protein_weights,
}


@config_command("profile", short_help="Find the fastest batch size of a device, for later runs.")
def profile_command(ctx: click.Context, config: ProfileConfig) -> None:
    """Measure the throughput of batches with different numbers of tokens, and keep the best.

    Later runs use this number of tokens if they have the same model of GPU, backend, size of
    model, precision and attention. Batches are smaller if memory is short. docs/command-line.md
    explains where the number is stored.

    \b
    Examples:
      virnucpro profile --backend esm2
      virnucpro profile --backend dnabert-s --weights models/DNABERT-S
    """
    require_single_process(ctx)
    if config.output_path is not None and not config.force:
        refuse_existing(config.output_path)
    # A wrong name of a backend must show before the question of its weights.
    load_backend(config.backend)
    location = config.weights or _DEFAULT_WEIGHTS.get(config.backend)
    if location is None:
        raise UsageError(f"backend {config.backend}: which weights? Name them with --weights")
    from virnucpro.embedding.budgets import store_budget
    from virnucpro.workflows.profile import profile_budgets

    profile = profile_budgets(config, make_compute_config(config), location)
    _echo(profile)
    path = store_budget(profile.key, profile.best, profile.speeds[profile.best].tokens_per_s)
    if config.output_path is not None:
        _write(config.output_path, profile, location)
    echo(f"\nBest: {profile.best} tokens a batch. Later runs read it in {path}")


def _echo(profile: BudgetProfile) -> None:
    rows = [
        (
            str(batch_tokens),
            f"{speed.tokens_per_s:,.0f}",
            f"{speed.sequences_per_s:,.0f}",
            f"{speed.peak_memory_bytes / 2**30:.2f}" if speed.peak_memory_bytes else "-",
        )
        for batch_tokens, speed in profile.speeds.items()
    ]
    echo(f"{profile.key.backend}, {profile.key.precision}, on {profile.key.device}\n")
    echo(format_table(("tokens a batch", "tokens/s", "sequences/s", "GiB"), rows))


def _write(path: Path, profile: BudgetProfile, location: str) -> None:
    document = {
        **dataclasses.asdict(profile.key),
        "weights": location,
        "measurements": [
            {"batch_tokens": batch_tokens, **dataclasses.asdict(speed)}
            for batch_tokens, speed in profile.speeds.items()
        ],
        "best_batch_tokens": profile.best,
    }
    # A link stays, and leads to the new file.
    write_json(path.resolve(), document)
