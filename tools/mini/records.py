"""Records of known kind: drawn from packed genomes, and called by `virnucpro predict`.

Shapes: N records of L bases.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.mini.genomes import Genomes
from tools.mini.sampling import Sampler
from virnucpro import PredictConfig, predict

CHUNK_LENGTHS_BP = (300, 500)
LENGTHS_BP = (300, 500, 1000, 3000)
"""Of the records that figures and calibrations are made of."""

_LETTERS = np.frombuffer(b"ACGTN", np.uint8)


class DrawnRecords(NamedTuple):
    """Records of one length.

    Attributes:
        codes_NL: uint8.
        kinds_N: The kind of each, `class/sub-class`.
        is_viral_N: bool.
    """

    codes_NL: Tensor
    kinds_N: npt.NDArray[np.str_]
    is_viral_N: npt.NDArray[np.bool_]


class CalledRecords(NamedTuple):
    """What a run said of each of its records.

    Attributes:
        has_call: bool (N,).
        is_called_viral: bool (N,).
        score: float64 (N,), NaN without a call.
        probability: float64 (N,), NaN without a call or a calibration.
        num_open_chunks: int64 (N,).
        run: What `run.json` says.
    """

    has_call: npt.NDArray[np.bool_]
    is_called_viral: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    num_open_chunks: npt.NDArray[np.int64]
    run: dict[str, Any]


def draw_records(genomes: Genomes, length_bp: int, num_records: int, seed: int) -> DrawnRecords:
    """Return records of `length_bp`, half of them viral, balanced as for training."""
    sampler = Sampler(genomes, length_bp, torch.Generator().manual_seed(seed))
    codes_NL, sequence_N = sampler.draw_chunks(sampler.weight_S, num_records)
    kinds_N = np.array(sampler.kind_of(sequence_N))
    return DrawnRecords(codes_NL, kinds_N, np.char.startswith(kinds_N, "viral/"))


def call_records(
    records: DrawnRecords, model: Path, chunk_length_bp: int, directory: Path
) -> CalledRecords:
    """Write the records into `directory`, call them as `virnucpro predict` does, return the calls.

    Args:
        records: What to call.
        model: A directory as `tools.mini.export` writes it.
        chunk_length_bp: Which of its classifiers.
        directory: Made if it is not there; an earlier run in it is overwritten.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fasta = directory / "records.fasta"
    with fasta.open("wb") as file:
        for number, codes_L in enumerate(records.codes_NL.numpy()):
            file.write(b">record_%d\n%s\n" % (number, _LETTERS[codes_L].tobytes()))
    result = predict(
        PredictConfig(
            inputs=(str(fasta),),
            output_dir=directory / "predicted",
            model_type="custom",
            model_path=model / f"{chunk_length_bp}_model.safetensors",
            chunk_length_bp=chunk_length_bp,
            dna_weights=str(model / "dnabert_s"),
            protein_weights=str(model / "esm2"),
            force=True,
        )
    )
    return read_calls(result.output_dir)


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
        num_open_chunks=np.array([int(row["num_open_chunks"]) for row in rows]),
        run=json.loads((output / "run.json").read_text()),
    )
