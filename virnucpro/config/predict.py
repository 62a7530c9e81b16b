"""What `predict` does: its classifier, its chunks, its calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.config.shared import STDIN, FramesConfig, input_stem
from virnucpro.errors import UsageError

MODEL_TYPES = ("300", "500", "mini", "custom")

MINI_DIRECTORY = Path(__file__).parents[1] / "data" / "mini"
"""The small model that ships with this package: docs/mini.md."""

MINI_LENGTHS_BP = (300, 500)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(FramesConfig):
    """What `predict` does.

    Attributes:
        inputs: FASTA or FASTQ files, plain or compressed, or `-` for standard input; a single one
            may be given as it is.
        output_dir: Where results go; by default `{stem}_predictions` in the working directory.
            Required with several inputs or standard input.
        model_type: `300`, `500` or `custom`: which classifier, and so which chunk length. `mini`:
            the small model in this package, classifier and weights, for chunks of 500 or 300 bp.
        model_path: The classifier; by default the package's for `mini`, for the others
            `{model_type}_model.pth` in the working directory.
        chunk_length_bp: Length of a chunk. By default the model type's; 500 for `custom`.
        min_length_bp: Records shorter than this many bp get no call.
        threshold: A record is called viral from this score on.
        max_fdr: Call as many records viral as keep the expected share of others among them within
            this, instead of by `threshold`; None not to. Needs a calibrated classifier.
        viral_share: The share of viral records in the input that probabilities are to assume;
            None for what the classifier was calibrated for.
        keep_intermediate: Also write the fork's intermediate FASTA files.
        skip_checkpoint_validation: Trust finished parts without reading them again.
        sequences_per_file: Sequences in each of the files that `keep_intermediate` splits.

    Raises:
        UsageError: A value is not to be had, or values do not go together.
    """

    inputs: tuple[str, ...]
    output_dir: Path | None = None
    model_type: str = "500"
    model_path: Path | None = None
    chunk_length_bp: int = None  # type: ignore[assignment]
    min_length_bp: int = 0
    threshold: float = 0.5
    max_fdr: float | None = None
    viral_share: float | None = None
    keep_intermediate: bool = False
    skip_checkpoint_validation: bool = False
    sequences_per_file: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_paths("inputs")
        for name in ("output_dir", "model_path"):
            if getattr(self, name) is not None:
                self._set(name, Path(getattr(self, name)))
        self._set("model_type", str(self.model_type))
        self._require_one_of("model_type", MODEL_TYPES)
        if self.model_type == "mini":
            self._use_mini()
        if self.chunk_length_bp is None:
            self._set("chunk_length_bp", 300 if self.model_type == "300" else 500)
        self._require_at_least("chunk_length_bp", 1)
        self._require_at_least("sequences_per_file", 1)
        self._require_at_least("min_length_bp", 0)
        self._require_share("max_fdr")
        self._require_share("viral_share")
        self._check_together()

    def _use_mini(self) -> None:
        """Let the package's files stand for the weights that are not given."""
        for name, directory in (("dna_weights", "dnabert_s"), ("protein_weights", "esm2")):
            if getattr(self, name) == getattr(type(self), name):
                self._set(name, str(MINI_DIRECTORY / directory))

    def _check_together(self) -> None:
        if not self.inputs:
            raise UsageError("no input: wanted at least one FASTA or FASTQ file, or -")
        if self.inputs.count(STDIN) > 1:
            raise UsageError("standard input (-) was given twice, but can be read only once")
        if self.output_dir is None and (len(self.inputs) > 1 or STDIN in self.inputs):
            raise UsageError(
                "several inputs or standard input need an output directory; name one (-o)"
            )
        if self.model_type == "custom" and self.model_path is None:
            raise UsageError("model type custom needs a model; give its path (-p)")
        if (
            self.model_type == "mini"
            and self.model_path is None
            and self.chunk_length_bp not in MINI_LENGTHS_BP
        ):
            raise UsageError(
                f"chunk length {self.chunk_length_bp}: model type mini is for chunks of "
                f"{' or '.join(map(str, MINI_LENGTHS_BP))} bp"
            )
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold {self.threshold}: wanted a score from 0 to 1")
        if self.max_fdr is not None and self.threshold != type(self).threshold:
            raise UsageError(
                "max_fdr and threshold both say what is called viral; give one of them"
            )

    @property
    def stem(self) -> str:
        """What the result files are named after: the input, or else the output directory."""
        if len(self.inputs) == 1 and self.inputs[0] != STDIN:
            return input_stem(self.inputs[0])
        return self.resolved_output_dir.resolve().name

    @property
    def resolved_output_dir(self) -> Path:
        """Where results go, given or by default."""
        return self.output_dir or Path(f"{input_stem(self.inputs[0])}_predictions")

    @property
    def resolved_model_path(self) -> Path:
        """Where the classifier is, given or by default."""
        if self.model_path is None and self.model_type == "mini":
            return MINI_DIRECTORY / f"{self.chunk_length_bp}_model.safetensors"
        return self.model_path or Path(f"{self.model_type}_model.pth")

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, with defaults filled in, for run.json."""
        return super().settings() | {
            "inputs": list(self.inputs),
            "output_dir": str(self.resolved_output_dir),
            "model_path": str(self.resolved_model_path),
        }
