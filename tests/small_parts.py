"""The command line with small parts, which are no setting: a test starts this as a program."""

import functools

from virnucpro.cli.main import main
from virnucpro.embedding import loop
from virnucpro.embedding.writer import PartWriter

ROWS_PER_PART = 64
SmallPartWriter = functools.partial(PartWriter, rows_per_part=ROWS_PER_PART)

if __name__ == "__main__":
    loop.PartWriter = SmallPartWriter
    main(prog_name="virnucpro")
