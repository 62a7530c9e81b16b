"""The story of `virnucpro frames`: the frames of sequences become one table."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from virnucpro.backend.arrays import split_rows
from virnucpro.checkpoints.whole_files import refuse_existing, replace_when_whole
from virnucpro.config import STDIN, FrameRule, FrameTableConfig
from virnucpro.errors import UsageError, VirnucproError, printable
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store


def write_frames(config: FrameTableConfig) -> None:
    """Write the frames of nucleotide sequences as a TAB-separated table.

    Raises:
        UsageError: The output is one of the inputs, or the frame rule is invalid.
        OutputExistsError: The output exists.
        InputError: A sequence file cannot be read.
        VirnucproError: The output cannot be written.
    """
    inputs, output = config.inputs, config.output_path
    target = Path(output).resolve()
    if output != STDIN and target in [Path(path).resolve() for path in inputs if path != STDIN]:
        raise UsageError(f"{output}: is the input; choose another output (-o)")
    # A pipe or /dev/null must not be replaced by a file.
    is_file = output != STDIN and (target.is_file() or not target.exists())
    if is_file and not config.force:
        refuse_existing(Path(output))
    try:
        with tempfile.TemporaryDirectory(
            prefix=".virnucpro-frames-", dir=target.parent if is_file else None
        ) as scratch:
            store = build_frame_store(
                inputs,
                Path(scratch, "store"),
                StoreSettings(config.chunk_length_bp, rule=FrameRule.parse(config.frame_rule)),
            )
            if output == STDIN:
                _write_table(store, sys.stdout.buffer)
                return
            place = replace_when_whole(target) if is_file else nullcontext(target)
            with place as path, path.open("wb") as stream:
                _write_table(store, stream)
    # A reader such as `head` has seen enough, and this is no trouble with the output.
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if output == STDIN else output
        raise VirnucproError(
            f"{name}: cannot be written ({error.strerror}); give another place with -o"
        ) from error


def _write_table(store: FrameStore, stream: BinaryIO) -> None:
    stream.write(b"frame_id\tdna\tprotein\n")
    dna, protein = store.sequences("dna"), store.sequences("protein")
    for block in split_rows(0, store.num_rows):
        rows = range(block.start, block.stop)
        columns = store.frame_ids(rows.start, rows.stop), dna.get_many(rows), protein.get_many(rows)
        lines = ["\t".join(row) + "\n" for row in zip(*columns, strict=True)]
        text = "".join(lines)
        # A file keeps the ids as they are; on a terminal, they must not control it.
        shown = printable(text) if stream.isatty() else text
        stream.write(shown.encode("utf-8", "surrogateescape"))
