"""`virnucpro utils`: looking at devices, inputs and checkpoints, and writing a settings file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from virnucpro.cli.checkpoints import NO_SUCH_PLACE, dims_options, echo_verdicts
from virnucpro.cli.options import INPUT_PATH
from virnucpro.config import PredictConfig
from virnucpro.errors import OutputExistsError

_SETTINGS = f"""\
# Settings of virnucpro predict: virnucpro -c THIS_FILE predict INPUT...
# What is given on the command line is stronger than what stands here.
version: "2.0.0"

prediction:
  # Sequences in each of the files that --keep-intermediate splits.
  sequences_per_file: {PredictConfig.sequences_per_file}
  # 300, 500, mini or custom.
  default_model_type: "{PredictConfig.model_type}"
  # The classifier of each model type; relative to the working directory.
  models:
    "300": 300_model.pth
    "500": 500_model.pth

device:
  # auto, cpu, cuda, cuda:N or N.
  default: {PredictConfig.device}

features:
  dnabert:
    # A file, a directory or a hub id (owner/name@revision).
    model_name: {PredictConfig.dna_weights}
    # Tokens in a batch; null: by the device.
    batch_size: null
  esm:
    # A file, a directory, a hub id or the name of an ESM-2 (esm2_t33_650M_UR50D).
    model_name: {PredictConfig.protein_weights}
    # Tokens in a batch; null: by the device.
    toks_per_batch: null

files:
  # false: also write the chunks and frames, like --keep-intermediate.
  auto_cleanup: {"false" if PredictConfig.keep_intermediate else "true"}
"""

_WITHOUT_BASES = str.maketrans("", "", "ACGTUacgtu")


@click.group("utils")
def utils_command() -> None:
    """Look at devices and files; write a settings file."""


@utils_command.command("list-devices")
def list_devices_command() -> None:
    """List what --device can name, with memory."""
    import torch

    click.echo(f"cpu     {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        click.echo(f"cuda:{index}  {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


@utils_command.command("generate-config", short_help="Write the default settings to a file.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="virnucpro_config.yaml",
    show_default=True,
    help="The file to write.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the file.")
def generate_config_command(output: Path, force: bool) -> None:
    """Write the default settings to a file, each explained.

    \b
    Example:
      virnucpro utils generate-config -o settings.yaml
      virnucpro -c settings.yaml predict contigs.fasta
    """  # noqa: D301 (click reads the \b)
    if output.exists() and not force:
        raise OutputExistsError(f"{output} exists; give --force to overwrite it, or another name")
    output.write_text(_SETTINGS, encoding="utf-8")
    click.echo(f"Written: {output}")


@utils_command.command("validate")
@click.argument("input", type=INPUT_PATH)
@click.option(
    "-e",
    "--max-errors",
    type=int,
    metavar="N",
    default=10,
    show_default=True,
    help="Names to show of each kind.",
)
@click.pass_context
def validate_command(ctx: click.Context, /, input: str, max_errors: int) -> None:
    """Check a file of nucleotide sequences.

    Counts records, lengths and ambiguous bases, and names what deserves a look.
    Exit code 1: the file cannot be read, or has empty records or ids that occur
    more than once (predict accounts for both, and keeps equal ids apart).

    \b
    Example:
      virnucpro utils validate contigs.fasta.gz
    """  # noqa: D301 (click reads the \b)
    from virnucpro.sequences.fasta import RecordReader

    seen: set[str] = set()
    findings: dict[str, list[str]] = {"empty": [], "repeated": [], "ambiguous": []}
    lengths_bp = []
    for record in RecordReader(input, "dna"):
        lengths_bp.append(len(record.sequence))
        if not record.sequence:
            findings["empty"].append(record.id)
        if record.id in seen:
            findings["repeated"].append(record.id)
        if record.sequence.translate(_WITHOUT_BASES):
            findings["ambiguous"].append(record.id)
        seen.add(record.id)
    click.echo(f"Records:                 {len(lengths_bp):,}")
    click.echo(
        f"Lengths (bp):            {min(lengths_bp):,} to {max(lengths_bp):,}, "
        f"{sum(lengths_bp) / len(lengths_bp):,.1f} on average"
    )
    _echo_finding("With ambiguous bases:   ", findings["ambiguous"], max_errors)
    _echo_finding("Empty:                  ", findings["empty"], max_errors)
    _echo_finding("With an id seen before: ", findings["repeated"], max_errors)
    ctx.exit(1 if findings["empty"] or findings["repeated"] else 0)


@utils_command.command("validate-checkpoints", short_help="Check all checkpoints in a directory.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--skip-load", is_flag=True, help="Look at the outside of the files only.")
@dims_options
@click.pass_context
def validate_checkpoints_command(
    ctx: click.Context, /, directory: Path, skip_load: bool, dna_dim: int, protein_dim: int
) -> None:
    """Check all checkpoints in a directory, of any program and age.

    Exit code 0: all are valid; 1: some are not; 3: there is no such directory.

    \b
    Example:
      virnucpro utils validate-checkpoints contigs_predictions
    """  # noqa: D301 (click reads the \b)
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files

    if not directory.is_dir():
        click.echo(f"{directory}: no such directory", err=True)
        ctx.exit(NO_SUCH_PLACE)
    dims = EmbeddingDims(dna_dim, protein_dim)
    load = not skip_load
    is_valid = echo_verdicts(summarize_files(directory, dims, digests=load, load=load))
    ctx.exit(0 if is_valid else 1)


def _echo_finding(label: str, ids: list[str], max_shown: int) -> None:
    click.echo(f"{label} {len(ids):,}")
    for name in ids[:max_shown]:
        click.echo(f"  {name}")
    if len(ids) > max_shown:
        click.echo(f"  ... and {len(ids) - max_shown:,} more")
