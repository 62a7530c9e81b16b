from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tools.make_classifier_weights import make_classifier
from virnucpro.backend.weights import digest_files
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier import (
    Classifier,
    ClassifierMetadata,
    load_classifier,
    save_classifier,
)

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

PUBLISHED = """
import sys
import torch
from torch import nn


class MLPClassifier(nn.Module):
    def __init__(self, input_dim, hidden_dim, num_class):
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.output_layer = nn.Linear(hidden_dim, num_class)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features):
        hidden = self.dropout(torch.relu(self.bn1(self.hidden_layer(features))))
        return torch.softmax(self.output_layer(hidden), dim=1)


torch.manual_seed(0)
model = MLPClassifier(20, 16, 2)
for _ in range(20):
    model(3 * torch.randn(32, 20) + 1)
model.eval()
torch.save(model, sys.argv[1] + "/500_model.pth")
features = torch.randn(50, 20)
with torch.no_grad():
    scores = model(features)
torch.save({"features": features, "scores": scores}, sys.argv[1] + "/expected.pt")
torch.save(model.state_dict(), sys.argv[1] + "/state.pt")
torch.save(nn.DataParallel(model).state_dict(), sys.argv[1] + "/parallel.pth")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a training script leaves, its class defined in its `__main__`."""
    directory = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-c", PUBLISHED, directory], check=True)
    return directory


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    path = tmp_path_factory.mktemp("full") / "classifier.safetensors"
    make_classifier(path, 768, 2560, 500)
    return load_classifier(path)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2100, 3328), np.float32)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def read_state(published: Path) -> dict[str, torch.Tensor]:
    return torch.load(published / "state.pt", weights_only=True)


@pytest.mark.parametrize("name", ["500_model.pth", "state.pt", "parallel.pth"])
def test_scores_are_the_published_modules(published: Path, name: str) -> None:
    classifier = load_classifier(published / name)
    expected = torch.load(published / "expected.pt", weights_only=True)
    scores = classifier.score(expected["features"].numpy())
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=3e-7)
    assert classifier.input_dim == 20
    assert classifier.metadata is None
    assert classifier.identity == digest_files([published / name])


