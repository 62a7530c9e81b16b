"""The head over chunks as a classifier: its logits, and its files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from virnucpro.backend.weights import digest_files
from virnucpro.config import FrameRule
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.chunk_head import NUM_FEATURES, ChunkHead, ChunkHeadSizes
from virnucpro.scoring.classifier import ChunkClassifier, ClassifierMetadata
from virnucpro.scoring.classifier_files import load_classifier, read_classifier, save_classifier

SIZES = ChunkHeadSizes(dna_dim=24, protein_dim=40, width=32, hidden=16)
METADATA = ClassifierMetadata(
    "dnabert-s",
    "esm2",
    24,
    40,
    500,
    calibration=Calibration(0.75, 0.25, -0.125, 64),
    threshold=0.75,
    frame_rule="stretches:3:20",
    chunk_head=SIZES,
)
NUM_CHUNKS = 700

Chunks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def head() -> ChunkHead:
    torch.manual_seed(0)
    return ChunkHead(SIZES, dropout=0.5).eval()


@pytest.fixture(scope="module")
def path(head: ChunkHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "chunk.safetensors"
    save_classifier(path, head.state_dict(), METADATA)
    return path


@pytest.fixture(scope="module")
def classifier(path: Path) -> ChunkClassifier:
    return load_classifier(path)


@pytest.fixture(scope="module")
def chunks() -> Chunks:
    return make_chunks(NUM_CHUNKS, 3)


def make_chunks(num_chunks: int, num_stretches: int) -> Chunks:
    random, shape = np.random.default_rng(0), (num_chunks, num_stretches)
    return (
        random.standard_normal((num_chunks, 24), np.float32),
        random.standard_normal((*shape, 40), np.float32),
        random.standard_normal((*shape, NUM_FEATURES), np.float32),
        random.random(shape) < 0.7,
    )


def test_logits_are_the_modules(
    classifier: ChunkClassifier, head: ChunkHead, chunks: Chunks
) -> None:
    with torch.inference_mode():
        wanted = head(*map(torch.from_numpy, chunks))
    found = classifier.score(*chunks)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert np.ptp(found) > 0.1


@pytest.mark.parametrize("size", [1, 7, 300])
def test_logits_are_independent_of_neighbours(
    classifier: ChunkClassifier, chunks: Chunks, size: int
) -> None:
    wanted = classifier.score(*chunks)
    starts = range(0, NUM_CHUNKS, size)[:40]
    found = [classifier.score(*(array[i : i + size] for array in chunks)) for i in starts]
    joined = np.concatenate(found)
    np.testing.assert_array_equal(joined, wanted[: len(joined)])
    order = np.random.default_rng(1).permutation(NUM_CHUNKS)
    np.testing.assert_array_equal(
        classifier.score(*(array[order] for array in chunks)), wanted[order]
    )


def test_what_is_not_a_stretch_does_not_count(classifier: ChunkClassifier, chunks: Chunks) -> None:
    dna, protein, features, _ = chunks
    is_stretch = np.broadcast_to([True, True, False], (NUM_CHUNKS, 3))
    wanted = classifier.score(dna, protein, features, is_stretch)
    cut = classifier.score(dna, protein[:, :2], features[:, :2], is_stretch[:, :2])
    np.testing.assert_array_equal(cut, wanted)
    protein, features = protein.copy(), features.copy()
    protein[:, 2], features[:, 2] = np.nan, np.inf
    np.testing.assert_array_equal(classifier.score(dna, protein, features, is_stretch), wanted)


def test_the_order_of_stretches_does_not_count(classifier: ChunkClassifier, chunks: Chunks) -> None:
    dna, *stretches = chunks
    turned = classifier.score(dna, *(array[:, [2, 0, 1]] for array in stretches))
    np.testing.assert_allclose(turned, classifier.score(*chunks), rtol=0, atol=1e-6)


def test_bad_arrays_are_refused(classifier: ChunkClassifier, chunks: Chunks) -> None:
    dna, protein, features, is_stretch = chunks
    with pytest.raises(ClassifierError, match=r"DNA embeddings of shape \(700, 24\).*\(700, 23\)"):
        classifier.score(dna[:, 1:], protein, features, is_stretch)
    more = [np.concatenate([array, array], axis=1) for array in (protein, features, is_stretch)]
    with pytest.raises(ClassifierError, match="at most 3 stretches"):
        classifier.score(dna, *more)
    broken = dna.copy()
    broken[300, 2] = np.nan
    with pytest.raises(ClassifierError, match="1 of 700 chunks, the first at 300,"):
        classifier.score(broken, protein, features, is_stretch)
    assert classifier.score(*(array[:0] for array in chunks)).shape == (0,)


def test_the_caller_keeps_its_random_numbers(path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_classifier(path)
    assert torch.equal(torch.rand(3), wanted)


# Files


def test_the_file_says_what_it_is_for(classifier: ChunkClassifier, path: Path) -> None:
    assert classifier.metadata == METADATA
    assert classifier.rule == FrameRule("stretches", 3, 20)
    assert classifier.calibration == METADATA.calibration
    assert classifier.identity == digest_files([path])
    assert classifier.input_dim == 64
    classifier.check_fits(("dnabert-s", 24), ("esm2", 40), 500, ("sha256:d", "sha256:p"))
    with pytest.raises(ClassifierError, match="the backends give 65"):
        classifier.check_fits(("dnabert-s", 25), ("esm2", 40), 500, ("sha256:d", "sha256:p"))


def test_the_same_head_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save_classifier(tmp_path / "again", *read_classifier(path))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def rewrite(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the classifier with other metadata to `target`."""
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["virnucpro_classifier"])
    change(document)
    save_file(load_file(path), target, {"virnucpro_classifier": json.dumps(document)})
    return target


