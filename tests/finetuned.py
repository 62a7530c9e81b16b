"""Makes classifiers that change the encoders, and the same encoders changed by hand."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from tools.make_demo_weights import DNA_DIM, PROTEIN_DIM
from virnucpro.backend.changes import Changes, LowRank
from virnucpro.backend.interface import Alphabet
from virnucpro.backend.registry import load_backend
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier_files import read_classifier, save_classifier

NAMES_IN_FILES: Mapping[Alphabet, Mapping[str, str]] = {
    "dna": {
        "layers.0.mlp_out.weight": "encoder.layer.0.mlp.wo.weight",
        "layers.1.mlp_out.bias": "encoder.layer.1.mlp.wo.bias",
    },
    "protein": {
        "layers.0.fc1.weight": "encoder.sentence_encoder.layers.0.fc1.weight",
        "layers.1.fc2.bias": "encoder.sentence_encoder.layers.1.fc2.bias",
    },
}
"""The changed parameters, and what the files of the weights call them."""


def make_changes(seed: int) -> dict[Alphabet, Changes]:
    """Return a change of low rank and a whole parameter for each model of the demonstration."""
    numbers = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=numbers) * 0.1

    return {
        "dna": {
            "layers.0.mlp_out.weight": LowRank(draw(2, 2 * DNA_DIM), draw(DNA_DIM, 2)),
            "layers.1.mlp_out.bias": draw(DNA_DIM),
        },
        "protein": {
            "layers.0.fc1.weight": LowRank(draw(3, PROTEIN_DIM), draw(4 * PROTEIN_DIM, 3)),
            "layers.1.fc2.bias": draw(PROTEIN_DIM),
        },
    }


def write_finetuned(
    weights: Mapping[str, str], path: Path, changes: Mapping[Alphabet, Changes]
) -> dict[str, str]:
    """Write the demonstration's classifier with `changes`, and return the settings that use it."""
    state, metadata, _ = read_classifier(Path(weights["model_path"]))
    metadata = replace(
        metadata,
        dna_weights_identity=_identify("dnabert-s", weights["dna_weights"]),
        protein_weights_identity=_identify("esm2", weights["protein_weights"]),
        calibration=Calibration(slope=4.0, slope_growth=0.5, offset=-0.25, most_chunks=20),
        finetuned={"targets": list(changes)},
    )
    save_classifier(path, state, metadata, changes)
    return {**weights, "model_path": str(path)}


def _identify(backend: str, location: str) -> str:
    return load_backend(backend).backend.open_weights(location).identity


def merge_by_hand(
    weights: Mapping[str, str], directory: Path, changes: Mapping[Alphabet, Changes]
) -> dict[str, str]:
    """Write the models with `changes` in their own files, and a classifier that knows of nothing.

    Its calibration is that of `write_finetuned`.
    """
    dna, protein = directory / "dnabert_s", directory / "esm2.pt"
    shutil.copytree(weights["dna_weights"], dna)
    state = torch.load(dna / "pytorch_model.bin", weights_only=True)
    torch.save(_merge(state, "dna", changes), dna / "pytorch_model.bin")
    with torch.serialization.safe_globals([argparse.Namespace]):
        document = torch.load(weights["protein_weights"], weights_only=True)
    _merge(document["model"], "protein", changes)
    torch.save(document, protein)
    tuned = write_finetuned(weights, directory / "plain.safetensors", {})
    state, metadata, _ = read_classifier(Path(tuned["model_path"]))
    unknown = replace(metadata, dna_weights_identity=None, protein_weights_identity=None)
    save_classifier(directory / "plain.safetensors", state, unknown)
    return {**tuned, "dna_weights": str(dna), "protein_weights": str(protein)}


def _merge(
    state: dict[str, torch.Tensor], alphabet: Alphabet, changes: Mapping[Alphabet, Changes]
) -> dict[str, torch.Tensor]:
    for parameter, change in changes[alphabet].items():
        name = NAMES_IN_FILES[alphabet][parameter]
        is_pair = isinstance(change, LowRank)
        state[name] = state[name] + change.up_OR @ change.down_RI if is_pair else change
    return state
