"""The settings of `migrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import argument, option
from virnucpro.config.shared import DimsConfig, backend_option, device_option


@dataclass(frozen=True, kw_only=True)
class MigrateConfig(DimsConfig, group="Embedding models"):
    """The settings of `migrate`."""

    sources: tuple[Path, ...] = argument(
        help="Files, directories of features, or run directories of the original VirNucPro or of "
        "the fork.",
        metavar="SOURCE...",
        path="any",
    )
    output_path: Path | None = option(
        None,
        "-o",
        "--output",
        help="Directory for features, or FILE.safetensors for a classifier. You must "
        "name it, except with --dry-run.",
        group="Output",
        metavar="PATH",
        path="new",
    )
    dry_run: bool = option(False, help="Report what would be done; write nothing.", group="Output")
    json: bool = option(False, help="Print the report as JSON.", group="Output")
    jobs: int | None = option(
        None,
        help="Processes that read files.",
        unset="by the machine, up to 4",
        group="Processes",
        minimum=1,
    )
    verify: int | None = option(
        None,
        help="Embed N rows again and compare. Give --dna-weights or --protein-weights, too.",
        minimum=1,
    )
    # No defaults, because only --verify embeds anything.
    dna_weights: str | None = option(
        None, help="Weights of the DNA backend, for --verify.", metavar="WEIGHTS"
    )
    protein_weights: str | None = option(
        None, help="Weights of the protein backend, for --verify.", metavar="WEIGHTS"
    )
    device: str = device_option()
    dna_backend: str = backend_option("DNA", "dnabert-s")
    protein_backend: str = backend_option("proteins", "esm2")
    # Only a classifier needs it, and no default would be right: a wrong length would go unnoticed.
    chunk_length_bp: int | None = option(
        None,
        "-e",
        "--expected-length",
        help="Chunk length that the classifier was trained on.",
        group="Older files",
        metavar="BP",
        minimum=1,
    )
