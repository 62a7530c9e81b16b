"""The command line with small parts, which are no setting: a test starts this as a program."""

import functools

from virnucpro import embedding
from virnucpro.cli import main

ROWS_PER_PART = 64

embedding.PartWriter = functools.partial(embedding.PartWriter, rows_per_part=ROWS_PER_PART)

if __name__ == "__main__":
    main(prog_name="virnucpro")
