"""`virnucpro frames`: the open frames of sequences as a table."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.config import FrameTableConfig


@config_command("frames", short_help="Write the open frames of sequences as a table.")
def frames_command(ctx: click.Context, config: FrameTableConfig) -> None:
    """Write the open frames of nucleotide sequences as a TAB-separated table.

    Every record is cut into chunks, and every chunk is read in six frames. The table has the
    frames without a stop codon, in the columns frame_id, dna and protein. With --frame-rule
    stretches, it has the longest stretches without a stop codon instead.

    \b
    Examples:
      virnucpro frames contigs.fa -e 500 -o frames.tsv
      virnucpro frames phages.fa --frame-rule stretches:2:20:code=11
      zcat reads.fq.gz | virnucpro frames - -e 300 | cut -f 1,3
    """
    from virnucpro.workflows.frames import write_frames

    write_frames(config)
