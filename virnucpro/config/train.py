"""What `train` does: what it learns from, the splits, the fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.shared import STDIN, FramesConfig
from virnucpro.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FramesConfig):
    """What `train` does.

    Attributes:
        viral: FASTA or FASTQ files of viral sequences.
        other: Files of other sequences; each file is a class, and all classes count alike.
        merged: The original's labelled features instead of sequences.
        output_path: The classifier to write; the report and all finished work go to a directory
            beside it.
        chunk_length_bp: Length in bp that records are cut into.
        groups: A table with the columns `id` and `group`: records of one group, such as a species,
            are never on two sides of a split. None for each record alone.
        valid_share: The share of the records that decides when to stop, and that the calibration
            is fitted to.
        test_share: The share of the records that only the report sees.
        epochs: Passes over the training frames, at most.
        seed: Of the splits, the sampling, the training and the confidence intervals.
        dna_dim: Numbers in a DNA embedding of `merged`.
        protein_dim: Numbers in a protein embedding of `merged`.

    Raises:
        UsageError: A value is not to be had, or values do not go together.
    """

    viral: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    output_path: Path
    chunk_length_bp: int = 500
    groups: Path | None = None
    valid_share: float = 0.1
    test_share: float = 0.1
    epochs: int = 100
    seed: int = 0
    dna_dim: int = 768
    protein_dim: int = 2560

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("viral", "other", "merged"):
            self._set_paths(name)
        self._set("output_path", Path(self.output_path))
        for name in ("chunk_length_bp", "epochs", "dna_dim", "protein_dim"):
            self._require_at_least(name, 1)
        self._require_at_least("seed", 0)
        self._require_share("valid_share")
        self._require_share("test_share")
        if self.valid_share + self.test_share >= 1:
            raise UsageError(
                f"valid_share {self.valid_share} and test_share {self.test_share}: nothing is left "
                "to train on; wanted less than 1 together"
            )
        sequences = bool(self.viral), bool(self.other)
        if any(sequences) == bool(self.merged) or any(sequences) != all(sequences):
            raise UsageError(
                "wanted either viral and other sequences (--viral and --other), or labelled "
                "features (--merged)"
            )
        if STDIN in self.inputs:
            raise UsageError("training reads its input more than once; give files instead of -")

    @property
    def inputs(self) -> tuple[str, ...]:
        """All input files, viral ones first."""
        return (*self.viral, *self.other, *self.merged)

    @property
    def work_dir(self) -> Path:
        """Where the report and all finished work go: `head_training` for `head.safetensors`."""
        return self.output_path.with_name(f"{self.output_path.stem}_training")
