from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import pack_tokens
from virnucpro.config import OPEN_RULE, FrameRule
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store
from virnucpro.sequences.frames import find_rows, reverse_complement
from virnucpro.training.chunk_source import (
    ChunkSource,
    Collators,
    LabelledSequences,
    TrainingBatch,
    open_training_loader,
)
from virnucpro.training.corpus import make_corpus, name_classes

RULE = FrameRule("stretches", 2, 10)
LENGTHS = {"viral": [4000, 60, 900], "bacteria": [9000, 90, 20], "plant": [3000]}


class LetterCollator:
    """One token for each letter, between two others."""

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        return pack_tokens(rows, [np.frombuffer(f"<{s}>".encode(), np.uint8) for s in sequences])


LETTERS: Collators = (LetterCollator(), LetterCollator())


def read(batch: TokenBatch) -> list[str]:
    pieces = batch.token_ids_T.split(batch.lengths_B.tolist())
    return [bytes(piece.tolist()).decode()[1:-1] for piece in pieces]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    directory = tmp_path_factory.mktemp("sequences")
    random = np.random.default_rng(0)
    for name, lengths in LENGTHS.items():
        with (directory / f"{name}.fa").open("w") as file:
            for number, length in enumerate(lengths):
                letters = "".join(
                    random.choice(list("ACGTacgtNR"), length, p=[0.124] * 8 + [0.004] * 2)
                )
                file.write(f">{name}_{number}\n{letters}\n")
    paths = [str(directory / f"{name}.fa") for name in LENGTHS]
    return build_frame_store(paths, directory / "store", StoreSettings(500, rule=RULE))


def sequences(store: FrameStore) -> LabelledSequences:
    classes = name_classes([store.inputs[0]["path"]], [file["path"] for file in store.inputs[1:]])
    corpus = make_corpus(store, classes)
    groups = [f"record {name}" for name in corpus.record_ids]
    return LabelledSequences.of(store, corpus, groups, np.ones(store.num_records, np.bool_))


def make_source(store: FrameStore, **settings) -> ChunkSource:
    settings = {"max_mutation_rate": 0.7, "seed": 1, "collators": LETTERS, **settings}
    settings = {"rule": RULE, "lengths_bp": (500, 500, 200), **settings}
    return ChunkSource(sequences(store), **settings)


def count_tokens(batch: TrainingBatch) -> list[int]:
    """Return the tokens of each chunk, of the alphabet that has more."""
    proteins = iter(batch.protein.lengths_B.tolist())
    nums = batch.is_stretch_CN.sum(1).tolist()
    costs = [sum(next(proteins) for _ in range(num)) for num in nums]
    return list(map(max, batch.dna.lengths_B.tolist(), costs))


