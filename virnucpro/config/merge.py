"""The settings of `merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import Config, accepting_former, argument, option


@accepting_former(runs="run_dirs")
@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config, group="Output"):
    """The settings of `merge`."""

    run_dirs: tuple[Path, ...] = argument(
        help="Output directories of predict --shard: all shares of one input.",
        metavar="RUN_DIR...",
        path="run",
    )
    output_dir: Path = option(
        Path("merged"), "-o", help="Directory for the results.", path="new directory"
    )
    force: bool = option(False, "-f", help="Overwrite existing results.")
