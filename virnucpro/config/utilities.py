"""The settings of the small commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.config.options import Config, accepting_former, argument, option
from virnucpro.config.shared import SEQUENCE_FORMATS, STDIN, DimsConfig, chunk_length_option


@dataclass(frozen=True, kw_only=True)
class FrameTableConfig(Config):
    """The settings of `frames`."""

    inputs: tuple[str, ...] = argument(
        help=f"FASTA, FASTQ, BAM or CRAM files, {SEQUENCE_FORMATS}", metavar="INPUT..."
    )
    # A chunk of fewer bases has no codon.
    chunk_length_bp: int = chunk_length_option(500, group="Input", minimum=3)
    frame_rule: str = option(
        str(OPEN_RULE),
        help="Parts of a chunk that the table has: open (whole frames without a stop codon), or "
        "stretches:N:M (the N longest runs of at least M codons without a stop codon).",
        details="stretches alone is stretches:2:20. Under this rule, the column dna has the whole "
        "chunk. Add another genetic code by its NCBI number: open:code=11, "
        "stretches:2:20:code=4.",
        group="Input",
        metavar="RULE",
    )
    # Text and no path, because - is standard output.
    output_path: str = option(
        STDIN,
        "-o",
        "--output",
        help="File for the table.",
        unset="standard output",
        group="Output",
        metavar="FILE",
    )
    force: bool = option(False, "-f", help="Overwrite an existing file.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("frame_rule", str(FrameRule.parse(self.frame_rule)))


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(Config):
    """The settings of `monitor`."""

    run_dir: Path = argument(
        help="Output directory of predict, the _training directory of train, or the .parts "
        "directory of embed.",
        metavar="RUN_DIR",
        path="run",
    )
    once: bool = option(False, help="Show the present state and exit.")
    json: bool = option(False, help="Print the present state as JSON and exit.")


@accepting_former(runs="run_dirs")
@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """The settings of `report`."""

    run_dirs: tuple[Path, ...] = argument(
        help="Output directory of predict, train or evaluate; several of predict are compared.",
        metavar="RUN_DIR...",
        path="run",
    )
    output_path: Path | None = option(
        None,
        "-o",
        "--output",
        help="File for the page.",
        unset="report.html in RUN_DIR; of several runs, in the working directory",
        group="Output",
        path="new file",
    )
    force: bool = option(False, "-f", help="Overwrite an existing file.", group="Output")


@dataclass(frozen=True, kw_only=True)
class BackendsConfig(Config):
    """The settings of `backends`."""

    json: bool = option(False, help="Print JSON instead of a table.")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """The settings of `doctor`."""

    quick: bool = option(False, help="Leave out the runs of the example, which take most time.")
    json: bool = option(False, help="Print JSON.")


@dataclass(frozen=True, kw_only=True)
class ShowCheckpointsConfig(DimsConfig):
    """The settings of `checkpoints show`."""

    path: Path = argument(
        help="A part, a run directory, a directory of checkpoints, or a file of features (.pt, "
        ".h5) of an older program.",
        path="run",
    )
    json: bool = option(False, help="Print JSON.")


@dataclass(frozen=True, kw_only=True)
class VerifyCheckpointsConfig(DimsConfig):
    """The settings of `checkpoints verify`."""

    # click lets a missing path pass, because the command has an exit code of its own for it.
    path: Path = argument(
        help="A part, a run directory, a directory of checkpoints, or a file of features (.pt, "
        ".h5) of an older program.",
        path="new",
    )


@dataclass(frozen=True, kw_only=True)
class ValidateCheckpointsConfig(DimsConfig):
    """The settings of `utils validate-checkpoints`."""

    # As above: a missing directory has an exit code of its own.
    directory: Path = argument(help="A directory of checkpoints.", path="new")
    skip_load: bool = option(
        False, help="Check headers and archives only; do not read the embeddings."
    )


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(Config):
    """The settings of `utils validate`."""

    input: str = argument(help=f"FASTA, FASTQ, BAM or CRAM file, {SEQUENCE_FORMATS}", path="input")
    max_errors: int = option(
        10, "-e", help="Number of names to show of each kind of error.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class GenerateConfigConfig(Config):
    """The settings of `utils generate-config`."""

    output_path: Path = option(
        Path("virnucpro_config.yaml"), "-o", "--output", help="File to write.", path="new file"
    )
    force: bool = option(False, "-f", help="Overwrite an existing file.")
