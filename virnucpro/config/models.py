"""The settings of the commands under `models`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import Config, argument, option
from virnucpro.config.published import PUBLISHED
from virnucpro.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ListModelsConfig(Config):
    """The settings of `models list`."""

    json: bool = option(False, help="Print JSON instead of a table.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The settings of `models path` and `models remove`."""

    name: str = argument(
        help="A name that models list shows.", metavar="NAME", choices=tuple(PUBLISHED)
    )


@dataclass(frozen=True, kw_only=True)
class VerifyModelsConfig(Config):
    """The settings of `models verify`."""

    names: tuple[str, ...] = argument(
        (),
        help="Names that models list shows; by default all models that are there.",
        metavar="[NAME...]",
        choices=tuple(PUBLISHED),
    )


@dataclass(frozen=True, kw_only=True)
class DownloadModelsConfig(Config):
    """The settings of `models download`."""

    names: tuple[str, ...] = argument(
        help="Names that models list shows.", metavar="NAME...", choices=tuple(PUBLISHED)
    )
    to: Path | None = option(
        None,
        help="Directory for the models, for a machine without a network.",
        details="On that machine, set VIRNUCPRO_MODELS to this directory.",
        unset="the user's cache",
        path="new directory",
    )
    mirror: str | None = option(
        None,
        help="Take the models from here: a directory that --to has filled, or its address on a "
        "file server.",
        metavar="PLACE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise UsageError("no model: wanted at least one name of `virnucpro models list`")
