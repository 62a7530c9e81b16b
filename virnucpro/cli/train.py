"""`virnucpro train`: a classifier from labelled sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.options import (
    LAUNCH_OPTIONS,
    backend_options,
    budget_options,
    compute_options,
    given_options,
    hide_other_gpus,
    launch_options,
    leave_to_launch,
    settle_output,
    wants_progress,
)
from virnucpro.cli.progress import shown_progress
from virnucpro.cli.sections import echo_sections
from virnucpro.config import TrainConfig
from virnucpro.runtime.environment import is_main_process

_SEVERAL = ("--viral", "--other", "--merged")
_FILES = click.Path(exists=True, dir_okay=False)


class _ListCommand(click.Command):
    """A command whose options of files take all words up to the next option, as a shell's * gives.

    click itself wants the option again before each file, which works as well.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for word in args:
            if word.startswith("-"):
                option = word if word in _SEVERAL else None
                spread.append(word)
            elif option is not None and spread[-1] != option:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


@click.command("train", cls=_ListCommand, short_help="Train a classifier on your sequences.")
@click.option("--viral", multiple=True, type=_FILES, metavar="FASTA...", help="Viral sequences.")
@click.option(
    "--other",
    multiple=True,
    type=_FILES,
    metavar="FASTA...",
    help="Other sequences; each file is a class, and all count alike.",
)
@click.option(
    "--merged",
    multiple=True,
    type=_FILES,
    metavar="PT...",
    help="The original's labelled features, instead of sequences.",
)
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="MODEL",
    help="The classifier, for predict -p; the report goes to MODEL_training.",
)
@click.option(
    "-e",
    "--chunk-length-bp",
    "--expected-length",
    type=int,
    metavar="BP",
    default=TrainConfig.chunk_length_bp,
    show_default=True,
    help="Length of a chunk.",
)
@click.option(
    "--groups",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TSV",
    help="Columns id and group: a group, such as a species, is never split.",
)
@click.option(
    "--valid-share",
    type=float,
    metavar="SHARE",
    default=TrainConfig.valid_share,
    show_default=True,
    help="Held out to decide when to stop, and to calibrate.",
)
@click.option(
    "--test-share",
    type=float,
    metavar="SHARE",
    default=TrainConfig.test_share,
    show_default=True,
    help="Held out for the report.",
)
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    default=TrainConfig.epochs,
    show_default=True,
    help="At most; training stops when it no longer helps.",
)
@click.option(
    "--seed", type=int, metavar="N", default=TrainConfig.seed, show_default=True, help="Of chance."
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier run has finished.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the classifier and its directory.")
@backend_options
@click.option(
    "--dna-dim",
    type=int,
    metavar="N",
    default=TrainConfig.dna_dim,
    show_default=True,
    help="Numbers in a DNA embedding of --merged.",
)
@click.option(
    "--protein-dim",
    type=int,
    metavar="N",
    default=TrainConfig.protein_dim,
    show_default=True,
    help="The same of a protein embedding.",
)
@compute_options
@launch_options
@budget_options
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.pass_context
def train_command(ctx: click.Context, /, **_: Any) -> None:
    """Train a classifier on viral and other sequences.

    Open frames without ambiguous bases are embedded, an MLP learns to tell
    them apart, and its scores are calibrated on records that it has not seen.
    The report on still others is in MODEL_training: report.tsv, .json, .png,
    .svg.

    \b
    Examples:
      virnucpro train --viral phages.fa eukaryotic_viruses.fa \\
        --other bacteria.fa archaea.fa fungi.fa --groups species.tsv \\
        -o my_head.safetensors
      virnucpro predict contigs.fa -m custom -p my_head.safetensors
    """  # noqa: D301 (click reads the \b)
    apart = LAUNCH_OPTIONS | {"no_progress"}
    config = TrainConfig(**{k: v for k, v in given_options(ctx).items() if k not in apart})
    hide_other_gpus(ctx.params["gpus"])
    layout = RunDirectory(config.work_dir, config.output_path.stem)
    used = config.output_path.exists() or layout.is_used()
    settled = settle_output(config, config.output_path, used=used, may_ask=True)
    if settled is None:
        return
    leave_to_launch(ctx, settled, force=settled.force and not config.force)
    from virnucpro import train

    with shown_progress(layout.metrics_path, wanted=wants_progress(ctx)):
        result = train(settled)
    if is_main_process():
        echo_sections([section for section in result.sections if section.subset == "all"])
        click.echo(f"classifier: {result.model_path}")
        click.echo(f"report: {result.report_dir}")
