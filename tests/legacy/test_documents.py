from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
import torch

from tests import legacy_files as old
from tests.legacy.test_pickles import replace_in_pickle
from virnucpro.errors import CheckpointError
from virnucpro.legacy.documents import MIXED_IDS, NOT_MARKED, read_documents
from virnucpro.legacy.joining import inspect_file
from virnucpro.legacy.steps import EmbeddingDims

DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(5, DIMS.dna, seed=1)
PROTEIN = old.make_frames(5, DIMS.protein, seed=2)


def read(path, dims=DIMS):
    """Return the ids and embeddings in a file, all blocks together, and its generation."""
    blocks = list(read_documents(path, dims))
    ids = [name for _, document in blocks for name in document["ids"]]
    embeddings = {
        name: np.concatenate([document["embeddings"][name] for _, document in blocks])
        for name in blocks[0][1]["embeddings"]
    }
    return ids, embeddings, blocks[0][0], blocks[0][1]["precision"]


def assert_holds(path, version, precision, **frames):
    ids, embeddings, generation, found_precision = read(path)
    assert (generation.version, found_precision) == (version, precision)
    assert embeddings.keys() == frames.keys()
    for name, wanted in frames.items():
        assert ids == list(wanted)
        assert embeddings[name].dtype == np.float32
        assert np.array_equal(embeddings[name], np.array(list(wanted.values())))


# Every generation that is right


def test_dna_of_generations_a_and_c(tmp_path):
    path = old.save(tmp_path / "output_1_ESM.pt", old.dna_document(DNA))
    assert_holds(path, 0, "unknown", dna=DNA)


def test_proteins_of_generations_a_and_c(tmp_path):
    path = old.save(tmp_path / "output_1_DNABERT.pt", old.protein_document(PROTEIN))
    assert_holds(path, 0, "unknown", protein=PROTEIN)


def test_merged_features_with_and_without_training_labels(tmp_path):
    document = old.merged_document(DNA, PROTEIN)
    path = old.save(tmp_path / "x.pt", document)
    assert_holds(path, 0, "unknown", dna=DNA, protein=PROTEIN)
    path = old.save(tmp_path / "y.pt", document | {"labels": [1]})
    assert_holds(path, 0, "unknown", dna=DNA, protein=PROTEIN)


def test_generation_d(tmp_path):
    path = old.save(tmp_path / "d.pt", old.versioned(old.dna_document(DNA)), done=True)
    assert_holds(path, 1, "unknown", dna=DNA)
    path = old.save(tmp_path / "p.pt", old.versioned(old.protein_document(PROTEIN)), done=True)
    assert_holds(path, 1, "fp32", protein=PROTEIN)
    assert read(path)[2].notes == ()


