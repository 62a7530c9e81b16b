"""The settings of `embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import REQUIRED, argument, option
from virnucpro.config.shared import SEQUENCE_FORMATS, RunConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunConfig, group="Embedding models"):
    """The settings of `embed`."""

    input: str = argument(help=f"FASTA, FASTQ, BAM or CRAM file, {SEQUENCE_FORMATS}", path="input")
    backend: str = option(
        REQUIRED, help="Name of a backend that virnucpro backends lists.", metavar="NAME"
    )
    weights: str = option(
        REQUIRED,
        help="Weights of the backend: a file, a directory, a hub id (owner/name@revision) or a "
        "name of virnucpro models list.",
        metavar="WEIGHTS",
    )
    classifier: Path | None = option(
        None,
        help="Classifier that was fine-tuned together with the model. The embeddings are then "
        "those that predict makes for it.",
        path="file",
    )
    output_path: Path = option(
        REQUIRED,
        "-o",
        # The name before `--output-path`: scripts may have it.
        "--output",
        help="HDF5 file to write.",
        details="Finished work is in FILE.parts until the file is written.",
        group="Output",
        path="new file",
    )
    long: str = option(
        "cut",
        help="How to embed sequences that are longer than the model reads. cut: embed their "
        "beginning. windows: embed overlapping windows, and take their mean, weighted by length.",
        details="A window is as long as the model reads, or 10,000 letters if it reads any length. "
        "Neighbouring windows overlap by half.",
        choices=("cut", "windows"),
    )
    force_alphabet: bool = option(
        False,
        help="Embed the input even if it looks like DNA and the backend reads proteins, or the "
        "reverse.",
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

    @property
    def inputs(self) -> tuple[str, ...]:
        """The one input file."""
        return (self.input,)
