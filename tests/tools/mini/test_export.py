from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_esm2 import backend as protein_backend
from virnucpro_esm2.tokens import TOKENS

from tests.tools.mini.small import SIZES, as_codes, random_chunks
from tools.mini.export import export_model
from tools.mini.model import MiniModel, pool_dna
from tools.mini.stretches import pack_proteins, read_chunks
from virnucpro.config import FrameRule
from virnucpro.scoring.classifier_files import load_classifier

RULE = FrameRule("stretches", 2, 8)


@pytest.fixture(scope="module")
def model() -> MiniModel:
    torch.manual_seed(0)
    model = MiniModel(SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.half().float().requires_grad_(False)


def test_soft_masked_dna_is_read_as_any_other(tmp_path: Path, model: MiniModel) -> None:
    export_model(tmp_path, model, RULE)
    collate = dna_backend.load_collator(dna_backend.open_weights(str(tmp_path / "dnabert_s")))
    upper, lower = (collate(np.arange(1), [dna]) for dna in ("ACGTACGTTA", "acgTacgttA"))
    assert upper.token_ids_T.tolist() == lower.token_ids_T.tolist()


def test_exported_files_compute_what_the_trained_model_does(
    tmp_path: Path, model: MiniModel
) -> None:
    export_model(tmp_path, model, RULE)
    # The 36 tokens of their DNA are padded.
    chunks = random_chunks(40, 100, seed=1, letters="AACCGGTTACGTN")
    tokens = read_chunks(as_codes(chunks), RULE, SIZES.word_bp)
    proteins = [
        "".join(TOKENS[token] for token in row if token >= TOKENS.index("L"))
        for row in tokens.protein_CNT[tokens.is_stretch_CN].tolist()
    ]
    embedded = []
    for backend, directory, sequences in (
        (dna_backend, "dnabert_s", chunks),
        (protein_backend, "esm2", proteins),
    ):
        weights = backend.open_weights(str(tmp_path / directory))
        encoder = backend.load_encoder(
            weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
        )
        batch = backend.load_collator(weights)(np.arange(len(sequences)), sequences)
        embedded.append(encoder(batch))
    logits_C, protein_FD = model.score([tokens], pack_proteins([tokens]))
    dna_CD = pool_dna(model.encode_dna(tokens.dna_CT))
    is_stretch_F = tokens.is_stretch_CN.flatten()
    torch.testing.assert_close(embedded[0], dna_CD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded[1], protein_FD[is_stretch_F], rtol=1e-4, atol=1e-4)

    for length_bp in (300, 500):
        classifier = load_classifier(tmp_path / f"{length_bp}_model.safetensors")
        assert str(classifier.rule) == "stretches:2:8"
        assert classifier.metadata.chunk_length_bp == length_bp
    protein_CND = torch.zeros(*tokens.is_stretch_CN.shape, SIZES.protein_width)
    protein_CND[tokens.is_stretch_CN] = embedded[1]
    found_C = classifier.score(
        embedded[0].numpy(),
        protein_CND.numpy(),
        tokens.features_CNK.numpy(),
        tokens.is_stretch_CN.numpy(),
    )
    torch.testing.assert_close(torch.from_numpy(found_C), logits_C, rtol=1e-3, atol=1e-3)
    assert logits_C.std() > 0.01


def test_embeddings_do_not_depend_on_padding_and_neighbours(model: MiniModel) -> None:
    chunks = random_chunks(30, 120, seed=3)
    tokens = read_chunks(as_codes(chunks), RULE, SIZES.word_bp)
    longer = read_chunks(as_codes(random_chunks(7, 400, seed=4)), RULE, SIZES.word_bp)
    logits_C, protein_FD = model.score([tokens], pack_proteins([tokens]))
    proteins = pack_proteins([longer, tokens])
    together_C, together_FD = model.score([longer, tokens], proteins)
    torch.testing.assert_close(together_C[7:], logits_C, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together_FD[14:], protein_FD, rtol=1e-4, atol=1e-4)
    assert len(proteins.packing.lengths_B) == 2 * 37
