from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_esm2 import backend as protein_backend

from tests.tools.mini.small import SIZES, as_codes, random_chunks, unpad
from tools.mini.export import export_model
from tools.mini.model import MiniModel
from tools.mini.stretches import PROTEIN_PAD, read_chunks
from virnucpro.config import FrameRule
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store


@pytest.mark.parametrize("length", [31, 90, 96])
@pytest.mark.parametrize("word_bp", [3, 6])
@pytest.mark.parametrize("letters", ["ACGT", "AACCGGTTACGTN"])
def test_what_the_model_reads_is_what_the_program_reads(
    tmp_path: Path, length: int, word_bp: int, letters: str
) -> None:
    rule = FrameRule("stretches", 2, 5)
    export_model(tmp_path, MiniModel(dataclasses.replace(SIZES, word_bp=word_bp)), rule)
    weights = dna_backend.open_weights(str(tmp_path / "dnabert_s"))
    chunks = random_chunks(40, length, seed=length, letters=letters)
    (tmp_path / "chunks.fa").write_text("".join(f">c\n{chunk}\n" for chunk in chunks))
    store = build_frame_store(
        [str(tmp_path / "chunks.fa")], tmp_path / "store", StoreSettings(length, rule=rule)
    )
    rows = np.arange(store.num_rows)
    assert len(rows) > 40
    tokens = read_chunks(as_codes(chunks), rule, word_bp)
    np.testing.assert_array_equal(tokens.is_stretch_CN.nonzero()[:, 0], store.find_chunks(rows))
    features_FK = tokens.features_CNK[tokens.is_stretch_CN]
    np.testing.assert_allclose(features_FK, store.stretch_features(rows), rtol=1e-5)
    proteins = store.sequences("protein").get_many(rows)
    read = (
        (tokens.dna_CT.tolist(), dna_backend, chunks),
        (unpad(tokens.protein_CNT[tokens.is_stretch_CN], PROTEIN_PAD), protein_backend, proteins),
    )
    for found, backend, sequences in read:
        batch = backend.load_collator(weights)(np.arange(len(sequences)), sequences)
        wanted = batch.token_ids_T.split(batch.lengths_B.tolist())
        assert found == [one.tolist() for one in wanted]