@pytest.mark.parametrize(
    ("sizes", "rule", "message"),
    [
        ({"kind": "frame"}, "stretches", "a head of the kind 'frame' with the frame rule stretch"),
        ({"kind": "tree"}, "stretches", "a head of the kind 'tree'"),
        ({}, "words", "cannot be read as a classifier .*words"),
        ({}, ["open"], "cannot be read as a classifier"),
        ({}, "stretches:1000000000:1", "more than 256 stretches"),
        ({}, "stretches:2:20:code=77", "cannot be read as a classifier .*genetic code 77"),
        ({"width": 10**18}, "stretches", r"dna\.1\.bias is \(32,\), wanted \(10{18},\)"),
        ({"width": 0}, "stretches", "the sizes of the head are"),
        ({"width": True}, "stretches", "the sizes of the head are"),
        ({"width": "32"}, "stretches", "the sizes of the head are"),
        ({"depth": 3}, "stretches", "cannot be read as a classifier .*depth"),
        ({"dna_dim": 23}, "stretches", "not a VirNucPro classifier"),
    ],
)
def test_impossible_heads_and_rules_are_refused(
    path: Path, tmp_path: Path, sizes: dict[str, Any], rule: Any, message: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["head"] |= sizes
        document["frame_rule"] = rule

    with pytest.raises(ClassifierError, match=message) as caught:
        load_classifier(rewrite(path, tmp_path / "c", change))
    assert str(tmp_path / "c") in str(caught.value)


def test_a_head_may_read_the_open_frames_of_a_chunk(head: ChunkHead, tmp_path: Path) -> None:
    metadata = replace(METADATA, frame_rule="open")
    save_classifier(tmp_path / "c", head.state_dict(), metadata)
    found = load_classifier(tmp_path / "c")
    assert isinstance(found, ChunkClassifier)
    assert found.metadata == metadata
    chunks = make_chunks(20, 6)
    with torch.inference_mode():
        wanted = head(*map(torch.from_numpy, chunks))
    np.testing.assert_allclose(found.score(*chunks), wanted, atol=1e-5)
    # There is no seventh frame.
    with pytest.raises(ClassifierError, match="at most 6 stretches"):
        found.score(*make_chunks(20, 7))


@pytest.mark.parametrize("name", ["head", "dna_dim"])
def test_a_file_without_its_head_or_dimension_is_refused(
    path: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ClassifierError, match="c: "):
        load_classifier(rewrite(path, tmp_path / "c", lambda document: document.pop(name)))


@pytest.mark.parametrize("threshold", [0.0, 1.5, "0.5", True, [0.5]])
def test_impossible_thresholds_are_refused(path: Path, tmp_path: Path, threshold: Any) -> None:
    def change(document: dict[str, Any]) -> None:
        document["threshold"] = threshold

    with pytest.raises(ClassifierError, match="c: the threshold is"):
        load_classifier(rewrite(path, tmp_path / "c", change))


def test_metadata_must_agree_with_the_head(head: ChunkHead, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"wants 24 \+ 40 numbers, but .* 25 \+ 40"):
        save_classifier(tmp_path / "c", head.state_dict(), replace(METADATA, dna_dim=25))


def test_impossible_numbers_are_refused(head: ChunkHead, path: Path, tmp_path: Path) -> None:
    state = dict(head.state_dict())
    state["gate.weight"] = torch.full((1, 32), torch.nan)
    with safe_open(path, "pt") as file:
        save_file(state, tmp_path / "c", file.metadata())
    with pytest.raises(ClassifierError, match=r"c: gate\.weight holds NaN"):
        load_classifier(tmp_path / "c")


def test_a_damaged_file_is_refused_or_read(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    dice = random.Random(0)
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for _ in range(dice.randrange(1, 4)):
            if damaged:
                damaged[dice.randrange(min(len(damaged), 2500))] = dice.randrange(256)
        (tmp_path / "c").write_bytes(damaged)
        try:
            load_classifier(tmp_path / "c")
        except ClassifierError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(str(tmp_path / "c") in refusal for refusal in refusals)
