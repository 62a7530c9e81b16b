from __future__ import annotations

import numpy as np
import pytest
import torch

from virnucpro.errors import UsageError
from virnucpro.scoring.chunk_head import ChunkHeadSizes
from virnucpro.scoring.classifier import ChunkClassifier, ClassifierMetadata, FrameClassifier
from virnucpro.training.head import ChunkExamples, Examples, FittedHead, fit_head

CPU = torch.device("cpu")


def make_examples(num_frames: int, seed: int, noise: float = 1.0) -> Examples:
    random = np.random.default_rng(seed)
    is_viral = random.random(num_frames) < 0.5
    # Far from zero and of very different scales, as embeddings of two models are.
    signal = is_viral[:, None] + noise * random.standard_normal((num_frames, 6))
    features = signal * np.array([1e-3, 1e-2, 0.1, 1, 10, 100]) + np.array([5, 0, -3, 2, 100, 0])
    return Examples(features.astype(np.float32), is_viral, np.ones(num_frames))


def fit(epochs: int = 30, seed: int = 0, **changes) -> FittedHead:
    train, valid = make_examples(600, 0), make_examples(300, 1)
    return fit_head(train._replace(**changes), valid, epochs=epochs, seed=seed, device=CPU)


def test_the_saved_head_takes_features_as_they_are() -> None:
    fitted = fit()
    test = make_examples(400, 2)
    scores = FrameClassifier(fitted.state, None, identity="").score(test.features)
    assert ((scores[:, 1] > 0.5) == test.is_viral).mean() > 0.85
    # The best epoch's weights give the best epoch's loss.
    valid = make_examples(300, 1)
    scores = FrameClassifier(fitted.state, None, identity="").score(valid.features)
    chance = np.where(valid.is_viral, scores[:, 1], scores[:, 0])
    loss = min(losses["valid"] for losses in fitted.losses)
    assert -np.log(chance).mean() == pytest.approx(loss, rel=1e-3)


def test_the_seed_decides() -> None:
    first, again, other = fit(), fit(), fit(seed=1)
    assert first.losses == again.losses != other.losses
    for name, tensor in first.state.items():
        assert torch.equal(tensor, again.state[name])


def test_callers_chances_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fit(epochs=1)
    assert torch.equal(torch.rand(3), wanted)


def test_it_stops_when_it_no_longer_helps() -> None:
    # Labels by chance: whatever is learnt is wrong on other frames.
    labels = np.random.default_rng(9).random(600) < 0.5
    fitted = fit(epochs=100, is_viral=labels)
    assert len(fitted.losses) == fitted.best_epoch + 5
    assert len(fitted.losses) < 100


def test_weights_decide_what_counts() -> None:
    labels = make_examples(600, 0).is_viral
    fitted = fit(weight=np.where(labels, 1e-3, 1.0))
    scores = FrameClassifier(fitted.state, None, identity="").score(make_examples(400, 2).features)
    assert (scores[:, 1] > 0.5).mean() < 0.2


def test_one_frame_is_not_enough() -> None:
    one = Examples(np.zeros((1, 6), np.float32), np.array([True]), np.ones(1))
    with pytest.raises(UsageError, match="1 frame to train on, wanted at least two; add"):
        fit_head(one, one, epochs=1, seed=0, device=CPU)


# The head over chunks


def make_chunks(num_chunks: int, seed: int) -> ChunkExamples:
    """Chunks whose proteins, and whose DNA, tell a little, in numbers of very different scales.

    One number is large and varies little, as in embeddings of language models.
    """
    random = np.random.default_rng(seed)
    is_viral = random.random(num_chunks) < 0.5
    scale = np.array([1e-3, 1e-2, 0.1, 1, 1, 1, 1, 1])
    offset = np.array([0, 0, 0, 0, 0, 0, 0, 100])
    dna = (is_viral[:, None] + random.standard_normal((num_chunks, 8))) * scale + offset
    signal = is_viral[:, None, None] + random.standard_normal((num_chunks, 2, 8))
    protein = signal * scale + offset
    features = random.standard_normal((num_chunks, 2, 4))
    is_stretch = np.stack([np.ones(num_chunks, bool), random.random(num_chunks) < 0.6], axis=1)
    protein[~is_stretch] = features[~is_stretch] = 0
    arrays = [array.astype(np.float32) for array in (dna, protein, features)]
    return ChunkExamples(*arrays, is_stretch, is_viral, np.ones(num_chunks))


def fit_chunks(seed: int = 0, **changes) -> FittedHead:
    train, valid = make_chunks(1500, 0), make_chunks(500, 1)
    return fit_head(train._replace(**changes), valid, epochs=20, seed=seed, device=CPU)


def load(fitted: FittedHead) -> ChunkClassifier:
    metadata = ClassifierMetadata(
        "dnabert-s", "esm2", 8, 8, 500, frame_rule="stretches", chunk_head=ChunkHeadSizes(8, 8)
    )
    return ChunkClassifier(fitted.state, metadata, identity="")


def test_a_head_over_chunks_learns_from_all_numbers() -> None:
    fitted = fit_chunks()
    valid = make_chunks(500, 1)
    logits = load(fitted).score(*valid.inputs)
    assert ((logits > 0) == valid.is_viral).mean() > 0.9
    loss = np.logaddexp(0, np.where(valid.is_viral, -logits, logits)).mean()
    assert loss == pytest.approx(min(losses["valid"] for losses in fitted.losses), rel=1e-3)


def test_the_seed_decides_about_chunks_too() -> None:
    first, again, other = fit_chunks(), fit_chunks(), fit_chunks(seed=1)
    assert first.losses == again.losses != other.losses


def test_what_is_not_a_stretch_is_not_learnt_from() -> None:
    train = make_chunks(1500, 0)
    protein = train.protein.copy()
    protein[~train.is_stretch] = 1e3
    assert fit_chunks(protein=protein).losses == fit_chunks().losses


def test_one_chunk_is_not_enough() -> None:
    with pytest.raises(UsageError, match="1 chunk to train on, wanted at least two"):
        fit_head(make_chunks(1, 0), make_chunks(2, 1), epochs=1, seed=0, device=CPU)
