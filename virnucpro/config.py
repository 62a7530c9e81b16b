"""A run's settings: frozen, and checked in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.errors import UsageError

STDIN = "-"
"""Stands for standard input where a path is expected."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
ATTENTIONS = ("auto", "eager", "sdpa", "flash")
COMPILE_SETTINGS = ("auto", "on", "off")
MODEL_TYPES = ("300", "500", "mini", "custom")

MINI_DIRECTORY = Path(__file__).with_name("data") / "mini"
"""The small model that ships with this package: docs/mini.md."""

MINI_LENGTHS_BP = (300, 500)

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_COMPRESSION = frozenset({".gz", ".bz2", ".xz", ".zst"})


def input_stem(path: str | Path) -> str:
    """Return an input's name without its compression's ending and one more: `a.b.fa.gz` is `a.b`.

    Any last ending goes, as in the fork, so that its users find their files under the old names.
    """
    name = Path(path)
    if name.suffix.lower() in _COMPRESSION:
        name = name.with_suffix("")
    return name.stem


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How to compute: what `predict` and `embed` share.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `N`. Several GPUs are used by launching several
            processes, each of which takes its own.
        precision: What the models compute in; `auto` is bf16 on GPUs that have it, fp16 on older
            ones and fp32 on a CPU. A backend that knows no fp8 computes in bf16 instead.
        attention: `flash` needs flash-attn, `sdpa` torch alone, `eager` is the plain reference.
        compile: Whether torch.compile compiles the models' layers; `auto` is where that pays: on a
            GPU, for a model without kernels of its own, and for enough sequences.
        dataloader_workers: Tokenizing processes per GPU; None for as many as suit the machine.
        pin_memory: Whether batches lie in pinned host memory; None for yes on a GPU.
        cache_clear_interval: Batches between two clearings of CUDA's cache; 0 for never.
        expandable_segments: Let CUDA's allocator grow its segments, against fragmentation, unless
            PYTORCH_ALLOC_CONF says otherwise.

    Raises:
        UsageError: A value is not to be had.
    """

    device: str = "auto"
    precision: str = "auto"
    attention: str = "auto"
    compile: str = "auto"
    dataloader_workers: int | None = None
    pin_memory: bool | None = None
    cache_clear_interval: int = 100
    expandable_segments: bool = True

    def __post_init__(self) -> None:
        device = f"cuda:{self.device}" if str(self.device).isdigit() else str(self.device)
        if not _DEVICE.fullmatch(device):
            raise UsageError(f"device {self.device!r}: wanted auto, cpu, cuda, cuda:N or N")
        self._set("device", device)
        self._require_one_of("precision", PRECISIONS)
        self._require_one_of("attention", ATTENTIONS)
        self._require_one_of("compile", COMPILE_SETTINGS)
        self._require_at_least("dataloader_workers", 0)
        self._require_at_least("cache_clear_interval", 0)

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, for run.json."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_one_of(self, name: str, wanted: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in wanted:
            raise UsageError(f"{name} {value!r}: wanted one of {', '.join(wanted)}")

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UsageError(f"{name} {value!r}: wanted a whole number, at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class FramesConfig(ComputeConfig):
    """What embeds the open frames: what `predict` and `train` share.

    Attributes:
        dna_backend: Name of the backend that embeds DNA.
        protein_backend: Name of the backend that embeds proteins.
        dna_weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        protein_weights: Its weights, likewise.
        dnabert_batch_size: Tokens in a batch of the DNA backend; None for the device's default.
        esm_batch_size: Tokens in a batch of the protein backend; None for the device's default.
        resume: Keep what an earlier run of the same settings finished, and do the rest.
        force: Overwrite what is there. With `resume`, finished work is kept.

    Raises:
        UsageError: A value is not to be had.
    """

    dna_backend: str = "dnabert-s"
    protein_backend: str = "esm2"
    dna_weights: str = "zhihan1996/DNABERT-S@00e47f96cdea35e4b6f5df89e5419cbe47d490c6"
    protein_weights: str = "facebook/esm2_t36_3B_UR50D"
    dnabert_batch_size: int | None = None
    esm_batch_size: int | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dna_weights", "protein_weights"):
            self._set(name, str(getattr(self, name)))
        for name in ("dnabert_batch_size", "esm_batch_size"):
            self._require_at_least(name, 1)

    def _set_paths(self, name: str) -> None:
        given: Any = getattr(self, name)
        paths = (given,) if isinstance(given, str | Path) else given
        self._set(name, tuple(str(path) for path in paths))

    def _require_share(self, name: str) -> None:
        """Refuse what is no share strictly between 0 and 1."""
        value = getattr(self, name)
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} {value!r}: wanted a share between 0 and 1")


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
        expected_length: Chunk length in bp; by default the model type's, 500 for a custom one.
        min_length: Records shorter than this many bp get no call.
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
    expected_length: int | None = None
    min_length: int = 0
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
        self._require_at_least("expected_length", 1)
        self._require_at_least("sequences_per_file", 1)
        self._require_at_least("min_length", 0)
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
                f"expected length {self.chunk_length_bp}: model type mini is for chunks of "
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
    def chunk_length_bp(self) -> int:
        """The length that records are cut into."""
        if self.expected_length is not None:
            return self.expected_length
        return 300 if self.model_type == "300" else 500

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
            "expected_length": self.chunk_length_bp,
        }


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ComputeConfig):
    """What `embed` does.

    Attributes:
        input: A FASTA or FASTQ file, plain or compressed, or `-` for standard input.
        backend: Name of the backend, for example `esm2`.
        weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        output_path: The HDF5 file to write.
        batch_tokens: Tokens in a batch; None for the device's default.
        resume: Keep what an earlier run of the same settings finished, and do the rest.
        force: Overwrite an existing file. With `resume`, finished work is kept.

    Raises:
        UsageError: A value is not to be had.
    """

    input: str
    backend: str
    weights: str
    output_path: Path
    batch_tokens: int | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("input", str(self.input))
        self._set("weights", str(self.weights))
        self._set("output_path", Path(self.output_path))
        self._require_at_least("batch_tokens", 1)

    @property
    def work_dir(self) -> Path:
        """What is finished, until the output is."""
        return self.output_path.with_name(f"{self.output_path.name}.parts")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FramesConfig):
    """What `train` does.

    Attributes:
        viral: FASTA or FASTQ files of viral sequences.
        other: Files of other sequences; each file is a class, and all classes count alike.
        merged: The original's labelled features instead of sequences.
        output_path: The classifier to write; the report and all finished work go to a directory
            beside it.
        expected_length: Length in bp that records are cut into.
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
    expected_length: int = 500
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
        for name in ("expected_length", "epochs", "dna_dim", "protein_dim"):
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
