"""Runs the command line: `python -m virnucpro`, and `python virnucpro` from a checkout.

The second is what `accelerate launch virnucpro predict` does: it puts this very directory first on
`sys.path`, where our modules would be found under wrong names; the directory above replaces it.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from virnucpro.cli.main import main

if __name__ == "__main__":
    main()
