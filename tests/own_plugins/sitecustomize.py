"""Hides plug-ins that somebody has installed, so that tests see those that they make themselves.

Python runs this in every process that has this directory on its path. The processes also look for
unused objects as seldom as the command line does: each ends half a second earlier.
"""

import atexit
import gc
import importlib.metadata
import sysconfig
from pathlib import Path

_GROUPS = ("virnucpro.backends", "virnucpro.benchmarks")
_SITES = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
_find_all = importlib.metadata.entry_points


def _find_own(**params):
    found = _find_all(**params)
    if params.get("group") not in _GROUPS:
        return found
    return importlib.metadata.EntryPoints(
        entry
        for entry in found
        if entry.dist.name == "virnucpro"
        or Path(str(entry.dist.locate_file(""))).resolve() not in _SITES
    )


importlib.metadata.entry_points = _find_own
gc.set_threshold(10_000)
atexit.register(gc.freeze)
