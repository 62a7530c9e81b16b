"""What `evaluate` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluateConfig:
    """What `evaluate` does.

    Attributes:
        predictions: The output directory of `predict`, or its `records.tsv`.
        truth: A table with the columns `id`, `label` and perhaps `class` and `group`; records of
            one group are resampled together.
        output_dir: Where the report goes; by default `evaluation` beside `records.tsv`.
        force: Overwrite a report that is there.
    """

    predictions: Path
    truth: Path
    output_dir: Path | None = None
    force: bool = False

    @property
    def records_tsv(self) -> Path:
        """The table of the run's records."""
        path = Path(self.predictions)
        return path / "records.tsv" if path.is_dir() else path

    @property
    def resolved_output_dir(self) -> Path:
        """Where the report goes, given or by default."""
        return self.output_dir or self.records_tsv.with_name("evaluation")
