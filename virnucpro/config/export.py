"""The settings of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from virnucpro.config.options import REQUIRED, Config, argument, option

ExportFormat = Literal["pt", "npz", "anndata", "parquet"]


@dataclass(frozen=True)
class ExportConfig(Config, group="Output"):
    """The settings of `export`."""

    run_dir: Path = argument(
        help="Output directory of predict, finished or not, or of migrate.",
        metavar="RUN_DIR",
        path="run",
    )
    output_dir: Path = option(
        REQUIRED,
        "-o",
        help="Directory for the files. It must be empty, or not exist.",
        path="new directory",
    )
    to: ExportFormat = option(
        REQUIRED,
        help="Format. pt: merged files of the original VirNucPro; anndata: one .h5ad file; "
        "parquet: one table, for pandas, Polars, DuckDB and R.",
        choices=get_args(ExportFormat),
    )
    sequences_per_file: int = option(10_000, help="Rows in a pt or npz file.", minimum=1)