def test_our_file_scores_the_same_and_tells_what_it_is_for(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "misleading.pth"
    save_classifier(path, read_state(published), METADATA)
    classifier = load_classifier(path)
    assert classifier.metadata == METADATA
    features = torch.load(published / "expected.pt", weights_only=True)["features"].numpy()
    original = load_classifier(published / "500_model.pth")
    np.testing.assert_array_equal(classifier.score(features), original.score(features))


def test_safetensors_of_others_are_a_state_dict(published: Path, tmp_path: Path) -> None:
    save_file(read_state(published), tmp_path / "model.safetensors")
    assert load_classifier(tmp_path / "model.safetensors").metadata is None


def test_same_weights_same_identity(published: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in paths:
        save_classifier(path, read_state(published), METADATA)
    assert len({load_classifier(path).identity for path in paths}) == 1


# --- scores depend on nothing but the frame


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_scores_are_independent_of_batch_size(
    full_size: Classifier, features: np.ndarray, batch_size: int
) -> None:
    rows = features[: min(2100, batch_size * 20)]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    scores = np.concatenate([full_size.score(batch) for batch in batches])
    np.testing.assert_array_equal(scores, full_size.score(features)[: len(rows)])


def test_scores_are_independent_of_order(full_size: Classifier, features: np.ndarray) -> None:
    order = np.random.default_rng(2).permutation(len(features))
    np.testing.assert_array_equal(
        full_size.score(features[order]), full_size.score(features)[order]
    )


@pytest.mark.usefixtures("restored_threads")
def test_scores_are_independent_of_threads(full_size: Classifier, features: np.ndarray) -> None:
    torch.set_num_threads(1)
    alone = full_size.score(features)
    torch.set_num_threads(2)
    np.testing.assert_array_equal(full_size.score(features), alone)


def test_made_weights_spread_over_the_scores(full_size: Classifier, features: np.ndarray) -> None:
    scores = full_size.score(features)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    quantiles = np.quantile(scores[:, 1], [0.1, 0.5, 0.9])
    assert quantiles[0] < 0.2
    assert 0.35 < quantiles[1] < 0.65
    assert quantiles[2] > 0.8


def test_features_on_disk_and_none_at_all(
    full_size: Classifier, features: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "features.npy", features[:10])
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(full_size.score(mapped), full_size.score(features)[:10])
    assert full_size.score(features[:0]).shape == (0, 2)


def test_bad_features_are_refused(full_size: Classifier, features: np.ndarray) -> None:
    with pytest.raises(ClassifierError, match=r"\(frames, 3328\), found \(10, 1\)"):
        full_size.score(features[:10, :1])
    broken = features[:10].copy()
    broken[3, 5] = np.nan
    with pytest.raises(ClassifierError, match="1 of 10 frames, the first at 3,"):
        full_size.score(broken)


# --- what the classifier goes with


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
        (DNA, PROTEIN, 300, "chunks of 500 bp, the run cuts chunks of 300 bp"),
    ],
)
def test_misfits_are_named(
    published: Path,
    tmp_path: Path,
    dna: tuple[str, int],
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
    with pytest.raises(ClassifierError, match="trained on esm2 weights sha256:p, the run uses"):
        classifier.check_fits(DNA, PROTEIN, 500, (IDENTITIES[0], "sha256:q"))


# --- what our own files tell


def test_calibration_and_origin_are_kept(published: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_classifier(tmp_path / name, read_state(published), CALIBRATED)
    assert load_classifier(tmp_path / "a").metadata == CALIBRATED
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_version_1_is_read_and_tells_less(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    document = {
        "format_version": 1,
        "class_names": ["others", "virus"],
        "dna_backend": "dnabert-s",
        "protein_backend": "esm2",
        "dna_dim": 8,
        "protein_dim": 12,
        "chunk_length_bp": 500,
    }
    save_file(read_state(published), path, {"virnucpro_classifier": json.dumps(document)})
    classifier = load_classifier(path)
    assert classifier.metadata == METADATA
    assert classifier.calibration is None
    classifier.check_fits(DNA, PROTEIN, 500, ("sha256:any", "sha256:thing"))


@pytest.mark.parametrize(
    "change", [{"slope": -1.0}, {"offset": float("nan")}, {"slope": "1"}, {"x": 1}]
)
def test_an_impossible_calibration_is_refused(published: Path, tmp_path: Path, change) -> None:
    save_classifier(tmp_path / "c", read_state(published), CALIBRATED)
    with safe_open(tmp_path / "c", "pt") as file:
        document = json.loads(file.metadata()["virnucpro_classifier"])
    document["calibration"] |= change
    save_file(read_state(published), tmp_path / "c", {"virnucpro_classifier": json.dumps(document)})
    with pytest.raises(ClassifierError, match="c: cannot be read as a classifier"):
        load_classifier(tmp_path / "c")


# --- files that are none


def test_a_module_of_another_class_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(20, 2)), tmp_path / "other.pth")
    with pytest.raises(ClassifierError, match=r"other\.pth: refused"):
        load_classifier(tmp_path / "other.pth")


def test_other_shapes_are_shown_beside_those_wanted(published: Path, tmp_path: Path) -> None:
    state = read_state(published)
    state["output_layer.weight"] = torch.zeros(3, 16)
    del state["bn1.bias"]
    torch.save(state, tmp_path / "three_classes.pt")
    with pytest.raises(ClassifierError) as caught:
        load_classifier(tmp_path / "three_classes.pt")
    assert "output_layer.weight is (3, 16), wanted (2, 16)" in str(caught.value)
    assert "bn1.bias is missing, wanted (16,)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_layer.weight", torch.nan), ("bn1.running_var", torch.inf), ("bn1.running_var", -1)],
)
def test_impossible_numbers_are_refused(
    published: Path, tmp_path: Path, name: str, value: float
) -> None:
    state = read_state(published)
    state[name].view(-1)[3] = value
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ClassifierError, match=rf"broken\.pt: {name} holds NaN"):
        load_classifier(tmp_path / "broken.pt")


def test_metadata_must_agree_with_the_tensors(published: Path, tmp_path: Path) -> None:
    metadata = ClassifierMetadata("dnabert-s", "esm2", 8, 13, 500)
    with pytest.raises(ClassifierError, match=r"wants 20 numbers, but the metadata say 8 \+ 13"):
        save_classifier(tmp_path / "c", read_state(published), metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"format_version": 3}', "version 3, and this program reads versions 1 to 2"),
        ('{"format_version": 1, "class_names": ["virus", "others"]}', "the classes are"),
        ('{"format_version": 1, "class_names": ["others", "virus"]}', "cannot be read"),
        ('{"format_version": 2, "origin": 1e999}', "cannot be read as a classifier .*JSON"),
        ("[", "cannot be read as a classifier"),
    ],
)
def test_metadata_of_another_kind_are_refused(
    published: Path, tmp_path: Path, metadata: str, message: str
) -> None:
    path = tmp_path / "c.safetensors"
    save_file(read_state(published), path, {"virnucpro_classifier": metadata})
    with pytest.raises(ClassifierError, match=message):
        load_classifier(path)


def test_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="No such file"):
        load_classifier(tmp_path / "gone.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["500_model.pth", "ours.safetensors"])
def test_a_damaged_file_is_refused_or_read_never_a_traceback(
    published: Path, tmp_path: Path, name: str
) -> None:
    save_classifier(published / "ours.safetensors", read_state(published), METADATA)
    whole = (published / name).read_bytes()
    path = tmp_path / name
    dice = random.Random(0)
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for _ in range(dice.randrange(1, 4)):
            if damaged:
                damaged[dice.randrange(min(len(damaged), 1500))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            load_classifier(path)
        except ClassifierError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(str(path) in refusal for refusal in refusals)


def test_made_weights_are_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_classifier(tmp_path / name, 4, 6, 300, seed=3)
    make_classifier(tmp_path / "c", 4, 6, 300, seed=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = load_file(tmp_path / "c")["hidden_layer.weight"]
    assert not torch.equal(load_file(tmp_path / "a")["hidden_layer.weight"], other)
