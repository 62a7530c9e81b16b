from __future__ import annotations

import numpy as np

from tests import legacy_files as old
from virnucpro.checkpoints.parts import FORMAT_VERSION
from virnucpro.legacy.steps import STEPS, EmbeddingDims, migrate_document

DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(5, DIMS.dna, seed=1)
PROTEIN = old.make_frames(5, DIMS.protein, seed=2)


def test_each_step_leads_to_the_next_version():
    document = old.protein_document(PROTEIN) | {"dims": DIMS}
    document["data"] = [tensor.numpy() for tensor in document["data"]]
    before = dict(document)
    migrated = migrate_document(document, 0)
    assert document == before
    assert migrated["ids"] == list(PROTEIN)
    shard = {"sequence_ids": list(PROTEIN), "embeddings": np.array(list(PROTEIN.values()))}
    assert np.array_equal(
        migrate_document(shard | {"dims": DIMS}, 2)["embeddings"]["protein"],
        migrated["embeddings"]["protein"],
    )


def test_there_is_a_step_from_every_older_version():
    assert len(STEPS) == FORMAT_VERSION


def test_a_current_document_passes_unchanged():
    assert migrate_document({"x": 1}, FORMAT_VERSION) == {"x": 1}
