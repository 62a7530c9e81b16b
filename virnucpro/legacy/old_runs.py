"""Where the original and the fork keep their files of features and of sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from virnucpro.backend.interface import Alphabet
from virnucpro.errors import InputError
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.records import Record

FEATURE_SUFFIXES = frozenset({".pt", ".pth", ".h5"})
_FASTA_SUFFIXES = frozenset({".fa", ".faa", ".fasta", ".fna"})
_ONLY_IN_DNA = frozenset("ACGTUNacgtun")
_RECORDS_TO_JUDGE_BY = 100
_RECORDS_AT_A_TIME = 16_384


def list_files(source: Path) -> list[Path]:
    """Return the files below a directory, or the file itself; `output_2` comes before `output_10`.

    The directory `checkpoints`, which belongs to a run of virnucpro itself, is left out.
    """
    if not source.is_dir():
        return [source]
    # Parts of virnucpro are HDF5 too, and must not be taken for files of the fork.
    ours = source / "checkpoints"
    files = [path for path in source.rglob("*") if path.is_file() and ours not in path.parents]

    def natural_key(path: Path) -> list[tuple[str, int]]:
        # Files were numbered as they were cut, and the first one with an id wins.
        return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", str(path))]

    return sorted(files, key=natural_key)


def feature_files(source: Path) -> list[Path]:
    """Return the files that may hold features, in the order of `list_files`."""
    files = list_files(source)
    return [path for path in files if path == source or path.suffix in FEATURE_SUFFIXES]


def run_parts(output_dir: Path, stem: str) -> list[Path]:
    """Return the files and directories in `output_dir` that belong to the old run of one input."""
    # By name: the original wrote beside its input, where other files lie as well.
    names = [
        f"{stem}_nucleotide",
        f"{stem}_protein",
        f"{stem}_merged",
        f"{stem}_nucleotide.fa",
        f"{stem}_protein.faa",
        f"{stem}_identified_nucleotide.fa",
        f"{stem}_identified_protein.faa",
        "esm_v2",
        ".checkpoints",
        # From `virnucpro migrate`:
        "dna",
        "protein",
    ]
    return [output_dir / name for name in names if (output_dir / name).exists()]


def read_expected_length(output_dir: Path) -> int | None:
    """Return the chunk length in the state file of the fork's run; None if it does not tell."""
    path = output_dir / ".checkpoints" / "pipeline_state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return int(state["pipeline_config"]["expected_length"])
    # The file is only asked for a hint, so a damaged one is as good as none.
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        return None


def fasta_files(source: Path) -> Iterator[tuple[Path, Alphabet]]:
    """Yield the readable files of sequences below `source`, and the alphabet of each."""
    for path in list_files(source):
        if path.suffix not in _FASTA_SUFFIXES:
            continue
        try:
            # Read as protein, because its alphabet has all letters that DNA has.
            sample = list(
                islice(RecordReader(path, "protein", change_letters=False), _RECORDS_TO_JUDGE_BY)
            )
        except InputError:
            continue
        # Names differ between versions, so that the letters decide.
        is_dna = all(_ONLY_IN_DNA.issuperset(record.sequence) for record in sample)
        yield path, "dna" if is_dna else "protein"


def read_fasta(path: Path, alphabet: Alphabet) -> Iterator[list[Record]]:
    """Yield the records of a file in blocks, up to a place that a killed run left damaged."""
    records = iter(RecordReader(path, alphabet, change_letters=False))
    try:
        while block := list(islice(records, _RECORDS_AT_A_TIME)):
            yield block
    except InputError:
        # A killed run may have left half a record at the end. All records before it are good.
        return
