"""A module of MultiQC, which finds it by an entry point: `multiqc DIRECTORY` shows all runs there.

MultiQC imports this file; virnucpro itself does not, and works without MultiQC.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from multiqc import config
from multiqc.base_module import BaseMultiqcModule, ModuleNoSamplesFound
from multiqc.plots import bargraph, linegraph

from virnucpro.errors import InputError
from virnucpro.reports.record_results import CALLS
from virnucpro.reports.run_json import read_run_json

_KEY = "virnucpro"
_NAMES = {"virus": "virus", "others": "others", "none": "no call"}
_COLOURS = {"virus": "#c2410c", "others": "#2b6cb0", "none": "#8a949e"}

logger = logging.getLogger(__name__)


def add_search_pattern() -> None:
    """Tell MultiQC which files are ours, before it reads settings that may say otherwise."""
    # Other programs may write a run.json. This key is ours alone.
    config.sp[_KEY] = {"fn": "*run.json", "contents": '"frame_rule":'}


class MultiqcModule(BaseMultiqcModule):
    """Columns, calls, lengths and scores of the runs of `virnucpro predict`."""

    def __init__(self) -> None:
        """Read every run.json that MultiQC has found, and add what the report shows.

        Raises:
            ModuleNoSamplesFound: There is none.
        """
        super().__init__(
            name="virnucpro",
            anchor=_KEY,
            href="https://github.com/Li-Jing-1997/VirNucPro",
            info="Tells which contigs and reads are viral.",
            doi="10.1093/bib/bbaf224",
        )
        runs: dict[str, Any] = {}
        for file in self.find_log_files(_KEY):
            try:
                run = read_run_json(Path(file["root"], file["fn"]))
            # One bad file, or a share of a run, must not cost the report of all other runs.
            except InputError as error:
                logger.warning("left out: %s", error)
                continue
            # The files of a run begin with its prefix; without one, its directory names it.
            prefix = file["fn"].removesuffix("run.json").removesuffix("_")
            directory = Path(file["root"]).resolve().name.removesuffix("_predictions")
            sample = self.clean_s_name(prefix or directory, file)
            runs[sample] = run
            self.add_data_source(file, sample)
            self.add_software_version(run["versions"]["virnucpro"], sample)
        # The user may have told MultiQC to leave some out.
        runs = self.ignore_samples(runs)
        if not runs:
            raise ModuleNoSamplesFound
        self._add_columns(runs)
        self._add_calls(runs)
        self._add_histograms(runs)
        counts = {sample: run["counts"] for sample, run in runs.items()}
        self.write_data_file(counts, "multiqc_virnucpro")

    def _add_columns(self, runs: Mapping[str, Any]) -> None:
        columns = {
            "records": {"title": "Records", "format": "{:,.0f}", "scale": "Greys", "hidden": True},
            "virus": {
                "title": "Viral",
                "description": "Records that are called viral",
                "format": "{:,.0f}",
                "scale": "Oranges",
            },
            "share": {
                "title": "% Viral",
                "description": "Share of the records that are called viral",
                "suffix": "%",
                "max": 100,
                "scale": "Oranges",
            },
            "expected_fdr": {
                "title": "% Expected FDR",
                "description": "Expected share of the viral records that are something else",
                "suffix": "%",
                "max": 100,
                "scale": "OrRd",
            },
            "none": {
                "title": "No call",
                "description": "Records without a call",
                "format": "{:,.0f}",
                "scale": "Greys",
            },
        }
        rows: dict[str, dict[str, Any]] = {}
        for sample, run in runs.items():
            counts, expected = run["counts"], run["calls"]["expected_fdr"]
            rows[sample] = {name: counts[name] for name in ("records", "virus", "none")}
            # A run with --allow-empty may have no records.
            rows[sample]["share"] = 100 * counts["virus"] / max(1, counts["records"])
            if expected is not None:
                rows[sample]["expected_fdr"] = 100 * expected
        self.general_stats_addcols(rows, columns)

    def _add_calls(self, runs: Mapping[str, Any]) -> None:
        self.add_section(
            name="Calls",
            anchor="virnucpro-calls",
            description="The number of records with each call.",
            plot=bargraph.plot(
                {
                    sample: {call: run["counts"][call] for call in CALLS}
                    for sample, run in runs.items()
                },
                {call: {"name": _NAMES[call], "color": _COLOURS[call]} for call in CALLS},
                {"id": "virnucpro_calls", "title": "virnucpro: Calls", "ylab": "Records"},
            ),
        )

    def _add_histograms(self, runs: Mapping[str, Any]) -> None:
        for name, heading, axis in (
            ("length", "Lengths", "Length (bp)"),
            ("score", "Scores", "Score"),
            ("probability", "Probabilities", "Probability"),
        ):
            lines = [
                {sample: _make_line(run["histograms"][name], calls) for sample, run in runs.items()}
                for calls in (("virus",), CALLS)
            ]
            self.add_section(
                name=heading,
                anchor=f"virnucpro-{name}",
                description=f"The number of records by {name}; each point is the middle of a bin.",
                plot=linegraph.plot(
                    lines,
                    {
                        "id": f"virnucpro_{name}",
                        "title": f"virnucpro: {axis}",
                        "xlab": axis,
                        "ylab": "Records",
                        "xlog": name == "length",
                        "data_labels": [
                            {"name": "Viral records", "ylab": "Viral records"},
                            {"name": "All records", "ylab": "Records"},
                        ],
                    },
                ),
            )


def _make_line(histogram: Mapping[str, Any], calls: tuple[str, ...]) -> dict[float, int]:
    """Return the records at the middle of each bin, over some calls."""
    edges = histogram["edges"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    totals = map(sum, zip(*(histogram[call] for call in calls), strict=True))
    return dict(zip(middles, totals, strict=True))
