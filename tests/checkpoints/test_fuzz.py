"""Damaged files of every kind: each is read right, or refused by an error of ours."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import legacy_files as old
from tests.checkpoints.fuzzing import DIMS, damage, read_features, read_part
from tests.checkpoints.test_parts import GOLDEN, embed, write
from tools.make_classifier_weights import make_classifier
from virnucpro.checkpoints.parts import check_part
from virnucpro.errors import CheckpointError, VirnucproError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store, open_frame_store

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
DNA = old.make_frames(4, DIMS.dna, seed=1)
PROTEIN = old.make_frames(4, DIMS.protein, seed=2)
DOCUMENTS = {
    "dna": (old.dna_document(DNA), 2),
    "protein": (old.protein_document(PROTEIN), 2),
    "merged": (old.merged_document(DNA, PROTEIN), 2),
    "v1.0": (old.versioned(old.dna_document(DNA)), 2),
    "v2.0 batch": (old.batch_document(PROTEIN), 4),
}

in_one_directory = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def attempts(path: Path, num_attempts: int, read: Callable[[Path], Any]) -> Iterator[Any]:
    """Damage a file in many ways, and yield what can be read all the same."""
    content = path.read_bytes()
    num_refused = 0
    for seed in range(num_attempts):
        path.write_bytes(damage(content, seed))
        try:
            yield read(path)
        except VirnucproError:
            num_refused += 1
    path.write_bytes(content)
    assert num_refused > 0


# HDF5, in a process of its own: the library could end it


@pytest.mark.parametrize("kind", ["part", "shard", "chunked shard", "golden"])
def test_damaged_hdf5_is_read_or_refused(tmp_path, kind):
    path = tmp_path / "shard.h5"
    if kind == "part":
        path = write(tmp_path, [3, 1, 2], ids=["a", "b", "c"])
    elif kind == "golden":
        path.write_bytes(GOLDEN.read_bytes())
    else:
        old.write_shard(path, PROTEIN, chunks=kind == "chunked shard" or None)
    command = [sys.executable, "-m", "tests.checkpoints.fuzzing", path, "0", "250"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"seed {done.stdout.split()[-1:]}: {done.stderr}"


READ = """
import sys
from pathlib import Path
from tests.checkpoints.fuzzing import read_features
from virnucpro.errors import CheckpointError
try:
    read_features(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


def test_a_heap_without_end_is_refused(tmp_path):
    path = old.write_shard(tmp_path / "shard.h5", PROTEIN)
    content = bytearray(path.read_bytes())
    first_object = content.index(b"GCOL") + 16
    content[first_object : first_object + 16] = struct.pack("<HH4xQ", 0, 0, 0)
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ, path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "broken global heap" in done.stdout


# Pickles: the archive's checksums protect what is in it, so that nothing wrong is ever read


def assert_same_documents(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["ids"] == other["ids"]
        assert one["embeddings"].keys() == other["embeddings"].keys()
        for alphabet, embeddings in one["embeddings"].items():
            np.testing.assert_array_equal(embeddings, other["embeddings"][alphabet])


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_damaged_pickles_are_read_right_or_refused(tmp_path, kind):
    document, protocol = DOCUMENTS[kind]
    path = old.save(tmp_path / "features.pt", document, protocol=protocol)
    expected = read_features(path)
    for found in attempts(path, 400, read_features):
        assert_same_documents(found, expected)


def test_damaged_real_pickles_are_read_right_or_refused(shared, tmp_path):
    def read(path: Path) -> list[dict[str, Any]]:
        return [document for _, document in read_documents(path, EmbeddingDims())]

    for source in sorted((shared / "legacy").rglob("*.pt")):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        expected = read(path)
        for found in attempts(path, 15, read):
            assert_same_documents(found, expected)


simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.sampled_from([torch.zeros(0), torch.ones(4), torch.ones(4, 6), torch.tensor([[1]])])
values = st.recursive(
    simple | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(simple, inner, max_size=3)
        | st.fixed_dictionaries({"label": inner, "mean_representation": inner})
    ),
    max_leaves=8,
)
KEYS = ("nucleotide", "proteins", "ids", "data", "labels", "version", "status", "embeddings")
documents = st.dictionaries(st.sampled_from((*KEYS, "sequence_ids")), values, max_size=5) | values


@in_one_directory
@given(documents)
@example({"ids": ["a"], "data": torch.ones(1, 10).expand(1, 10)})
@example({"proteins": ["a", "b"], "data": torch.ones(4).expand(2, 4)})
@example({"proteins": ["a\0b"], "data": [torch.ones(4)]})
@example({"proteins": ["\ud800"], "data": [torch.ones(4)]})
def test_any_document_is_features_or_refused(tmp_path, document):
    path = old.save(tmp_path / "any.pt", document)
    try:
        found = read_features(path)
    except CheckpointError:
        return
    for one in found:
        for embeddings in one["embeddings"].values():
            assert embeddings.shape[0] == len(one["ids"])
        # Whatever passes can be written as a part.
        part = write(tmp_path, range(len(one["ids"])), ids=one["ids"])
        assert read_part(part)["ids"] == one["ids"]
        part.unlink()


# Marks and manifests


def test_damaged_marks_are_right_or_refused(tmp_path):
    path = write(tmp_path, [3, 1, 2])
    mark = Path(f"{path}.done")
    expected = json.loads(mark.read_text())
    for _ in attempts(mark, 400, lambda _: check_part(path)):
        assert json.loads(mark.read_text())["sha256"] == expected["sha256"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@in_one_directory
@given(
    json_values
    | st.fixed_dictionaries(
        {"num_rows": json_values, "num_bytes": json_values, "sha256": json_values}
    )
)
def test_any_other_mark_is_refused(tmp_path, document):
    path = tmp_path / "part-00000-000000.h5"
    if not path.exists():
        write(tmp_path, [3, 1, 2])
    Path(f"{path}.done").write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        check_part(path)


def read_store(manifest: Path) -> list[str]:
    store = open_frame_store(manifest.parent)
    return [store.input_digest, *store.frame_ids(0, store.num_rows)]


def read_all_of_store(path: Path) -> list[object]:
    """Return all that the store in the directory of `path` says, after comparing its digests."""
    store = open_frame_store(path.parent, verify=True)
    records = [store.reads(index) for index in range(store.num_records)]
    sequences = [store.sequences(kind) for kind in ("dna", "protein")]
    texts = [source.get_many(np.arange(store.num_rows)) for source in sequences]
    tables = [source.representatives.tolist() for source in sequences]
    ids = store.frame_ids(0, store.num_rows)
    return [store.inputs, store.digest_for_parts, store.rule, records, texts, tables, ids]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("store")
    (directory / "reads.fa").write_text(">a\nATGGCCATTGTA\n>b\nGGGCCC\n")
    build_frame_store([str(directory / "reads.fa")], directory / "frames", StoreSettings(300))
    return directory / "frames"


def test_damaged_manifests_are_read_or_refused(store):
    expected = read_store(store / "manifest.json")
    for found in attempts(store / "manifest.json", 400, read_store):
        assert found == expected


def test_no_damage_of_a_frame_store_is_silent(store):
    expected = read_all_of_store(store / "manifest.json")
    for path in sorted(store.iterdir()):
        if path.stat().st_size:
            for found in attempts(path, 100, read_all_of_store):
                assert found == expected


@in_one_directory
@given(st.data())
def test_any_manifest_is_read_or_refused(store, data):
    path = store / "manifest.json"
    content = path.read_text()
    manifest = json.loads(content)
    key = data.draw(st.sampled_from(sorted(manifest)))
    manifest[key] = data.draw(json_values | st.just([{"sha256": "é"}]))
    path.write_text(json.dumps(manifest))
    try:
        read_store(path)
    except CheckpointError:
        pass
    finally:
        path.write_text(content)


# Classifiers


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_classifiers_are_read_or_refused(tmp_path, suffix):
    path = tmp_path / "classifier.safetensors"
    make_classifier(path, 6, 4, 500)
    if suffix == "pth":
        from safetensors.torch import load_file

        state = load_file(path)
        path = tmp_path / "classifier.pth"
        torch.save(state, path)
    features = embed(range(1)).repeat(3, axis=1)[:, :10]
    for classifier in attempts(path, 150, load_classifier):
        try:
            assert classifier.score(features).shape == (1, 2)
        except VirnucproError:
            assert classifier.input_dim != 10
