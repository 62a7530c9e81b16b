"""The command line, but the published models are those that a server of this machine has.

Usage: python tests/published_here.py ADDRESS DIGESTS ARGUMENTS...

DIGESTS is a JSON object: for a name of `virnucpro models list`, the digest of each file.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from virnucpro.config import PUBLISHED

address, digests, *arguments = sys.argv[1:]
for name, of_files in json.loads(digests).items():
    model = PUBLISHED[name]
    url = model.url and f"{address}/{model.location}"
    PUBLISHED[name] = dataclasses.replace(model, url=url, digests=of_files)

from virnucpro.cli.main import main  # noqa: E402

main(arguments, prog_name="virnucpro")
