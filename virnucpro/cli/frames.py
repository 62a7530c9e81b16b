"""`virnucpro frames`: the open frames of sequences as a table."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from virnucpro.cli.options import config_command
from virnucpro.config import STDIN, FrameRule, FrameTableConfig
from virnucpro.errors import UsageError, VirnucproError

if TYPE_CHECKING:
    from virnucpro.sequences.frame_store import FrameStore


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
    """  # noqa: D301 (click reads the \b)
    from virnucpro.checkpoints.whole_files import replace_when_whole
    from virnucpro.sequences.frame_store import build_frame_store

    inputs, output = config.inputs, config.output_path
    target = Path(output).resolve()
    if output != STDIN and target in [Path(path).resolve() for path in inputs if path != STDIN]:
        raise UsageError(f"{output}: is the input; choose another output (-o)")
    # A pipe or /dev/null must not be replaced by a file.
    is_file = output != STDIN and (target.is_file() or not target.exists())
    try:
        with tempfile.TemporaryDirectory(
            prefix=".virnucpro-frames-", dir=target.parent if is_file else None
        ) as scratch:
            store = build_frame_store(
                inputs,
                Path(scratch, "store"),
                chunk_length_bp=config.chunk_length_bp,
                rule=FrameRule.parse(config.frame_rule),
            )
            if output == STDIN:
                _write_table(store, sys.stdout.buffer)
                return
            place = replace_when_whole(target) if is_file else nullcontext(target)
            with place as path, path.open("wb") as stream:
                _write_table(store, stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VirnucproError(
            f"{output}: cannot be written ({error.strerror}); give another place with -o"
        ) from error


def _write_table(store: FrameStore, stream: BinaryIO) -> None:
    # NumPy would slow `virnucpro --help` down.
    from virnucpro.backend.arrays import split_rows

    stream.write(b"frame_id\tdna\tprotein\n")
    dna, protein = store.sequences("dna"), store.sequences("protein")
    for block in split_rows(0, store.num_frames):
        rows = range(block.start, block.stop)
        columns = store.frame_ids(rows.start, rows.stop), dna.get_many(rows), protein.get_many(rows)
        lines = ["\t".join(row) + "\n" for row in zip(*columns, strict=True)]
        stream.write("".join(lines).encode("utf-8", "surrogateescape"))
