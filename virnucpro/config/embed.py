"""The settings of `embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import REQUIRED, argument, option
from virnucpro.config.shared import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ComputeConfig):
    """The settings of `embed`."""

    input: str = argument(
        help="FASTA or FASTQ file, plain or compressed (gz, bz2, xz, zst); - is standard input.",
        path="input",
    )
    backend: str = option(
        REQUIRED,
        help="Name of a backend that virnucpro backends lists.",
        group="Embedding models",
        metavar="NAME",
    )
    weights: str = option(
        REQUIRED,
        help="Weights of the backend: a file, a directory or a hub id (owner/name@revision).",
        group="Embedding models",
        metavar="WEIGHTS",
    )
    output_path: Path = option(
        REQUIRED,
        "-o",
        "--output",
        help="HDF5 file to write.",
        details="Finished work is in FILE.parts until the file is written.",
        group="Output",
        metavar="FILE",
        path="new file",
    )
    batch_tokens: int | None = option(
        None,
        help="Tokens in a batch.",
        unset="by the device",
        details="The command profile measures the best number.",
        group="Speed and memory",
        metavar="TOKENS",
        minimum=1,
    )
    resume: bool = option(
        False,
        help="Continue an earlier run with the same settings; keep what it finished.",
        group="Output",
    )
    force: bool = option(
        False,
        "-f",
        help="Overwrite the output file.",
        details="With --resume, finished work is kept.",
        group="Output",
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The one input file."""
        return (self.input,)

    @property
    def work_dir(self) -> Path:
        """The directory of finished work, until the output is written."""
        return self.output_path.with_name(f"{self.output_path.name}.parts")
