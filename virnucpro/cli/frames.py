"""`virnucpro frames`: the open frames of sequences as a table."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from virnucpro.errors import UsageError, VirnucproError

if TYPE_CHECKING:
    from virnucpro.sequences.frame_store import FrameStore

_ROWS_AT_A_TIME = 1 << 14


@click.command("frames", short_help="Write the open frames of sequences as a table.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-e",
    "--chunk-length-bp",
    "--expected-length",
    type=click.IntRange(min=3),
    default=500,
    show_default=True,
    metavar="BP",
    help="Length of the chunks that records are cut into.",
)
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="Where to write the table; standard output by default.",
)
def frames_command(inputs: tuple[str, ...], chunk_length_bp: int, output: str) -> None:
    """Write the open frames of nucleotide sequences as a TAB-separated table.

    INPUT is FASTA or FASTQ, plain or compressed (gz, bz2, xz, zst); "-" is standard input. Every
    record is cut into chunks, every chunk is read in six frames, and the frames without a stop
    codon are written in the columns frame_id, dna and protein.

    \b
    Examples:
      virnucpro frames contigs.fa -e 500 -o frames.tsv
      zcat reads.fq.gz | virnucpro frames - -e 300 | cut -f 1,3
    """  # noqa: D301 (click reads the \b)
    from virnucpro.checkpoints.whole_files import replace_when_whole
    from virnucpro.sequences.frame_store import build_frame_store

    target = Path(output).resolve()
    if output != "-" and target in [Path(path).resolve() for path in inputs if path != "-"]:
        raise UsageError(f"{output}: is the input; choose another output (-o)")
    # What is no file, such as a pipe or /dev/null, must not be replaced by one.
    is_file = output != "-" and (target.is_file() or not target.exists())
    try:
        with tempfile.TemporaryDirectory(
            prefix=".virnucpro-frames-", dir=target.parent if is_file else None
        ) as scratch:
            store = build_frame_store(
                inputs, Path(scratch, "store"), chunk_length_bp=chunk_length_bp
            )
            if output == "-":
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
    stream.write(b"frame_id\tdna\tprotein\n")
    dna, protein = store.sequences("dna"), store.sequences("protein")
    for start in range(0, store.num_frames, _ROWS_AT_A_TIME):
        rows = range(start, min(start + _ROWS_AT_A_TIME, store.num_frames))
        columns = store.frame_ids(rows.start, rows.stop), dna.get_many(rows), protein.get_many(rows)
        lines = ["\t".join(row) + "\n" for row in zip(*columns, strict=True)]
        stream.write("".join(lines).encode("utf-8", "surrogateescape"))
