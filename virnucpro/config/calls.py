"""The settings that decide which records are called viral: of `predict`, and of `call`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.config.options import Config, Option, argument, option, option_name
from virnucpro.errors import UsageError

DEFAULT_THRESHOLD = 0.5
"""Of the probability or of the score, if the classifier states no other."""

PRESETS = {"relaxed": 0.2, "conservative": 0.01}
"""The bound on the expected false discovery rate that each preset stands for."""


@dataclass(frozen=True, kw_only=True)
class CallsConfig(Config, group="Classifier and calls"):
    """Which records are called viral, and what is written of them."""

    threshold: float | None = option(
        None,
        help="Call a record viral if its probability is at least this.",
        unset="0.5, or by the classifier",
        details="If the classifier has no calibration, this is the threshold of the score.",
        metavar="PROBABILITY",
        within="score",
    )
    max_fdr: float | None = option(
        None,
        help="Call as many records viral as this expected false discovery rate allows, instead of "
        "using --threshold.",
        details="The classifier needs a calibration for this.",
        metavar="RATE",
        within="share",
    )
    preset: str | None = option(
        None,
        help="relaxed: call as many records viral as an expected false discovery rate of "
        f"{PRESETS['relaxed']:g} allows, and at least those of the default. conservative: call as "
        f"many as a rate of {PRESETS['conservative']:g} allows, and only those of the default.",
        details="The classifier needs a calibration for this.",
        choices=tuple(PRESETS),
        shorthands={f"--{name}": name for name in PRESETS},
    )
    viral_share: float | None = option(
        None,
        help="Expected share of viral records in the input; probabilities depend on it.",
        unset="by the classifier",
        details="Most classifiers were calibrated for 0.5.",
        metavar="SHARE",
        within="share",
    )
    # Not set here: `call` takes from the run what nobody gives, and `predict` fills in the rest.
    estimate_viral_share: bool | None = option(
        None,
        help="Estimate the share of viral records from the input, instead of --viral-share.",
        unset="off",
        details="This needs 100 records with a probability.",
    )
    regions: str | None = option(
        None,
        help="all: write the tables of viral regions. provirus: also write proviruses.fasta, with "
        "the viral regions of records that are not called viral.",
        unset="all",
        choices=("all", "provirus"),
        group="Output",
    )
    fastq: bool | None = option(
        None,
        help="Also write viral.fastq: the viral reads of FASTQ inputs, with their qualities.",
        details="The inputs are read again for that.",
        unset="off",
        group="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Each of them sets the threshold, and no order says which of two would win.
        given = self.name_given("max_fdr", "preset", "threshold")
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(given)} both decide what is called viral; give only one of them"
            )
        if self.estimate_viral_share and self.viral_share is not None:
            raise UsageError(
                "--viral-share and --estimate-viral-share both say how many records are viral; "
                "give only one of them"
            )

    def name_given(self, *names: str) -> list[str]:
        """Return the options that have a value, of the settings `names`, as users type them."""
        return [
            # By its shorthand, --relaxed or --conservative, which the docs use.
            f"--{self.preset}" if name == "preset" else option_name(name)
            for name in names
            if getattr(self, name) not in (None, False)
        ]


def _kept_from_run(name: str) -> Any:
    """Return the field of a setting of `CallsConfig` whose default is that of the run."""
    stated: Option = CallsConfig.__dataclass_fields__[name].metadata["option"]
    kept = dataclasses.replace(stated, unset="as in the run")
    return dataclasses.field(default=None, metadata={"option": kept})


@dataclass(frozen=True, kw_only=True)
class CallConfig(CallsConfig, group="Classifier and calls"):
    """The settings of `call`."""

    run_dir: Path = argument(
        help="Output directory of a finished predict.", metavar="RUN_DIR", path="run"
    )
    viral_share: float | None = _kept_from_run("viral_share")
    estimate_viral_share: bool | None = _kept_from_run("estimate_viral_share")
    regions: str | None = _kept_from_run("regions")
    fastq: bool | None = _kept_from_run("fastq")
