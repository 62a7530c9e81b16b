"""Writes files and run directories as the original and the fork did, from given embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

Frames = Mapping[str, np.ndarray]
"""The embedding of each frame by its id, in the file's order."""

STAGES = (
    "CHUNKING",
    "TRANSLATION",
    "NUCLEOTIDE_SPLITTING",
    "PROTEIN_SPLITTING",
    "NUCLEOTIDE_FEATURES",
    "PROTEIN_FEATURES",
    "FEATURE_MERGING",
    "PREDICTION",
    "CONSENSUS",
)


def save(path: Path, document: object, *, done: bool | None = None, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(document, path, pickle_protocol=protocol)
    if done:
        path.with_name(f"{path.name}.done").touch()
    return path


def dna_document(frames: Frames) -> dict:
    """Return DNA features of generations A and C: a list of dicts, numbers as Python floats."""
    return {
        "nucleotide": list(frames),
        "data": [
            {"label": name, "mean_representation": vector.tolist()}
            for name, vector in frames.items()
        ],
    }


def protein_document(frames: Frames) -> dict:
    """Return protein features of generations A and C: a list of tensors."""
    return {"proteins": list(frames), "data": [torch.tensor(v) for v in frames.values()]}


def merged_document(dna: Frames, protein: Frames) -> dict:
    """Return merged features as both programs wrote them: ids of all DNA, rows of the pairs."""
    rows = [np.concatenate([dna[name], protein[name]]) for name in dna if name in protein]
    return {"ids": list(dna), "data": torch.tensor(np.array(rows))}


def versioned(document: dict, status: str = "complete") -> dict:
    """Return what v1.0 makes of it: generation D."""
    return document | {"version": "1.0", "status": status}


def batch_document(frames: Frames) -> dict:
    """Return a batch of v2.0's multi-GPU runs; it was written with pickle protocol 4."""
    metadata = {"batch_idx": 0, "num_sequences": len(frames), "timestamp": 1.5, "model": None}
    return {
        "embeddings": np.array(list(frames.values()), np.float32),
        "sequence_ids": list(frames),
        "metadata": metadata,
    }


def write_shard(path: Path, frames: Frames, **options: object) -> Path:
    """Write a shard of v2.0; `embeddings.h5`, which joins them, has `chunks=True`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", data=np.array(list(frames.values())), **options)
        file.create_dataset("sequence_ids", data=list(frames), dtype=h5py.string_dtype())
    return path


def write_state(output_dir: Path, statuses: Sequence[str], expected_length: int = 500) -> None:
    """Write `pipeline_state.json`; stages without a status were not started."""
    filled = [*statuses, *["not_started"] * (len(STAGES) - len(statuses))]
    state = {
        "created_at": "2026-01-22T17:32:57.741463",
        "pipeline_config": {
            "config_hash": "0" * 64,
            "expected_length": expected_length,
            "model_path": "500_model.pth",
        },
        "stages": {
            name: {"status": status, "inputs": {}, "outputs": {}, "error": None}
            for name, status in zip(STAGES, filled, strict=True)
        },
    }
    path = output_dir / ".checkpoints" / "pipeline_state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state))


def write_fasta(path: Path, sequences: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))


def make_frames(num_frames: int, width: int, seed: int = 0, prefix: str = "r") -> dict:
    random = np.random.default_rng(seed)
    values = random.standard_normal((num_frames, width)).astype(np.float32)
    return {f"{prefix}{index}_chunk_1F1": values[index] for index in range(num_frames)}
