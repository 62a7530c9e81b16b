"""`virnucpro train`: a classifier from labelled sequences."""

from __future__ import annotations

import click

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.options import ConfigCommand, config_command
from virnucpro.cli.starting import hide_other_gpus, leave_to_launch, settle_output, wants_progress
from virnucpro.cli.terminal import echo, echo_sections
from virnucpro.config import LaunchConfig, TrainConfig
from virnucpro.runtime.environment import is_main_process

_SEVERAL = ("--viral", "--other", "--merged")


class _ListCommand(ConfigCommand):
    """A command whose options of files take all words up to the next option.

    So a shell's * works. click itself wants the option before each file, which works as well.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for word in args:
            if word.startswith("-"):
                option = word if word in _SEVERAL else None
                spread.append(word)
            # The first word follows its option already. Each further word needs the option again.
            elif option is not None and spread[-1] != option:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


@config_command("train", cls=_ListCommand, short_help="Train a classifier on your sequences.")
def train_command(ctx: click.Context, config: TrainConfig, launch: LaunchConfig) -> None:
    """Train a classifier on viral and other sequences.

    The command embeds stretches without a stop codon (or open frames), and trains a neural network
    to tell viral records from others. It calibrates the scores on held-out records, the split
    valid. It measures the classifier on other held-out records, the split test. The report is in
    MODEL_training: report.html, .tsv, .json, .png, .svg.

    \b
    Examples:
      virnucpro train --viral phages.fa eukaryotic_viruses.fa \\
        --other bacteria.fa archaea.fa fungi.fa --groups species.tsv \\
        -o my_head.safetensors
      virnucpro predict contigs.fa -m custom -p my_head.safetensors
    """
    hide_other_gpus(launch.gpus)
    layout = RunDirectory(config.work_dir, config.output_path.stem)
    # The classifier and its directory are written at different times, so each may be there alone.
    path = config.output_path if config.output_path.exists() else config.work_dir
    used = path == config.output_path or layout.is_used()
    settled = settle_output(config, path, used=used, may_ask=True)
    if settled is None:
        return
    leave_to_launch(ctx, settled, launch, force=settled.force and not config.force)
    from virnucpro import train
    from virnucpro.cli.progress import shown_progress

    with shown_progress(layout.metrics_path, wanted=wants_progress(ctx, launch)):
        result = train(settled)
    if is_main_process():
        echo("The split test, cut into fragments of 1 to 16 chunks:")
        echo_sections([section for section in result.sections if section.subset == "all"])
        echo(f"classifier: {result.model_path}")
        echo(f"report: {result.report_dir}")
