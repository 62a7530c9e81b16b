"""Where virnucpro finds files: its cache, downloaded models, and what comes with the package."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from virnucpro.errors import WeightsError

MODELS_VARIABLE = "VIRNUCPRO_MODELS"
"""Names the directory with downloaded models."""

CHECKSUMS = "SHA256SUMS"
"""The file in a model's directory that is written last, so that it shows that all is there."""


def user_cache_dir() -> Path:
    """Return the directory below the user's cache where virnucpro keeps files between runs.

    Raises:
        RuntimeError: The user has no home directory.
    """
    # As the XDG Base Directory Specification wants it.
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "virnucpro"


def models_dir() -> Path:
    """Return the directory with downloaded models.

    Raises:
        RuntimeError: The user has no home directory, and no variable names another.
    """
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given) if given else user_cache_dir() / "models"


def find_model(name: str) -> Path | None:
    """Return the file or the whole directory of a model in the models directory, if it is there.

    Args:
        name: Of a file, or `owner/name@revision` of a model on the hub.

    Raises:
        WeightsError: The user has named a directory that may not be read.
    """
    # Without a home directory, no model can be there.
    with suppress(RuntimeError):
        path = models_dir() / name
        try:
            # A directory without it is a download that broke off.
            if path.is_file() or (path / CHECKSUMS).is_file():
                return path
        except PermissionError as error:
            # A container may give a user the home directory of another one.
            if os.environ.get(MODELS_VARIABLE):
                raise WeightsError(
                    f"{error.filename}: you have no permission to read this file, and "
                    f"{MODELS_VARIABLE} names its directory; let its owner run chmod -R a+rX "
                    f"{models_dir()}, or let {MODELS_VARIABLE} name another directory"
                ) from error
    return None


def find_packaged(inside: str, beside: str) -> Path:
    """Return a file that a wheel has inside the package, and a checkout beside it."""
    package = Path(__file__).parents[1]
    places = (package / inside, package.parent / beside)
    return next(place for place in places if place.is_file())
