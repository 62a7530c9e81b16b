"""What `embed` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.shared import RunConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunConfig):
    """What `embed` does.

    Attributes:
        input: A FASTA or FASTQ file, plain or compressed, or `-` for standard input.
        backend: Name of the backend, for example `esm2`.
        weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        output_path: The HDF5 file to write.
        batch_tokens: Tokens in a batch; None for the device's default.

    Raises:
        UsageError: A value is not to be had.
    """

    input: str
    backend: str
    weights: str
    output_path: Path
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("input", str(self.input))
        self._set("weights", str(self.weights))
        self._set("output_path", Path(self.output_path))
        self._require_at_least("batch_tokens", 1)
