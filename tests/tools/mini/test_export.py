from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_esm2 import backend as protein_backend

from tools.mini.export import export_model
from tools.mini.frames import DNA_PAD, PROTEIN_PAD, make_frames
from tools.mini.genomes import CODE_OF_BYTE
from tools.mini.model import MiniModel, Sizes, pool
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences import frames as pipeline_frames

SIZES = Sizes(
    word_bp=3,
    dna_layers=2,
    dna_width=12,
    dna_heads=2,
    dna_inner=20,
    protein_layers=2,
    protein_width=16,
    protein_heads=2,
    protein_inner=24,
    hidden=8,
)
CALIBRATIONS = {length_bp: torch.tensor([0.5, 0.25]) for length_bp in (300, 500)}


@pytest.fixture(scope="module")
def model() -> MiniModel:
    torch.manual_seed(0)
    model = MiniModel(SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    # Statistics as of training, without which a random head would say the same of everything.
    _, dna_FT, protein_FT = make_frames(as_codes(random_chunks(40, 90, seed=0)), SIZES.word_bp)
    features_FD = pool(
        model.encode_dna(dna_FT), dna_FT, model.encode_proteins(protein_FT), protein_FT
    )
    hidden_FD = model.head.hidden_layer(features_FD).detach()
    model.head.bn1.running_mean.copy_(hidden_FD.mean(0))
    model.head.bn1.running_var.copy_(hidden_FD.var(0))
    return model.half().float().requires_grad_(False)


def random_chunks(num: int, length: int, seed: int, letters: str = "ACGT") -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), length)) for _ in range(num)]


def as_codes(chunks: list[str]) -> torch.Tensor:
    codes = np.frombuffer("".join(chunks).encode().translate(CODE_OF_BYTE), np.uint8).copy()
    return torch.from_numpy(codes).view(len(chunks), -1)


def pipeline_sequences(chunks: list[str]) -> tuple[list[int], list[str], list[str]]:
    """Return chunk, DNA and protein of each open frame, from the pipeline's own functions."""
    letters = "".join(chunks).encode()
    length = np.array([len(chunk) for chunk in chunks])
    start = np.cumsum(length) - length
    found = pipeline_frames.find_open_frames(letters, start, length)
    dna_start, dna_length = pipeline_frames.locate_frame_dna(
        length[found.chunk], found.code, found.protein_length
    )
    dna, proteins, end = [], [], 0
    for frame, chunk in enumerate(found.chunk):
        first = start[chunk] + dna_start[frame]
        piece = letters[first : first + dna_length[frame]]
        is_reverse = pipeline_frames.is_reverse(found.code[frame])
        dna.append((pipeline_frames.reverse_complement(piece) if is_reverse else piece).decode())
        proteins.append(found.proteins[end : end + found.protein_length[frame]].decode())
        end += found.protein_length[frame]
    return found.chunk.tolist(), dna, proteins


def unpad(tokens_FT: torch.Tensor, padding: int) -> list[list[int]]:
    return [[token for token in row if token != padding] for row in tokens_FT.tolist()]


@pytest.mark.parametrize("length", [3, 4, 5, 31, 90])
@pytest.mark.parametrize("word_bp", [3, 6])
@pytest.mark.parametrize("letters", ["ACGT", "AACCGGTTACGTN", "ACG", "N"])
def test_frames_and_tokens_are_those_of_the_pipeline(
    tmp_path: Path, length: int, word_bp: int, letters: str
) -> None:
    sizes = Sizes(**{**vars(SIZES), "word_bp": word_bp})
    export_model(tmp_path, MiniModel(sizes), {})
    weights = dna_backend.open_weights(str(tmp_path / "dnabert_s"))
    chunks = random_chunks(40, length, seed=length, letters=letters)
    chunk, dna, proteins = pipeline_sequences(chunks)
    frames = make_frames(as_codes(chunks), word_bp)
    assert frames.chunk_F.tolist() == chunk
    assert bool(chunk) == (letters != "N")
    if not chunk:
        return
    rows = np.arange(len(chunk))
    for tokens_FT, padding, batch in (
        (frames.dna_FT, DNA_PAD, dna_backend.load_collator(weights)(rows, dna)),
        (frames.protein_FT, PROTEIN_PAD, protein_backend.load_collator(weights)(rows, proteins)),
    ):
        wanted = batch.token_ids_T.split(batch.lengths_B.tolist())
        assert unpad(tokens_FT, padding) == [tokens.tolist() for tokens in wanted]


def test_soft_masked_dna_is_read_as_any_other(tmp_path: Path, model: MiniModel) -> None:
    export_model(tmp_path, model, {})
    collate = dna_backend.load_collator(dna_backend.open_weights(str(tmp_path / "dnabert_s")))
    upper, lower = (collate(np.arange(1), [dna]) for dna in ("ACGTACGTTA", "acgTacgttA"))
    assert upper.token_ids_T.tolist() == lower.token_ids_T.tolist()


def test_exported_files_compute_what_the_trained_model_does(
    tmp_path: Path, model: MiniModel
) -> None:
    export_model(tmp_path, model, CALIBRATIONS)
    chunks = random_chunks(40, 90, seed=1, letters="AACCGGTTACGTN")
    _, dna, proteins = pipeline_sequences(chunks)
    features = []
    for backend, directory, sequences in (
        (dna_backend, "dnabert_s", dna),
        (protein_backend, "esm2", proteins),
    ):
        weights = backend.open_weights(str(tmp_path / directory))
        encoder = backend.load_encoder(
            weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
        )
        batch = backend.load_collator(weights)(np.arange(len(sequences)), sequences)
        features.append(encoder(batch))
    _, dna_FT, protein_FT = make_frames(as_codes(chunks), SIZES.word_bp)
    trained_FD = pool(
        model.encode_dna(dna_FT), dna_FT, model.encode_proteins(protein_FT), protein_FT
    )
    torch.testing.assert_close(torch.cat(features, 1), trained_FD, rtol=1e-4, atol=1e-4)
    logits_FC, _ = model([(dna_FT, protein_FT)], [(dna_FT, protein_FT)])
    classifier = load_classifier(tmp_path / "300_model.safetensors")
    wanted_FC = (0.5 * logits_FC + torch.tensor([0.0, 0.25])).softmax(1)
    scores_FC = torch.from_numpy(classifier.score(trained_FD.numpy()))
    torch.testing.assert_close(scores_FC, wanted_FC, rtol=1e-3, atol=1e-4)
    assert scores_FC[:, 1].std() > 0.01
