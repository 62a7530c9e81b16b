"""The version of the checkpoint format, and the steps that bring older documents up to it.

Readers know one version. Whoever changes the format writes a step from the version before; a
document of any age is then migrated by the steps between its version and the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from virnucpro.errors import CheckpointError

FORMAT_VERSION = 3
"""0 is the original's `.pt` files, 1 the optimized fork's v1.0, 2 its v2.0: see FORMAT.md."""

Document = dict[str, Any]
Step = Callable[[Document], Document]


class FormatVersionError(CheckpointError):
    """A checkpoint that is whole but of another version of the format."""


def check_version(name: object, version: int, current: int = FORMAT_VERSION) -> None:
    """Let `version` pass only if it is the one that is read; `name` says of what it is.

    Raises:
        FormatVersionError: It is older or newer.
    """
    if version > current:
        raise FormatVersionError(
            f"{name}: format version {version}, written by a newer virnucpro: this one reads "
            f"version {current}; update virnucpro"
        )
    if version < current:
        raise FormatVersionError(
            f"{name}: format version {version} is older than version {current}, which is read; "
            "it needs migrating"
        )


class Migrations:
    """Steps from each version of a format to the next, up to `current`."""

    def __init__(self, current: int) -> None:
        self._current = current
        self._steps: dict[int, Step] = {}

    def register(self, source: int) -> Callable[[Step], Step]:
        """Return a decorator that makes a pure function the step from `source` to `source + 1`."""
        if source in self._steps:
            raise ValueError(f"a step from version {source} is registered already")

        def add(step: Step) -> Step:
            self._steps[source] = step
            return step

        return add

    def apply(self, document: Document, version: int) -> Document:
        """Return `document`, which is of `version`, as the current version has it.

        Raises:
            FormatVersionError: `version` is newer than the current one, or a step is missing.
        """
        if version > self._current:
            check_version("document", version, self._current)
        for source in range(version, self._current):
            if source not in self._steps:
                raise FormatVersionError(
                    f"no step leads from format version {source} to {source + 1}, so version "
                    f"{version} cannot be brought to version {self._current}"
                )
            document = self._steps[source](document)
        return document


FORMAT_MIGRATIONS = Migrations(FORMAT_VERSION)
