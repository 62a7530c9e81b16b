"""`virnucpro calibrate`: probabilities for a classifier, from a labelled run."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo, echo_sections
from virnucpro.config import CalibrateConfig


@config_command("calibrate", short_help="Give a classifier a calibration, from a labelled run.")
def calibrate_command(ctx: click.Context, config: CalibrateConfig) -> None:
    """Give CLASSIFIER a calibration, from a run with known labels.

    With the new file, predict writes probabilities and calls by them. The command prints how good
    the probabilities are, measured on groups that a fit left out. CLASSIFIER stays as it is.

    \b
    Example:
      virnucpro predict known.fasta -m 500 -o known
      virnucpro calibrate "$(virnucpro models path 500)" --run-dir known \\
        --truth labels.tsv -o calibrated.safetensors
      virnucpro predict contigs.fasta -p calibrated.safetensors --max-fdr 0.05
    """
    from virnucpro import calibrate

    result = calibrate(config)
    # Of fits to other groups, because the calibration itself has seen all of these records.
    echo_sections(result.sections)
    made = result.calibration
    echo(
        f"calibration: slope {made.slope:.4g}, slope growth {made.slope_growth:.4g}, offset "
        f"{made.offset:.4g}, offset growth {made.offset_growth:.4g}, up to {made.most_chunks} "
        "scored chunks"
    )
    echo(f"classifier: {result.output_path}")
