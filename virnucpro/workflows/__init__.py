"""One story per command: `virnucpro X` is `workflows/x.py`."""

from collections.abc import Callable

CountListener = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and how much there is."""
