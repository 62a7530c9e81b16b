"""Reading a finished run into Python: its tables, and the embeddings of its chunks' rows."""

from __future__ import annotations

import csv
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.checkpoints.run_directory import find_run
from virnucpro.config import ExportConfig
from virnucpro.reports.run_json import read_run_json
from virnucpro.workflows import require_package
from virnucpro.workflows.export import export_embeddings

if TYPE_CHECKING:
    import anndata
    import pandas as pd

# The columns of all tables that have NA where a number is unknown.
_NUMBERS = ("score", "probability", "scored_share", "evidence")


class FinishedRun:
    """The results of a finished run of `predict`. A table is read when you first ask for it.

    Attributes:
        directory: The run's directory, which knows the path of every file.
        document: What `run.json` says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = find_run(directory)
        self.document: dict[str, Any] = read_run_json(self.directory.run_json)

    @cached_property
    def records(self) -> pd.DataFrame:
        """The table `records.tsv`, with the ids as its index."""
        return _read_table(self.directory.records_tsv).set_index("record_id")

    @cached_property
    def chunks(self) -> pd.DataFrame:
        """The table `chunks.tsv`."""
        return _read_table(self.directory.chunks_tsv)

    @cached_property
    def regions(self) -> pd.DataFrame:
        """The table `viral_regions.tsv`."""
        return _read_table(self.directory.regions_tsv)

    @cached_property
    def embeddings(self) -> anndata.AnnData:
        """The embeddings of all open frames or stretches, as `virnucpro export --to anndata`."""
        require_package("anndata", "data")
        from anndata import read_h5ad

        with tempfile.TemporaryDirectory(prefix="virnucpro-") as scratch:
            # Through `export`, which joins copies with what was embedded, and checks the parts.
            config = ExportConfig(
                run_dir=self.directory.output_path,
                output_dir=Path(scratch, "exported"),
                to="anndata",
            )
            return read_h5ad(export_embeddings(config).paths[0])


def read_run(directory: str | Path) -> FinishedRun:
    """Return a finished run, whose tables are pandas DataFrames.

    Args:
        directory: The output directory of `predict`.

    Raises:
        InputError: The directory holds no finished run.
        UsageError: Later, when a table is read: pandas or anndata is not installed.
    """
    return FinishedRun(Path(directory))


def import_pandas() -> Any:
    """Return the module pandas.

    Raises:
        UsageError: It is not installed.
    """
    require_package("pandas", "data")
    import pandas as pd

    return pd


def _read_table(path: Path) -> pd.DataFrame:
    # Ids may be numbers, or words such as NA, and must stay as they are.
    table: pd.DataFrame = import_pandas().read_csv(
        path,
        sep="\t",
        quoting=csv.QUOTE_NONE,
        encoding_errors="surrogateescape",
        keep_default_na=False,
        # Only in columns of numbers: a record may be called NA.
        na_values={name: ["NA"] for name in _NUMBERS},
        dtype={"record_id": str},
    )
    return table
