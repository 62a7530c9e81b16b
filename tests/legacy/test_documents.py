from __future__ import annotations

import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import torch

from tests import legacy_files as old
from virnucpro.checkpoints.migrations import FORMAT_MIGRATIONS
from virnucpro.errors import CheckpointError
from virnucpro.legacy.documents import MIXED_IDS, NOT_MARKED, read_documents
from virnucpro.legacy.joining import choose_rows, excuse_joined, inspect_file
from virnucpro.legacy.old_runs import feature_files, read_expected_length
from virnucpro.legacy.pickles import read_torch_file
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


# The chain


def test_each_step_leads_to_the_next_version():
    document = old.protein_document(PROTEIN) | {"dims": DIMS}
    document["data"] = [tensor.numpy() for tensor in document["data"]]
    before = dict(document)
    migrated = FORMAT_MIGRATIONS.apply(document, 0)
    assert document == before
    assert migrated["ids"] == list(PROTEIN)
    shard = {"sequence_ids": list(PROTEIN), "embeddings": np.array(list(PROTEIN.values()))}
    assert np.array_equal(
        FORMAT_MIGRATIONS.apply(shard | {"dims": DIMS}, 2)["embeddings"]["protein"],
        migrated["embeddings"]["protein"],
    )


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
        "5 ids and 3 rows.*later ids shifted",
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
        r"version is '3\.1', and this program knows '1\.0'",
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
        "1 of 5 embeddings hold NaN or infinity, the first of r3_chunk_1F1",
    ),
    "no names": (
        {"proteins": [1, 2], "data": [torch.zeros(4)] * 2},
        "ids are not a list of names",
    ),
    "whole numbers": (
        {"ids": ["a"], "data": torch.zeros((1, 10), dtype=torch.int64)},
        "int64, wanted floating-point",
    ),
    "a state dict": ({"hidden_layer.weight": torch.zeros(2)}, "hidden_layer.weight: no features"),
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


class Bomb:
    """Leaves a file behind when it is unpickled as pickles are meant to be."""

    def __init__(self, target, function=os.system):
        self.target, self.function = target, function

    def __reduce__(self):
        return self.function, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["alone", "in a list", "as an id", "in the data", "metadata"])
@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_nothing_is_run(tmp_path, place, function):
    bomb = Bomb(tmp_path / "ran", function)
    document = {
        "alone": bomb,
        "in a list": [1, [bomb]],
        "as an id": old.protein_document(PROTEIN) | {"proteins": [bomb]},
        "in the data": old.dna_document(DNA) | {"data": [bomb]},
        "metadata": old.batch_document(PROTEIN) | {"metadata": bomb},
    }[place]
    path = old.save(tmp_path / "x.pt", document)
    with pytest.raises(CheckpointError, match="refused, because it names"):
        read_torch_file(path)
    assert not (tmp_path / "ran").exists()


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive anew with other contents; sums and sizes are right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)


def replace_in_pickle(path, before, after):
    def change(entries):
        (name,) = [name for name in entries if name.endswith("data.pkl")]
        assert before in entries[name]
        lines = entries[name].replace(before, after)
        return entries | {name: lines}

    rewrite(path, change)


def test_a_compressed_archive_is_refused(tmp_path):
    path = old.save(tmp_path / "x.pt", old.protein_document(PROTEIN))
    rewrite(path, lambda entries: entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(path)


def test_an_opcode_that_claims_memory_is_refused(tmp_path):
    path = old.save(tmp_path / "x.pt", [])
    rewrite(path, lambda entries: {"x/data.pkl": b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file(path)


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


# Joining


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
    assert "later ids shifted" in reports[0].error


# Where files lie


def test_files_of_features_in_their_natural_order_and_none_of_ours(tmp_path):
    for number in (10, 9, 1):
        old.save(tmp_path / f"s_nucleotide/output_{number}_DNABERT_S.pt", {}, done=True)
    old.write_fasta(tmp_path / "s_nucleotide/output_1.fa", {"a": "ACG"})
    old.write_shard(tmp_path / "esm_v2/shard_20.h5", PROTEIN)
    (tmp_path / "checkpoints/dna").mkdir(parents=True)
    (tmp_path / "checkpoints/dna/part-00000-000000.h5").touch()
    names = [path.name for path in feature_files(tmp_path)]
    assert names == ["shard_20.h5"] + [f"output_{number}_DNABERT_S.pt" for number in (1, 9, 10)]


def test_the_chunk_length_of_an_old_run(tmp_path):
    assert read_expected_length(tmp_path) is None
    old.write_state(tmp_path, ["completed"], 300)
    assert read_expected_length(tmp_path) == 300
    (tmp_path / ".checkpoints/pipeline_state.json").write_text("[]")
    assert read_expected_length(tmp_path) is None