def assert_equal(found: list[TrainingBatch], wanted: list[TrainingBatch]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert read(one.dna) == read(other.dna)
        assert read(one.protein) == read(other.protein)
        for name in ("features_FK", "is_stretch_CN", "is_viral_C"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_batch_holds_chunks_and_their_stretches(store: FrameStore) -> None:
    batches = make_source(store).draw(5, 0, 200, 3000)
    assert len(batches) > 10
    lengths = []
    costs = [count_tokens(batch) for batch in batches]
    for cost, following in pairwise(costs):
        assert sum(cost) <= 3000 < sum(cost) + following[0], "each batch is as full as it may be"
    for batch in batches:
        chunks = read(batch.dna)
        length = np.array([len(chunk) for chunk in chunks])
        lengths += length.tolist()
        rows = find_rows("".join(chunks).encode(), np.cumsum(length) - length, length, RULE)
        assert "".join(read(batch.protein)) == rows.proteins.decode()
        assert torch.equal(batch.is_stretch_CN.nonzero()[:, 0], torch.from_numpy(rows.chunk))
        assert batch.is_stretch_CN[:, 0].all()
        share = 3 * rows.protein_length / length[rows.chunk]
        np.testing.assert_allclose(batch.features_FK[:, 3], share, rtol=1e-6)
        most = max(len(batch.dna.token_ids_T), len(batch.protein.token_ids_T))
        assert most <= 3000
        assert batch.teacher_dna is None
    assert lengths == sorted(lengths, reverse=True)
    assert set(lengths) == {500, 200, 90, 60}


def plain_records(store: FrameStore, sequences: LabelledSequences, is_viral: bool) -> str:
    """Return both strands of the records, with N for what is not a base."""
    chosen = sequences.record_S[sequences.is_viral_S == is_viral]
    letters = store.read_spans(chosen, np.zeros_like(chosen), store.record_lengths[chosen])
    text = "|".join(letters).replace("R", "N").encode()
    return (text + b"|" + reverse_complement(text)).decode()


def test_half_of_the_chunks_are_exact_and_the_others_have_errors(store: FrameStore) -> None:
    source = make_source(store, max_mutation_rate=0, lengths_bp=(200,))
    batches = source.draw(0, 0, 600, 10**6)
    chunks = read(batches[0].dna)
    texts = [plain_records(store, source.sequences, is_viral) for is_viral in (False, True)]
    is_viral = batches[0].is_viral_C.int().tolist()
    is_exact = [chunk in texts[index] for chunk, index in zip(chunks, is_viral, strict=True)]
    # Chunks with a low rate may have no error either: a tenth of all.
    assert 0.5 < np.mean(is_exact) < 0.7
    is_elsewhere = [
        chunk in texts[1 - index] for chunk, index in zip(chunks, is_viral, strict=True)
    ]
    assert not any(is_elsewhere)
    # The first half of each text is the forward strand.
    is_forward = [chunk in text[: len(text) // 2] for text in texts for chunk in chunks]
    assert 0.2 < sum(is_forward) / len(chunks) < 0.4
    mutated = read(make_source(store, lengths_bp=(200,)).draw(0, 0, 600, 10**6)[0].dna)
    assert sum(chunk in text for chunk in mutated for text in texts) < 0.1 * len(mutated)


def test_classes_and_groups_are_balanced(store: FrameStore) -> None:
    chosen = sequences(store)
    # Too short for a stretch of 10 codons.
    assert 20 not in chosen.length_S
    roots = np.sqrt(chosen.length_S)
    members = [slice(0, 3), slice(3, 5), slice(5, 6)]
    for places, share in zip(members, (0.5, 0.25, 0.25), strict=True):
        wanted = share * roots[places] / roots[places].sum()
        np.testing.assert_allclose(chosen.weight_S[places], wanted)
    places = make_source(store).choose(0, 0, 4000, 0).places
    drawn = np.bincount(places.record_C, minlength=7) / 4000
    np.testing.assert_allclose(drawn[chosen.record_S], chosen.weight_S, atol=0.03)
    is_long = places.record_C == 0
    assert places.start_C[is_long].min() < 20
    assert (places.start_C + places.length_C)[is_long].max() > 3980
    assert (places.start_C + places.length_C <= places.record_length_C).all()


@pytest.mark.parametrize("rule", ["open", "open:code=11", "stretches:3:10:code=4"])
def test_any_frame_rule(store: FrameStore, rule: str) -> None:
    source = make_source(store, rule=FrameRule.parse(rule))
    batches = source.draw(0, 0, 100, 2000)
    stretches = [text for batch in batches for text in read(batch.protein)]
    assert len(stretches) == sum(int(batch.is_stretch_CN.sum()) for batch in batches) > 20
    assert not any("*" in text for text in stretches)
    assert all(batch.is_stretch_CN.any(1).all() for batch in batches)


def test_chunks_with_open_frames_have_the_dna_of_the_first(store: FrameStore) -> None:
    source = make_source(store, rule=OPEN_RULE, lengths_bp=(150,))
    batches = source.draw(0, 0, 300, 2000)
    is_viral_C = torch.cat([batch.is_viral_C for batch in batches])
    # Of random chunks of this length, about a third has an open frame.
    assert len(is_viral_C) > 280
    assert abs(is_viral_C.mean() - 0.5) < 0.1
    for batch in batches:
        assert batch.is_stretch_CN.shape[1] == 6
        num_frames_C = batch.is_stretch_CN.sum(1).tolist()
        ends = np.cumsum(num_frames_C)
        proteins = read(batch.protein)
        for dna, end, num_frames in zip(read(batch.dna), ends, num_frames_C, strict=True):
            rows = find_rows(dna.encode(), np.array([0]), np.array([len(dna)]), OPEN_RULE)
            first = rows.proteins[: rows.protein_length[0]].decode()
            if "N" not in dna:
                assert (rows.code[0], first) == (0, proteins[end - num_frames])
                # One base more than the codons have, as the original takes it.
                assert len(dna) - 3 * len(first) in (0, 1)


def test_steps_can_be_repeated_and_differ(store: FrameStore) -> None:
    source = make_source(store)
    wanted = source.draw(3, 1, 50, 5000)
    assert_equal(make_source(store).draw(3, 1, 50, 5000), wanted)
    others = [source.draw(3, 0, 50, 5000), source.draw(4, 1, 50, 5000)]
    others.append(make_source(store, seed=2).draw(3, 1, 50, 5000))
    texts = {"".join(read(batches[0].dna)) for batches in [wanted, *others]}
    assert len(texts) == 4


@pytest.mark.slow
def test_workers_make_the_same_batches(store: FrameStore) -> None:
    source = make_source(store)
    wanted = [source.draw(step, 0, 50, 5000) for step in range(7, 10)]
    before = torch.get_rng_state()
    for num_workers in (0, 2):
        loader = open_training_loader(source, 7, 0, 50, 5000, num_workers)
        for step in wanted:
            assert_equal(next(loader), step)
        loader.close()
    # Otherwise a resumed training would have another dropout.
    assert torch.equal(torch.get_rng_state(), before)


def test_accelerate_moves_a_batch_whole(store: FrameStore) -> None:
    batch = make_source(store, teacher_collators=LETTERS).draw(0, 0, 20, 10**6)[0]
    moved = send_to_device(batch, torch.device("meta"))
    assert isinstance(moved, TrainingBatch)
    for tokens in (moved.dna, moved.protein, moved.teacher_dna, moved.teacher_protein):
        assert tokens.token_ids_T.device.type == tokens.lengths_B.device.type == "meta"
    assert {moved[index].device.type for index in (2, 3, 4)} == {"meta"}
