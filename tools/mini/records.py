"""Records of known kind: drawn from packed genomes, and called by `virnucpro predict`.

Shapes: N records of L bases.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.mini.genomes import Genomes
from tools.mini.sampling import Sampler
from virnucpro import PredictConfig, predict
from virnucpro.reports.metrics import Predictions

LENGTHS_BP = (300, 500, 1000, 3000, 10_000)
"""Of the records that figures and calibrations are made of."""

_MAX_BASES = 600_000
"""Of the records of one kind and length: fewer records of a greater length take as long."""

_LETTERS = np.frombuffer(b"ACGTN", np.uint8)


class DrawnRecords(NamedTuple):
    """Records of one length, as many of each kind.

    Attributes:
        codes_NL: uint8.
        kinds_N: The kind of each, `class/sub-class`.
        groups_N: The group of each; relatives share one.
        weight_N: float64, the share of its kind in a training, divided by the kind's records.
    """

    codes_NL: Tensor
    kinds_N: npt.NDArray[np.str_]
    groups_N: npt.NDArray[np.str_]
    weight_N: npt.NDArray[np.float64]

    @property
    def is_viral(self) -> npt.NDArray[np.bool_]:
        """Whether each record is viral."""
        return np.char.startswith(self.kinds_N, "viral/")


class CalledRecords(NamedTuple):
    """What a run said of each of its records.

    Attributes:
        has_call: bool (N,).
        is_called_viral: bool (N,).
        score: float64 (N,), NaN without a call.
        probability: float64 (N,), NaN without a call or a calibration.
        num_chunks: int64 (N,), the scored chunks.
        run: What `run.json` says.
    """

    has_call: npt.NDArray[np.bool_]
    is_called_viral: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    num_chunks: npt.NDArray[np.int64]
    run: dict[str, Any]


def draw_records(genomes: Genomes, length_bp: int, num_of_kind: int, seed: int) -> DrawnRecords:
    """Return records of `length_bp`, as many of each kind; the groups of a kind as in training.

    Args:
        genomes: Where to draw from; kinds without a sequence of this length are left out.
        length_bp: L.
        num_of_kind: The records of each kind; fewer if they are long.
        seed: The same seed gives the same records.
    """
    sampler = Sampler(genomes, length_bp, torch.Generator().manual_seed(seed))
    num_of_kind = min(num_of_kind, _MAX_BASES // length_bp)
    is_kind_JS = sampler.kind_S == torch.arange(len(sampler.kinds))[:, None]
    share_J = (is_kind_JS * sampler.weight_S).sum(1)
    codes, sequences, kinds = [], [], []
    for kind in share_J.nonzero()[:, 0].tolist():
        part_CL, sequence_C = sampler.draw_chunks(is_kind_JS[kind] * sampler.weight_S, num_of_kind)
        codes.append(part_CL)
        sequences.append(sequence_C)
        kinds += [kind] * num_of_kind
    groups = genomes.labels["group"][torch.cat(sequences)].numpy()
    return DrawnRecords(
        torch.cat(codes),
        np.array(sampler.kinds)[kinds],
        np.array(genomes.names["group"])[groups],
        share_J[kinds].numpy() / num_of_kind,
    )


def join_records(parts: Sequence[DrawnRecords]) -> DrawnRecords:
    """Return the records of all parts, which have one length."""
    codes, *columns = zip(*parts, strict=True)
    return DrawnRecords(torch.cat(codes), *(np.concatenate(column) for column in columns))


def call_records(
    records: DrawnRecords, model: Path, directory: Path, chunk_length_bp: int | None = None
) -> CalledRecords:
    """Write the records into `directory`, call them as `virnucpro predict` does, return the calls.

    Args:
        records: What to call.
        model: A directory as `tools.mini.export` writes it.
        directory: Made if it is not there; an earlier run in it is overwritten.
        chunk_length_bp: Which of its classifiers; that for the longest chunks, if nothing is said.
    """
    if chunk_length_bp is None:
        classifiers = model.glob("*_model.safetensors")
        chunk_length_bp = max(int(path.name.partition("_")[0]) for path in classifiers)
    directory.mkdir(parents=True, exist_ok=True)
    fasta = directory / "records.fasta"
    with fasta.open("wb") as file:
        for number, codes_L in enumerate(records.codes_NL.numpy()):
            file.write(b">record_%d\n%s\n" % (number, _LETTERS[codes_L].tobytes()))
    write_labels(directory / "labels.tsv", records)
    result = predict(
        PredictConfig(
            inputs=(str(fasta),),
            output_dir=directory / "predicted",
            model_type="custom",
            model_path=model / f"{chunk_length_bp}_model.safetensors",
            chunk_length_bp=chunk_length_bp,
            dna_weights=str(model / "dnabert_s"),
            protein_weights=str(model / "esm2"),
            precision="fp32",  # the figures are then the same on every machine
            force=True,
        )
    )
    return read_calls(result.output_dir)


def write_labels(path: Path, records: DrawnRecords) -> None:
    """Write the truth as `virnucpro evaluate` and `tools.measure_confidence` read it."""
    with path.open("w") as file:
        file.write("id\tlabel\tclass\tgroup\n")
        columns = zip(records.is_viral, records.kinds_N, records.groups_N, strict=True)
        for number, (is_viral, kind, group) in enumerate(columns):
            label = "virus" if is_viral else "others"
            file.write(f"record_{number}\t{label}\t{kind}\t{group}\n")


def read_calls(output: Path) -> CalledRecords:
    """Return the calls in the output directory of a finished run."""
    with (output / "records.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    numbers = {
        name: np.array([np.nan if row[name] == "NA" else float(row[name]) for row in rows])
        for name in ("score", "probability")
    }
    call = np.array([row["call"] for row in rows])
    return CalledRecords(
        has_call=call != "none",
        is_called_viral=call == "virus",
        **numbers,
        num_chunks=np.array([int(row["num_open_chunks"]) for row in rows]),
        run=json.loads((output / "run.json").read_text()),
    )


def make_predictions(records: DrawnRecords, called: CalledRecords) -> Predictions:
    """Return all records, half of them viral by weight; records without a call rank last.

    Kinds weigh as in a training, whatever the number of their records. The clusters are groups.
    """
    is_viral, weight = records.is_viral, records.weight_N
    side = np.where(is_viral, weight[is_viral].sum(), weight[~is_viral].sum())
    return Predictions(
        is_viral,
        np.where(called.has_call, called.score, -1.0),
        called.probability,
        called.is_called_viral,
        np.unique(records.groups_N, return_inverse=True)[1],
        weight / side / 2,
    )
