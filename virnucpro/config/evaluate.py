"""The settings of `evaluate` and of `calibrate`, which compare a run with known labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import REQUIRED, Config, accepting_former, argument, option


def truth_option() -> Path:
    """Return the field of the table of known labels."""
    # Two commands read the same table, so it is described once.
    field: Path = option(
        REQUIRED,
        help="Table with the columns id and label (virus or others). It may also have the columns "
        "class (each class is measured separately) and group (related records).",
        details="Records of one group are resampled together.",
        group="Input",
        metavar="TSV",
        path="file",
    )
    return field


@accepting_former(predictions="run_dir")
@dataclass(frozen=True)
class EvaluateConfig(Config, group="Output"):
    """The settings of `evaluate`."""

    # The table alone is enough, so this need not be a run.
    run_dir: Path = argument(
        help="Output directory of predict, or its records.tsv.", metavar="RUN_DIR", path="run"
    )
    truth: Path = truth_option()
    output_dir: Path | None = option(
        None,
        "-o",
        help="Directory for the report.",
        unset="evaluation, beside records.tsv",
        path="new directory",
    )
    force: bool = option(False, "-f", help="Overwrite an existing report.")

    @property
    def records_tsv(self) -> Path:
        """The table of the run's records."""
        path = self.run_dir
        if path.exists():
            return path / "records.tsv" if path.is_dir() else path
        # A run with a prefix is named as for other commands: by `directory/prefix`.
        prefixed = path.with_name(f"{path.name}_records.tsv")
        return prefixed if prefixed.exists() else path

    @property
    def resolved_output_dir(self) -> Path:
        """The directory for the report, given or by default."""
        # The names of a run may have a prefix.
        prefix, _, ending = self.records_tsv.name.rpartition("records.tsv")
        name = "evaluation" if ending else f"{prefix}evaluation"
        return self.output_dir or self.records_tsv.with_name(name)


@accepting_former(run="run_dir")
@dataclass(frozen=True)
class CalibrateConfig(Config, group="Output"):
    """The settings of `calibrate`."""

    classifier: Path = argument(help="Classifier that made the run.", path="file")
    run_dir: Path = option(
        REQUIRED,
        "--run",
        help="Output directory of predict with this classifier.",
        details="Its records must not be those that the classifier was trained on.",
        group="Input",
        path="run",
    )
    truth: Path = truth_option()
    output_path: Path = option(
        REQUIRED, "-o", "--output", help="File for the calibrated classifier.", path="new file"
    )
    force: bool = option(False, "-f", help="Overwrite an existing file.")
