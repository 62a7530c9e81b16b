"""`virnucpro utils`: listing devices, checking files, and writing a settings file."""

from __future__ import annotations

import click

from virnucpro.checkpoints.whole_files import open_whole, refuse_existing
from virnucpro.cli.checkpoints import NO_SUCH_PLACE, echo_run_errors, echo_verdicts
from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo
from virnucpro.config import GenerateConfigConfig, ValidateCheckpointsConfig, ValidateConfig
from virnucpro.errors import count
from virnucpro.runtime.environment import num_cores

# What is left of a sequence without these letters is ambiguous.
_WITHOUT_BASES = str.maketrans("", "", "ACGTacgt")


@click.group("utils")
def utils_command() -> None:
    """List devices, check files, write a settings file."""


@utils_command.command("list-devices")
def list_devices_command() -> None:
    """List the devices for --device, with their memory."""
    # Not above: no other command of this group needs it.
    import torch

    echo(f"cpu     {count(num_cores(), 'core')}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        echo(f"cuda:{index}  {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


@config_command("utils generate-config", short_help="Write a settings file with the defaults.")
def generate_config_command(ctx: click.Context, config: GenerateConfigConfig) -> None:
    """Write a settings file with the default of each option, and what the option means.

    \b
    Example:
      virnucpro utils generate-config -o settings.yaml
      virnucpro -c settings.yaml predict contigs.fasta
    """
    from virnucpro.config.settings_file import make_template

    output = config.output_path
    if not config.force:
        refuse_existing(output)
    # The file that a link such as /dev/stdout leads to, and not the link, is replaced.
    with open_whole(output.resolve()) as file:
        file.write(make_template())
    echo(f"Written: {output}")


@config_command("utils validate")
def validate_command(ctx: click.Context, config: ValidateConfig) -> None:
    """Check a file of nucleotide sequences.

    The report has the number of records, their lengths, and the records with ambiguous bases.
    Exit code 1: the file cannot be read, or it has empty records or repeated ids. predict accepts
    empty records and repeated ids, and keeps records with the same id apart.

    \b
    Example:
      virnucpro utils validate contigs.fasta.gz
    """
    from virnucpro.sequences.fasta import RecordReader

    # Only ids are kept, because a file may be larger than the memory.
    seen: set[str] = set()
    findings: dict[str, list[str]] = {"empty": [], "repeated": [], "ambiguous": []}
    lengths_bp = []
    for record in RecordReader(config.input, "dna"):
        lengths_bp.append(len(record.sequence))
        if not record.sequence:
            findings["empty"].append(record.id)
        if record.id in seen:
            findings["repeated"].append(record.id)
        if record.sequence.translate(_WITHOUT_BASES):
            findings["ambiguous"].append(record.id)
        seen.add(record.id)
    echo(f"Records:                 {len(lengths_bp):,}")
    echo(
        f"Lengths (bp):            {min(lengths_bp):,} to {max(lengths_bp):,}, "
        f"{sum(lengths_bp) / len(lengths_bp):,.1f} on average"
    )
    _echo_finding("With ambiguous bases:   ", findings["ambiguous"], config.max_errors)
    _echo_finding("Empty:                  ", findings["empty"], config.max_errors)
    _echo_finding("With an id seen before: ", findings["repeated"], config.max_errors)
    ctx.exit(1 if findings["empty"] or findings["repeated"] else 0)


@config_command("utils validate-checkpoints", short_help="Check all checkpoints in a directory.")
def validate_checkpoints_command(ctx: click.Context, config: ValidateCheckpointsConfig) -> None:
    """Check all checkpoints in a directory, of this and of older programs.

    Exit code 0: all are valid; 1: some are not; 3: the directory does not exist.

    \b
    Example:
      virnucpro utils validate-checkpoints contigs_predictions
    """
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files

    # Not left to click, which would end with 2. The fork ends with 3, and scripts rely on that.
    if not config.directory.is_dir():
        echo(f"{config.directory}: no such directory", err=True)
        ctx.exit(NO_SUCH_PLACE)
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    load = not config.skip_load
    is_good_run = echo_run_errors(config.directory, digests=load)
    _, num_bad = echo_verdicts(summarize_files(config.directory, dims, digests=load, load=load))
    ctx.exit(0 if is_good_run and not num_bad else 1)


for _command in (validate_command, generate_config_command, validate_checkpoints_command):
    utils_command.add_command(_command)


def _echo_finding(label: str, ids: list[str], max_shown: int) -> None:
    echo(f"{label} {len(ids):,}")
    # Many records may share an id.
    names = list(dict.fromkeys(ids))
    for name in names[:max_shown]:
        echo(f"  {name}")
    if len(names) > max_shown:
        echo(f"  ... and {len(names) - max_shown:,} more")
