"""Runs the command line: `python -m virnucpro`, and `python virnucpro` from a checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # With -m, Python puts the working directory first, where a stranger's click.py may lie beside
    # the sequences. Otherwise it puts this directory first, where our modules have wrong names.
    here = Path(__file__).absolute().parent
    if not sys.flags.safe_path or sys.path[0] == str(here):
        del sys.path[0]
    if str(here.parent) not in sys.path:
        sys.path.insert(0, str(here.parent))

from virnucpro.cli.main import main

if __name__ == "__main__":
    main()
