from __future__ import annotations

import pytest
import torch

from tests import legacy_files as old
from virnucpro.legacy.joining import choose_rows, excuse_joined, inspect_file
from virnucpro.legacy.steps import EmbeddingDims

DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(5, DIMS.dna, seed=1)
PROTEIN = old.make_frames(5, DIMS.protein, seed=2)


@pytest.fixture
def inspect(tmp_path):
    """Save documents, and look at them as one source."""

    def save_all(*documents):
        paths = [old.save(tmp_path / f"{n}.pt", each) for n, each in enumerate(documents)]
        reports = [inspect_file(path, DIMS) for path in paths]
        return reports, choose_rows(reports)

    return save_all


def taken_of(choice, alphabet):
    return [taken[alphabet].tolist() if alphabet in taken else None for taken in choice.taken]


def test_an_id_that_comes_again_with_the_same_values_is_taken_once(inspect):
    _, choice = inspect(old.merged_document(DNA, PROTEIN), old.dna_document(DNA))
    # The features themselves are preferred to the merged ones.
    assert taken_of(choice, "dna") == [[False] * 5, [True] * 5]
    assert taken_of(choice, "protein") == [[True] * 5, None]
    assert choice.num_repeated == {"dna": 5, "protein": 0}


def test_an_id_with_different_values_is_not_taken(inspect):
    others = old.make_frames(2, DIMS.protein, seed=9)
    reports, choice = inspect(old.protein_document(PROTEIN), old.protein_document(others))
    assert taken_of(choice, "protein") == [[False, False, True, True, True], [False, False]]
    assert choice.num_ambiguous == {"protein": 2}
    assert len(choice.ids(reports, "protein")) == 3


def test_an_id_twice_in_one_file(inspect):
    vectors = list(PROTEIN.values())
    same = {"proteins": ["a", "a", "b"], "data": [torch.tensor(vectors[0])] * 3}
    assert taken_of(inspect(same)[1], "protein") == [[True, False, True]]
    other = {"proteins": ["a", "a", "b"], "data": [torch.tensor(v) for v in vectors[:3]]}
    assert taken_of(inspect(other)[1], "protein") == [[False, False, True]]


def test_merged_files_with_too_many_ids_are_joined_again_from_their_sources(inspect):
    few = dict(list(PROTEIN.items())[:3])
    merged = old.merged_document(DNA, few)
    reports, choice = inspect(merged, old.dna_document(DNA), old.protein_document(few))
    excuse_joined(reports, choice)
    assert reports[0].error is None
    assert "joined again" in reports[0].generation.notes[0]
    reports, choice = inspect(merged, old.dna_document(DNA))
    excuse_joined(reports, choice)
    assert "shifted later ids" in reports[0].error