def test_hdf5_of_another_program_is_named(tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        file["embeddings"] = np.zeros((2, 3))
    with pytest.raises(CheckpointError, match=r"another program: it lacks sequence_ids$"):
        read(tmp_path / "cells.h5")


def test_shards_of_v2_come_with_a_warning(tmp_path):
    for options in ({}, {"chunks": True}):
        path = old.write_shard(tmp_path / "shard_0.h5", PROTEIN, **options)
        assert_holds(path, 2, "fp16", protein=PROTEIN)
        assert read(path)[2].notes == (MIXED_IDS,)


def test_a_large_shard_is_read_in_blocks(tmp_path):
    frames = old.make_frames(9000, DIMS.protein)
    path = old.write_shard(tmp_path / "embeddings.h5", frames)
    assert len(list(read_documents(path, DIMS))) == 2
    assert_holds(path, 2, "fp16", protein=frames)


def test_an_empty_shard(tmp_path):
    with h5py.File(tmp_path / "shard_1.h5", "w") as file:
        file.create_dataset("embeddings", shape=(0, 0), dtype="float32")
        file.create_dataset("sequence_ids", data=[], dtype=h5py.string_dtype())
    assert read(tmp_path / "shard_1.h5")[0] == []


@pytest.mark.parametrize("protocol", [2, 4])
def test_batches_of_v2(tmp_path, protocol):
    path = tmp_path / "batch_00000.pt"
    old.save(path, old.batch_document(PROTEIN), done=True, protocol=protocol)
    assert_holds(path, 2, "fp16", protein=PROTEIN)


def test_batches_name_numpy_as_it_was_before_2(tmp_path):
    path = old.save(tmp_path / "batch.pt", old.batch_document(PROTEIN))
    replace_in_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert_holds(path, 2, "fp16", protein=PROTEIN)


def test_widths_tell_what_v2_does_not(tmp_path):
    path = old.write_shard(tmp_path / "shard_0.h5", DNA)
    assert_holds(path, 2, "fp16", dna=DNA)


def test_a_missing_done_mark_is_noted(tmp_path):
    path = old.save(tmp_path / "d.pt", old.versioned(old.dna_document(DNA)))
    assert read(path)[2].notes == (NOT_MARKED,)
    path = old.save(tmp_path / "b.pt", old.batch_document(PROTEIN))
    assert read(path)[2].notes == (NOT_MARKED,)


def test_views_of_one_tensor(tmp_path):
    batch = torch.tensor(np.array(list(PROTEIN.values())))
    document = {"proteins": list(PROTEIN), "data": list(batch)}
    assert_holds(old.save(tmp_path / "x.pt", document), 0, "unknown", protein=PROTEIN)


def test_half_precision_and_transposed_tensors_are_read(tmp_path):
    values = np.array(list(PROTEIN.values()), np.float16)
    document = {"proteins": list(PROTEIN), "data": torch.tensor(values.T.copy()).T}
    ids, embeddings, _, _ = read(old.save(tmp_path / "x.pt", document))
    assert ids == list(PROTEIN)
    assert np.array_equal(embeddings["protein"], values.astype(np.float32))


def test_the_real_files(shared):
    directory = shared / "legacy"
    for path in sorted(directory.rglob("*.pt")):
        wanted = torch.load(path, weights_only=True)
        ids, embeddings, generation, _ = read(path, EmbeddingDims())
        assert generation.version == 0
        if "nucleotide" in wanted:
            assert ids == wanted["nucleotide"]
            vectors = [item["mean_representation"] for item in wanted["data"]]
            assert np.array_equal(embeddings["dna"], np.array(vectors, np.float32))
        elif "proteins" in wanted:
            assert ids == wanted["proteins"]
            assert np.array_equal(embeddings["protein"], torch.stack(wanted["data"]).numpy())
        else:
            assert ids == wanted["ids"]
            found = np.concatenate([embeddings["dna"], embeddings["protein"]], axis=1)
            assert np.array_equal(found, wanted["data"].numpy())


# What is refused


def nan_at(frames, name):
    return {key: vector * np.nan if key == name else vector for key, vector in frames.items()}


REFUSED = {
    "DNA pooled over padding": (
        {"nucleotide": list(DNA), "data": torch.tensor(np.array(list(DNA.values())))},
        "generation B.*averaged over padding",
    ),
    "merged of that": (
        old.merged_document(DNA, PROTEIN) | {"labels": None},
        "generation B.*averaged over padding",
    ),
    "ids without rows": (
        old.merged_document(DNA, dict(list(PROTEIN.items())[:3])),
        "5 ids and 3 rows.*shifted later ids",
    ),
    "an empty merged file": (
        {"ids": list(DNA), "data": torch.empty((0, sum(DIMS)))},
        "5 ids and 0 rows",
    ),
    "rows without ids": (
        {"proteins": list(PROTEIN)[:2], "data": [torch.zeros(DIMS.protein)] * 5},
        "2 ids and 5 rows",
    ),
    "another order": (
        old.dna_document(DNA) | {"nucleotide": list(DNA)[::-1]},
        "not those in `data`",
    ),
    "an unfinished file": (
        old.versioned(old.dna_document(DNA), "in_progress"),
        "was not finished: its status is 'in_progress'",
    ),
    "the future": (
        old.dna_document(DNA) | {"version": "3.1"},
        r"version is '3\.1', and this program reads versions up to '1\.0'",
    ),
    "other dimensions": (
        old.dna_document(old.make_frames(2, 7)),
        r"dna embeddings are \(2, 7\), wanted \(rows, 6\).*--dna-dim",
    ),
    "ragged rows": (
        {"proteins": ["a", "b"], "data": [torch.zeros(4), torch.zeros(3)]},
        r"different lengths: \[3, 4\]",
    ),
    "NaN": (
        old.protein_document(nan_at(PROTEIN, "r3_chunk_1F1")),
        r"1 of 5 embeddings hold NaN or infinity \(first: r3_chunk_1F1\)",
    ),
    "no names": ({"proteins": [1, 2], "data": [torch.zeros(4)] * 2}, "ids are not a list of names"),
    "whole numbers": (
        {"ids": ["a"], "data": torch.zeros((1, 10), dtype=torch.int64)},
        "int64, wanted floating-point",
    ),
    "a state dict": (
        {"hidden_layer.weight": torch.zeros(2)},
        "holds 'hidden_layer.weight': no features",
    ),
    "a list": ([1, 2], "holds list, wanted a dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_the_reason(tmp_path, name):
    document, message = REFUSED[name]
    path = old.save(tmp_path / "x.pt", document)
    report = inspect_file(path, DIMS)
    assert not report.values
    with pytest.raises(CheckpointError, match=message):
        list(read_documents(path, DIMS))


def test_what_is_neither_is_refused(tmp_path):
    for content in (b"", b"no features", pickle.dumps({"ids": []})):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"neither a file of torch\.save nor HDF5"):
            list(read_documents(tmp_path / "x.pt", DIMS))


def link_soft(file, tmp_path):
    file["embeddings"] = h5py.SoftLink("/other")


def link_external(file, tmp_path):
    old.write_shard(tmp_path / "other.h5", PROTEIN)
    file["embeddings"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/embeddings")


def make_virtual(file, tmp_path):
    old.write_shard(tmp_path / "other.h5", PROTEIN)
    layout = h5py.VirtualLayout((5, DIMS.protein), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "embeddings", (5, DIMS.protein))
    file.create_virtual_dataset("embeddings", layout)


def compress(file, tmp_path):
    file.create_dataset("embeddings", data=np.zeros((5, DIMS.protein)), compression="gzip")


def claim_much(file, tmp_path):
    file.create_dataset("embeddings", (5, 1 << 40), "f4", chunks=(1, 1024))


@pytest.mark.parametrize("lie", [link_soft, link_external, make_virtual, compress, claim_much])
def test_shards_that_lie_are_refused(tmp_path, lie):
    with h5py.File(tmp_path / "shard_0.h5", "w") as file:
        lie(file, tmp_path)
        file.create_dataset("sequence_ids", data=list(PROTEIN), dtype=h5py.string_dtype())
    with pytest.raises(CheckpointError, match=r"refused|beyond the end of the file"):
        list(read_documents(tmp_path / "shard_0.h5", DIMS))


# Safety


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    document = {"proteins": ["a"], "data": torch.zeros(1).expand(1, 1 << 40)}
    path = old.save(tmp_path / "x.pt", document)
    with pytest.raises(CheckpointError, match="repeats its numbers"):
        list(read_documents(path, DIMS))
    path = old.save(tmp_path / "y.pt", {"proteins": ["a"], "data": [torch.zeros(4)] * 100_000})
    with pytest.raises(CheckpointError, match="400,000 numbers, more than the file has room for"):
        list(read_documents(path, DIMS))


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = old.save(tmp_path / "x.pt", old.dna_document(dict(list(DNA.items())[:2])))
    content = path.read_bytes()
    wanted = read(path)[:2]
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            found = read(path)[:2]
        except CheckpointError:
            continue
        assert found[0] == wanted[0]
        assert np.array_equal(found[1]["dna"], wanted[1]["dna"])


def test_every_truncation_is_noticed(tmp_path):
    path = old.save(tmp_path / "x.pt", old.protein_document(PROTEIN))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            list(read_documents(path, DIMS))
