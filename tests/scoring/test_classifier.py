"""Scores of the classifier, and the backends that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.make_classifier_weights import make_classifier
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier import ClassifierMetadata, FrameClassifier
from virnucpro.scoring.classifier_files import load_classifier, save_classifier

DNA = ("dnabert-s", 8)
PROTEIN = ("esm2", 12)
METADATA = ClassifierMetadata("dnabert-s", "esm2", 8, 12, 500)
IDENTITIES = ("sha256:d", "sha256:p")
CALIBRATED = replace(
    METADATA,
    dna_weights_identity=IDENTITIES[0],
    protein_weights_identity=IDENTITIES[1],
    calibration=Calibration(0.75, 0.25, -0.125, 64),
    origin={"inputs": [{"path": "phages.fa", "sha256": "0" * 64}], "seed": 1},
)


def read_state(published: Path) -> dict[str, torch.Tensor]:
    return torch.load(published / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> FrameClassifier:
    path = tmp_path_factory.mktemp("full") / "classifier.safetensors"
    make_classifier(path, 768, 2560, 500)
    return load_classifier(path)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2100, 3328), np.float32)


@pytest.fixture(scope="module")
def wanted(full_size: FrameClassifier, features: np.ndarray) -> np.ndarray:
    """The scores of all features."""
    return full_size.score(features)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_scores_are_independent_of_batch_size(
    full_size: FrameClassifier, features: np.ndarray, wanted: np.ndarray, batch_size: int
) -> None:
    rows = features[: min(2100, batch_size * 5)]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    scores = np.concatenate([full_size.score(batch) for batch in batches])
    np.testing.assert_array_equal(scores, wanted[: len(rows)])


def test_scores_are_independent_of_order(
    full_size: FrameClassifier, features: np.ndarray, wanted: np.ndarray
) -> None:
    order = np.random.default_rng(2).permutation(len(features))
    np.testing.assert_array_equal(full_size.score(features[order]), wanted[order])


@pytest.mark.usefixtures("restored_threads")
def test_scores_are_independent_of_threads(
    full_size: FrameClassifier, features: np.ndarray, wanted: np.ndarray
) -> None:
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        np.testing.assert_array_equal(full_size.score(features), wanted)


def test_made_weights_spread_over_the_scores(wanted: np.ndarray) -> None:
    np.testing.assert_allclose(wanted.sum(axis=1), 1, atol=1e-6)
    quantiles = np.quantile(wanted[:, 1], [0.1, 0.5, 0.9])
    assert quantiles[0] < 0.2
    assert 0.35 < quantiles[1] < 0.65
    assert quantiles[2] > 0.8


def test_features_on_disk_and_none_at_all(
    full_size: FrameClassifier, features: np.ndarray, wanted: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "features.npy", features[:10])
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(full_size.score(mapped), wanted[:10])
    assert full_size.score(features[:0]).shape == (0, 2)


def test_bad_features_are_refused(full_size: FrameClassifier, features: np.ndarray) -> None:
    with pytest.raises(ClassifierError, match=r"\(frames, 3328\), found \(10, 1\)"):
        full_size.score(features[:10, :1])
    broken = features[:10].copy()
    broken[3, 5] = np.nan
    with pytest.raises(ClassifierError, match="1 of 10 frames, the first at 3,"):
        full_size.score(broken)


def test_dimensions_are_compared_when_the_file_tells_no_more(published: Path) -> None:
    classifier = load_classifier(published / "state.pt")
    classifier.check_fits(("any", 5), ("thing", 15), 300, IDENTITIES)
    with pytest.raises(ClassifierError, match=r"wants 20 .* give 24 = dnabert-s 8 \+ esm2 16"):
        classifier.check_fits(DNA, ("esm2", 16), 500, IDENTITIES)


@pytest.mark.parametrize(
    ("dna", "protein", "chunk_length_bp", "message"),
    [
        (
            DNA,
            ("esm2", 16),
            500,
            r"wants 20 = dnabert-s 8 \+ esm2 12 .* 24 = dnabert-s 8 \+ esm2 1",
        ),
        (("dnabert-s", 12), ("esm2", 8), 500, r"give 20 = dnabert-s 12 \+ esm2 8"),
        (("other", 8), PROTEIN, 500, r"give 20 = other 8 \+ esm2 12"),
        (("other", None), PROTEIN, 500, r"give other \? \+ esm2 12;"),
        (DNA, PROTEIN, 300, "chunks of 500 bp, and the run cuts chunks of 300 bp"),
    ],
)
def test_misfits_are_named(
    published: Path,
    tmp_path: Path,
    dna: tuple[str, int | None],
    protein: tuple[str, int],
    chunk_length_bp: int,
    message: str,
) -> None:
    save_classifier(tmp_path / "c", read_state(published), METADATA)
    classifier = load_classifier(tmp_path / "c")
    classifier.check_fits(DNA, PROTEIN, 500, IDENTITIES)
    with pytest.raises(ClassifierError, match=message):
        classifier.check_fits(dna, protein, chunk_length_bp, IDENTITIES)


def test_other_weights_of_the_same_size_are_refused(published: Path, tmp_path: Path) -> None:
    save_classifier(tmp_path / "c", read_state(published), CALIBRATED)
    classifier = load_classifier(tmp_path / "c")
    classifier.check_fits(DNA, PROTEIN, 500, IDENTITIES)
    with pytest.raises(ClassifierError, match="trained on esm2 weights sha256:p, and the run uses"):
        classifier.check_fits(DNA, PROTEIN, 500, (IDENTITIES[0], "sha256:q"))


def test_what_the_file_says_of_its_weights_is_told(published: Path, tmp_path: Path) -> None:
    origin = {"weights": ["models/dna", "facebook/esm2_t6"]}
    save_classifier(tmp_path / "c", read_state(published), replace(CALIBRATED, origin=origin))
    classifier = load_classifier(tmp_path / "c")
    classifier.check_fits(("dnabert-s", None), ("esm2", None), 500, None)
    wanted = (
        "on: --dna-backend dnabert-s --dna-weights models/dna, digest of the weights sha256:d; "
        "--protein-backend esm2 --protein-weights facebook/esm2_t6, digest of the weights sha256:p"
    )
    # The name of the backend, too: it may be the only thing that is wrong.
    for protein in (("esm2", 2560), ("fair-esm", None)):
        with pytest.raises(ClassifierError, match=f"{wanted}$"):
            classifier.check_fits(("dnabert-s", None), protein, 500, None)
