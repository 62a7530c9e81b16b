"""The story of `virnucpro report`: the page of a run, of several runs, or of figures."""

from __future__ import annotations

from pathlib import Path

from virnucpro.checkpoints.run_directory import find_run
from virnucpro.checkpoints.whole_files import refuse_existing
from virnucpro.config import ReportConfig
from virnucpro.errors import UsageError
from virnucpro.reports.pages.comparison_page import write_comparison_page
from virnucpro.reports.pages.evaluation_page import write_evaluation_page
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.report import REPORT_NAME
from virnucpro.reports.run_json import read_run_json


def report(config: ReportConfig) -> Path:
    """Write the page of finished runs, and return where it is.

    A directory of `predict` gets the page of a run. A directory of `train` or `evaluate` gets the
    page of its figures. Several directories of `predict` are compared.

    Raises:
        InputError: A directory holds no finished run, or a file of it is damaged.
        OutputExistsError: The page would replace a file that is not the page of this run.
        UsageError: The page would replace a result of one of the runs.
        OutputError: The page cannot be written.
    """
    ReportConfig.require(config)
    first, *others = config.run_dirs
    runs = [find_run(one) for one in config.run_dirs]
    path = config.output_path or (Path("report.html") if others else runs[0].report_html)
    if any(path.resolve() != run.report_html.resolve() and run.owns(path) for run in runs):
        raise UsageError(f"{path}: is a result of the run; choose another name (-o)")
    # The page of a run in its own directory is made from that run, so a new one loses nothing.
    is_own = config.output_path is None and not others
    if not (config.force or is_own):
        refuse_existing(path)
    # Only runs of `predict` are compared; their tables have the same columns.
    if others:
        write_comparison_page(config.run_dirs, path)
    # The files say what kind of directory it is, and nobody has to name it.
    elif (first / REPORT_NAME).is_file():
        write_evaluation_page(first, path)
    else:
        # Looked at here, because only this command takes directories of three commands.
        read_run_json(runs[0].run_json, "virnucpro predict, train or evaluate")
        write_run_page(runs[0], path)
    return path
