"""The settings of `predict`: its classifier, its chunks, its calls."""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.backend.places import find_model
from virnucpro.config.calls import CallsConfig
from virnucpro.config.options import argument, option, option_name
from virnucpro.config.published import MINI_DIRECTORY
from virnucpro.config.shared import (
    SEQUENCE_FORMATS,
    STDIN,
    FramesConfig,
    can_be_read_once,
    chunk_length_option,
    input_stem,
)
from virnucpro.errors import UsageError

MODEL_TYPES = ("300", "500", "mini", "custom")

# Of the name that result files share: file systems allow 255 in all.
_MAX_STEM_BYTES = 200

MINI_LENGTHS_BP = (300, 500, 1000)
_DEFAULT_LENGTHS_BP = {"300": 300, "mini": 1000}
# The calibration for chunks of 1,000 bp does not fit pairs (docs/mini.md).
_MINI_PAIRS_BP = 300


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CallsConfig, FramesConfig, group="Classifier and calls"):
    """The settings of `predict`."""

    inputs: tuple[str, ...] = argument(
        help=f"FASTA, FASTQ, BAM or CRAM files, {SEQUENCE_FORMATS}",
        metavar="INPUT...",
        path="input",
    )
    output_dir: Path | None = option(
        None,
        "-o",
        help="Directory for the results. You must name it for several inputs, and for -.",
        unset="{input}_predictions",
        details="{input} is the name of the input without its last ending, and without .gz, .bz2, "
        ".xz or .zst before that.",
        group="Output",
        path="new directory",
    )
    prefix: str = option(
        "",
        help="Begin the names of all files with PREFIX_, so that runs can share a directory.",
        details="Other commands then take DIR/PREFIX for the run.",
        group="Output",
        metavar="PREFIX",
    )
    model_type: str = option(
        "500",
        "-m",
        help="Classifier for chunks of 300 or 500 bp, the small model in this package (mini), or "
        "your own (custom).",
        details="mini reads chunks of 1,000 bp or, with --chunk-length-bp, of 500 or 300 bp.",
        choices=MODEL_TYPES,
    )
    model_path: Path | None = option(
        None,
        "-p",
        help="File of the classifier; custom needs it. virnucpro models download 500 fetches the "
        "published one.",
        unset="{model type}_model.pth",
        details="Without this option, virnucpro looks for the published classifier in the working "
        "directory, and then among the models that virnucpro models download has fetched. mini has "
        "its classifiers in this package.",
        path="new file",
    )
    # Not set here, because the model type decides; `__post_init__` fills it in.
    chunk_length_bp: int = chunk_length_option(
        None,
        unset="by the model type",
        details="It is 1,000 for mini (300 with --paired), and 500 for custom.",
        within="chunk",
    )
    paired: bool = option(
        False,
        help="The inputs are read pairs: the file of first mates and then the file of second "
        "mates, or one file with both mates of each pair. A pair is one record, and has the chunks "
        "of both mates.",
        group="Input",
    )
    screen: str | None = option(
        None,
        help="Judge records by a small classifier first: mini, or a file. The large models "
        "do not read records that are surely cellular.",
        details="The classifier in a file needs a calibration. The column judged_by of "
        "records.tsv says what judged a record.",
        metavar="MODEL",
        group="Screening",
    )
    screen_loss: float = option(
        0.01,
        help="Largest share of the viral records that the screen is expected to lose.",
        details="It is computed from the probabilities, so give --viral-share, too.",
        metavar="SHARE",
        within="share",
        group="Screening",
    )
    screen_dna_weights: str | None = option(
        None,
        help="Weights of the screen's DNA backend.",
        unset="those of mini",
        metavar="WEIGHTS",
        group="Screening",
    )
    screen_protein_weights: str | None = option(
        None,
        help="Weights of the screen's protein backend.",
        unset="those of mini",
        metavar="WEIGHTS",
        group="Screening",
    )
    min_length_bp: int = option(
        0, "--min-length", help="Records shorter than this get no call.", metavar="BP", minimum=0
    )
    allow_empty: bool = option(
        False,
        help="Accept an input without records: write tables with a header only.",
        details="Otherwise such an input is an error (exit code 1), because it mostly comes from a "
        "mistake in an earlier step.",
        group="Input",
    )
    keep_intermediate: bool = option(
        False,
        "-k",
        help="Also write the chunks and frames, in files named as in the fork.",
        group="Output",
    )
    report: bool = option(
        True, help="Write report.html, a page that shows the run.", group="Output"
    )
    checkpoint_dir: Path | None = option(
        None,
        help="Directory for the checkpoints, for example on storage that outlives this machine.",
        unset="checkpoints in the output directory",
        details="The output directory gets a link to it. With --resume, a run continues from this "
        "directory, also on another machine and with an empty output directory.",
        group="Output",
        path="new directory",
    )
    shard: str | None = option(
        None,
        help="Embed only share I of N shares of the batches, and call nothing. When all shares are "
        "done, virnucpro merge makes the results.",
        details="Each share is a job of its own with its own output directory, and needs no "
        "network.",
        group="Processes",
        metavar="I/N",
    )
    dry_run: bool = option(
        False,
        help="Print what the run would take: sequences, memory, disk and time. Write nothing.",
        details="Only small models are loaded, to measure their speed.",
        group="Output",
    )
    skip_checkpoint_validation: bool = option(
        False, help="Trust finished parts when resuming; do not read them again.", group="Output"
    )
    sequences_per_file: int = option(
        10_000,
        help="Sequences in each file that --keep-intermediate writes.",
        group="Output",
        minimum=1,
    )

    def __post_init__(self) -> None:
        # Before the base class, so that what is filled in is checked like what was given.
        if self.model_type == "mini":
            self._use_mini()
        # `str`, because from Python the model type may be a number.
        length_bp = _DEFAULT_LENGTHS_BP.get(str(self.model_type), 500)
        if self.model_type == "mini" and self.paired:
            length_bp = _MINI_PAIRS_BP
        self._set_default("chunk_length_bp", length_bp)
        # Those of `call` are left open instead: it takes them from the run.
        self._set_default("regions", "all")
        self._set_default("fastq", False)
        super().__post_init__()
        self._check_together()
        if self.shard is not None and self.shard_numbers is None:
            raise UsageError(f"shard {self.shard!r}: wanted I/N with I from 1 to N, such as 2/8")

    def _use_mini(self) -> None:
        """Let the package's files stand for the weights that are not given."""
        for name in ("dna_backend", "protein_backend"):
            # With -p, the classifier may be one for other backends.
            if self.model_path is None and getattr(self, name) != getattr(type(self), name):
                raise UsageError(
                    "model type mini is for the backends dnabert-s and esm2, and "
                    f"{option_name(name)} is {getattr(self, name)!r}; leave out one of the "
                    "two, or train a classifier for that backend (virnucpro train) and name it "
                    "with -m custom -p FILE"
                )
        for name, directory in (("dna_weights", "dnabert_s"), ("protein_weights", "esm2")):
            # Weights that somebody names are meant, also together with mini.
            if getattr(self, name) == getattr(type(self), name):
                self._set(name, str(MINI_DIRECTORY / directory))

    def _check_together(self) -> None:
        # The files must lie in the directory, must be seen by `ls`, and must not look like options.
        if self.prefix and not re.fullmatch(r"[^/\\\0.-][^/\\\0]*", self.prefix):
            raise UsageError(
                f"prefix {self.prefix!r}: wanted the beginning of a file name, without / and "
                "without . or - at its start"
            )
        if not self.inputs:
            raise UsageError("no input: wanted at least one FASTA or FASTQ file, or -")
        if self.inputs.count(STDIN) > 1:
            raise UsageError("standard input (-) was given twice, but can be read only once")
        # The frame store keeps no qualities, because they would double its size.
        once = [path for path in self.inputs if can_be_read_once(path)]
        if self.fastq and once:
            raise UsageError(
                f"--fastq: the inputs are read again for viral.fastq, and {once[0]} can be read "
                "only once, as standard input or a pipe; give a file"
            )
        # By default, the directory is named after the one input.
        if self.output_dir is None and (len(self.inputs) > 1 or once):
            raise UsageError(
                "several inputs, standard input or a pipe need an output directory; name one (-o)"
            )
        if self.paired and len(self.inputs) > 1 and len(self.inputs) % 2:
            raise UsageError(
                f"--paired: found {len(self.inputs)} inputs, wanted pairs of files (first "
                "mates, then second mates), or one file with both"
            )
        files = [os.path.realpath(path) for path in self.inputs]
        # Each read would be its own mate.
        if self.paired and any(map(operator.eq, files[::2], files[1::2])):
            raise UsageError(
                "--paired: one file was given for the first and for the second mates; give both "
                "files"
            )
        # In bytes, as file systems count. A name may have bytes that are no UTF-8.
        if len(self.stem.encode("utf-8", "surrogateescape")) > _MAX_STEM_BYTES:
            raise UsageError(
                f"{self.stem[:30]}...: results are named after the input or the output directory, "
                f"and a name of more than {_MAX_STEM_BYTES} letters leaves no room; give it a "
                "shorter name, or link to it"
            )
        if self.model_type == "custom" and self.model_path is None:
            raise UsageError("model type custom needs a classifier; give its file (-p)")
        # With a path, the classifier's file says its length, and the models are compared with it.
        if (
            self.model_type == "mini"
            and self.model_path is None
            and self.chunk_length_bp not in MINI_LENGTHS_BP
        ):
            raise UsageError(
                f"chunk length {self.chunk_length_bp}: model type mini has classifiers for chunks "
                f"of {', '.join(map(str, MINI_LENGTHS_BP))} bp; give one of these lengths"
            )

    @property
    def shard_numbers(self) -> tuple[int, int] | None:
        """The index of the share from 0, and the number of shares; None for all batches."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.shard or "")
        index, num_shards = map(int, match.groups()) if match else (0, 0)
        return (index - 1, num_shards) if 1 <= index <= num_shards else None

    @property
    def stem(self) -> str:
        """The name of the fork's files: the prefix, the input's, or else the output directory's."""
        # Runs with different prefixes share a directory.
        if self.prefix:
            return self.prefix
        if len(self.inputs) == 1 and self.inputs[0] != STDIN:
            return input_stem(self.inputs[0])
        # Resolved, because `-o .` has no name of its own.
        return self.resolved_output_dir.resolve().name

    @property
    def resolved_output_dir(self) -> Path:
        """The directory for the results, given or by default."""
        return self.output_dir or Path(f"{input_stem(self.inputs[0])}_predictions")

    @property
    def resolved_model_path(self) -> Path:
        """The file of the classifier: given, here, or among the downloaded models."""
        if self.model_path is not None:
            return self.model_path
        if self.model_type == "mini":
            return MINI_DIRECTORY / f"{self.chunk_length_bp}_model.safetensors"
        path = Path(f"{self.model_type}_model.pth")
        # If it is nowhere, its usual name: the error that follows tells what is missing.
        return path if path.exists() else find_model(path.name) or path

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, with defaults filled in, for run.json."""
        return super().settings() | {
            "inputs": list(self.inputs),
            "output_dir": str(self.resolved_output_dir),
            "model_path": str(self.resolved_model_path),
        }


@dataclass(frozen=True, kw_only=True)
class CheckPrecisionConfig(PredictConfig, group="Measuring"):
    """The settings of `check-precision`: the sample, and what changes scores in `predict`."""

    num_records: int = option(
        200, "--sample", help="Number of records to draw at random from the whole input.", minimum=1
    )
    seed: int = option(0, help="Random seed.")
    json: bool = option(False, help="Print JSON.", group="Output")

    # Settings of `predict` that have no meaning here: without option() they are no options.
    output_dir: Path | None = Path()
    max_fdr: float | None = None
    paired: bool = False
    prefix: str = ""
    preset: str | None = None
    viral_share: float | None = None
    estimate_viral_share: bool | None = None
    regions: str | None = None
    fastq: bool | None = None
    allow_empty: bool = False
    keep_intermediate: bool = False
    report: bool = False
    checkpoint_dir: Path | None = None
    shard: str | None = None
    dry_run: bool = False
    screen: str | None = None
    screen_loss: float = 0.01
    screen_dna_weights: str | None = None
    screen_protein_weights: str | None = None
    skip_checkpoint_validation: bool = False
    sequences_per_file: int = 10_000
    resume: bool = False
    force: bool = False
