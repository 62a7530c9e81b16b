"""Training on the original's labelled merged features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.legacy_files import save
from tests.runs import read_known_report
from virnucpro import TrainConfig, train
from virnucpro.errors import CheckpointError
from virnucpro.legacy.merged import read_merged
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.scoring.classifier_files import load_classifier

DIMS = EmbeddingDims(6, 4)


def make_document(label: int, num_records: int, prefix: str, seed: int) -> dict:
    """Return a file as the original's `merge_data` wrote it for training."""
    random = np.random.default_rng(seed)
    ids = [
        f"{prefix}{record}_chunk_{chunk}{frame}"
        for record in range(num_records)
        for chunk in (1, 2, 3)
        for frame in ("F1", "R2")
    ]
    data = random.standard_normal((len(ids), 10)) + 1.5 * label
    return {"ids": ids, "data": torch.tensor(data, dtype=torch.float32), "labels": [label]}


@pytest.fixture
def features(tmp_path: Path) -> list[str]:
    documents = {
        "viral.1.1_merged/output_0_merged.pt": make_document(1, 40, "v", 0),
        "viral.1.1_merged/output_1_merged.pt": make_document(1, 20, "w", 1),
        "bacteria.1.1_merged/output_0_merged.pt": make_document(0, 40, "b", 2),
        "fungi.1.1_merged/output_0_merged.pt": make_document(0, 30, "v", 3),
    }
    return [str(save(tmp_path / name, document)) for name, document in documents.items()]


def test_records_chunks_and_classes_come_of_ids_and_directories(features: list[str]) -> None:
    corpus, values, precisions = read_merged(features, DIMS)
    assert [tuple(one) for one in corpus.classes] == [
        ("viral.1.1_merged", True),
        ("bacteria.1.1_merged", False),
        ("fungi.1.1_merged", False),
    ]
    # Records of fungi have the ids of viruses, and are others all the same.
    assert len(corpus.record_ids) == 130
    np.testing.assert_array_equal(np.bincount(corpus.record_class), [60, 40, 30])
    assert values.shape == (130 * 6, 10)
    np.testing.assert_array_equal(corpus.num_frames, 2)
    np.testing.assert_array_equal(corpus.chunk_number[:4], [0, 1, 2, 0])
    np.testing.assert_array_equal(corpus.num_chunks, 3)
    wanted = torch.load(features[1], weights_only=True)["data"].numpy()
    np.testing.assert_array_equal(values[240 : 240 + len(wanted)], wanted)
    assert set(precisions) == {"unknown"}


@pytest.mark.slow
def test_a_classifier_is_made_of_them(features: list[str], tmp_path: Path) -> None:
    config = TrainConfig(
        merged=tuple(features),
        output_path=tmp_path / "head.safetensors",
        dna_dim=6,
        protein_dim=4,
        chunk_length_bp=500,
        device="cpu",
    )
    result = train(config)
    assert result.sections[0].estimates["auroc"].value > 0.9
    classifier = load_classifier(config.output_path)
    assert classifier.calibration is not None
    # Nothing tells which weights made the features, so none are refused.
    classifier.check_fits(("dnabert-s", 6), ("esm2", 4), 500, ("any", "weights"))
    origin = classifier.metadata.origin
    assert [file["path"] for file in origin["inputs"]] == features
    report = read_known_report(config.work_dir)
    assert report["classes"][2]["num_records"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [2]}, r"its labels are \[2.0\], wanted 0 \(others\) or 1"),
        ({"labels": [0, 1]}, r"its labels are \[0.0, 1.0\]"),
        ({"labels": []}, "its labels are missing"),
        ({"labels": [0]}, "its label is 0, and that of another file in .* is 1"),
        ({"data": torch.zeros(120, 7)}, r"merged embeddings are \(120, 7\), wanted \(rows, 10\)"),
        ({"ids": ["a"]}, "1 ids and 120 rows"),
    ],
)
def test_files_that_cannot_be_used_are_named(features, change, message: str) -> None:
    document = make_document(1, 20, "w", 1)
    save(Path(features[1]), document | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_merged(features, DIMS)
    assert features[1] in str(caught.value)


def test_features_of_one_alphabet_are_not_enough(features: list[str]) -> None:
    vectors = [torch.zeros(4) for _ in range(3)]
    save(Path(features[0]), {"proteins": ["a", "b", "c"], "data": vectors})
    with pytest.raises(CheckpointError, match="holds protein features; wanted merged ones"):
        read_merged(features, DIMS)


def test_nothing_in_a_file_is_run(features: list[str], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    save(Path(features[0]), {"ids": [], "data": Evil(), "labels": [1]})
    with pytest.raises(CheckpointError, match="refused, because it names"):
        read_merged(features, DIMS)
    assert not (tmp_path / "ran").exists()
