"""One story per command: `virnucpro X` is `workflows/x.py`."""

from collections.abc import Callable
from importlib.util import find_spec

from virnucpro.backend.interface import Requirement
from virnucpro.errors import UsageError

CountListener = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and how much there is."""


def require_package(name: str, extra: str) -> None:
    """Make sure that a package is installed, without importing it.

    Raises:
        UsageError: It is not.
    """
    if find_spec(name) is None:
        raise UsageError(f"this {Requirement(name, f'virnucpro[{extra}]').explain()}")
