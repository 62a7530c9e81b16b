"""Embedding some rows of old features again, to check that their values and ids are right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from virnucpro.backend.arrays import Float32Array
from virnucpro.backend.interface import Alphabet
from virnucpro.config import MigrateConfig
from virnucpro.embedding.models import open_model
from virnucpro.errors import CheckpointError, UsageError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.joining import Choice, FileReport, digest_ids
from virnucpro.legacy.old_runs import fasta_files, read_fasta
from virnucpro.legacy.steps import EmbeddingDims

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 0.05
"""Errors of fp16 and bf16 are far below, and differences between two sequences far above."""


def verify_rows(
    config: MigrateConfig, reports: Sequence[FileReport], choice: Choice, dims: EmbeddingDims
) -> dict[str, Any]:
    """Embed rows again, spread evenly over the rows that are taken, and return their errors.

    Raises:
        UsageError: The sources hold no sequences of these rows.
        CheckpointError: An embedding differs by more than `MAX_RELATIVE_ERROR`.
    """
    assert config.verify is not None, "the caller asks only then"
    models: dict[Alphabet, tuple[str, str | None]] = {
        "dna": (config.dna_backend, config.dna_weights),
        "protein": (config.protein_backend, config.protein_weights),
    }
    results: dict[str, Any] = {}
    for alphabet, (backend_name, location) in models.items():
        if location is None:
            continue
        ids = choice.ids(reports, alphabet)
        # Evenly, because a resumed run may have mixed ids in a part of the rows only.
        places = np.linspace(0, len(ids) - 1, min(config.verify, len(ids)))
        wanted = set(ids[np.unique(places.astype(np.int64))].tolist())
        sequences = _find_sequences(config.sources, alphabet, wanted)
        if not sequences:
            raise UsageError(
                f"--verify: no {alphabet} sequences of the chosen rows are in the sources; give "
                "the whole run directory, with its FASTA files"
            )
        old = _read_embeddings(reports, choice, alphabet, dims, set(sequences))
        names = sorted(old)
        new = _embed(backend_name, location, [sequences[name] for name in names], config.device)
        errors = [
            float(np.linalg.norm(old[name] - vector) / np.linalg.norm(vector))
            for name, vector in zip(names, new, strict=True)
        ]
        worst = int(np.argmax(errors))
        logger.info(
            "%s: %d embeddings computed again differ by at most %.2g",
            alphabet,
            len(names),
            errors[worst],
        )
        if errors[worst] > MAX_RELATIVE_ERROR:
            num_bad = sum(error > MAX_RELATIVE_ERROR for error in errors)
            raise CheckpointError(
                f"{num_bad} of {len(names)} {alphabet} embeddings differ from new ones (most: "
                f"{names[worst]}, by {errors[worst]:.0%}): the weights differ, or a resumed run "
                "mixed the ids; do not use these embeddings"
            )
        results[alphabet] = {"rows": len(names), "largest relative error": errors[worst]}
    return results


def _find_sequences(
    sources: Sequence[Path], alphabet: Alphabet, wanted: set[int]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in (
        path for source in sources for path, kind in fasta_files(source) if kind == alphabet
    ):
        for records in read_fasta(path, alphabet):
            digests = digest_ids([record.id for record in records]).tolist()
            found.update(
                (record.id, record.sequence.upper())
                for record, digest in zip(records, digests, strict=True)
                if digest in wanted
            )
    return found


def _read_embeddings(
    reports: Sequence[FileReport],
    choice: Choice,
    alphabet: Alphabet,
    dims: EmbeddingDims,
    names: set[str],
) -> dict[str, Float32Array]:
    wanted = digest_ids(sorted(names))
    found: dict[str, Float32Array] = {}
    for report, taken in zip(reports, choice.taken, strict=True):
        if alphabet not in taken or not np.isin(report.ids[taken[alphabet]], wanted).any():
            continue
        # Files of torch.save can only be read as a whole, so only those with a wanted id are
        # opened.
        for _, document in read_documents(report.path, dims):
            for name, vector in zip(document["ids"], document["embeddings"][alphabet], strict=True):
                if name in names:
                    found[name] = vector
    return found


@torch.inference_mode()
def _embed(
    backend_name: str, location: str, sequences: Sequence[str], device: str
) -> list[Float32Array]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_model(backend_name, location)
    collate = model.load_collator()
    # In fp32, so that the difference is that of the old values and not of new rounding.
    encoder = model.load_encoder(torch.device(device), "fp32", "auto")
    embeddings = []
    for row, sequence in enumerate(sequences):
        # One sequence at a time: it has no padding, so nothing but the sequence can count.
        batch = collate(np.array([row]), [sequence])
        batch = batch._replace(
            token_ids_T=batch.token_ids_T.to(device), lengths_B=batch.lengths_B.to(device)
        )
        embeddings.append(encoder(batch)[0].cpu().numpy())
    return embeddings
