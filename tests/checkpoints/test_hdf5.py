"""HDF5 files that lie: what leads out of them, or claims more than they hold, is refused."""

from __future__ import annotations

import struct
import traceback
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import legacy_files as old
from tests.checkpoints.fuzzing import read_features, read_part
from tests.checkpoints.test_parts import write
from virnucpro.checkpoints.hdf5 import open_file, read_attribute
from virnucpro.errors import CheckpointError

FRAMES = old.make_frames(6, 4)


def external_link(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("elsewhere.h5", name)


def soft_link(file: h5py.File, name: str) -> None:
    file.move(name, "moved")
    file[name] = h5py.SoftLink("/moved")


def external_storage(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_dataset(name, (6, 4), "<f4", external=[("/etc/passwd", 0, 96)])


def virtual(file: h5py.File, name: str) -> None:
    del file[name]
    layout = h5py.VirtualLayout((6, 4), "<f4")
    layout[...] = h5py.VirtualSource("elsewhere.h5", name, (6, 4))
    file.create_virtual_dataset(name, layout)


def unknown_filter(file: h5py.File, name: str) -> None:
    del file[name]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((6, 4))
    properties.set_filter(32000, h5py.h5z.FLAG_OPTIONAL)
    file.create_dataset(name, (6, 4), "<f4", dcpl=properties)


def unwritten_chunks(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_dataset(name, (6, 4), "<f4", chunks=(1, 4))[0] = 1


def endless(file: h5py.File, name: str) -> None:
    del file[name]
    # Its size in bytes is 0 in 64 bits.
    file.create_dataset(name, (2**31, 2**31), "<f4", chunks=(1, 4))


def references(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_dataset(name, (6,), h5py.ref_dtype)


def fixed_texts(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = np.array([b"a"] * 6)


def too_few(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_dataset(name, data=["a"] * 5, dtype=h5py.string_dtype())


LIES = [
    (external_link, "embeddings", "a link"),
    (soft_link, "embeddings", "a link"),
    (external_storage, "embeddings", "other files"),
    (virtual, "embeddings", "other files"),
    (unknown_filter, "embeddings", "filtered"),
    (unwritten_chunks, "embeddings", "not written"),
    (endless, "embeddings", "not written"),
    (external_link, "sequence_ids", "a link"),
    (soft_link, "sequence_ids", "a link"),
    (references, "sequence_ids", "strings of variable length"),
    (fixed_texts, "sequence_ids", "strings of variable length"),
    (too_few, "sequence_ids", "5 ids and 6 rows"),
]


@pytest.mark.parametrize(("lie", "name", "reason"), LIES)
def test_a_shard_that_lies_is_refused(tmp_path, lie: Callable, name: str, reason: str):
    path = old.write_shard(tmp_path / "shard.h5", FRAMES)
    with h5py.File(path, "r+") as file:
        lie(file, name)
    with pytest.raises(CheckpointError, match=reason):
        read_features(path)


@pytest.mark.parametrize("chunks", [None, True])
def test_many_ids_in_one_place_are_refused(tmp_path, chunks):
    path = tmp_path / "shard.h5"
    with h5py.File(path, "w") as file:
        ids = ["x" * 2000, *map(str, range(99))]
        file.create_dataset("sequence_ids", data=ids, dtype=h5py.string_dtype(), chunks=chunks)
        file["embeddings"] = np.ones((100, 4), np.float32)
        dataset = file["sequence_ids"].id
        entry = dataset.get_chunk_info(0).byte_offset if chunks else dataset.get_offset()
    content = path.read_bytes()
    long_id = content[entry : entry + 16]
    path.write_bytes(content[:entry] + 100 * long_id + content[entry + 1600 :])
    with pytest.raises(CheckpointError, match="claims 200,000 bytes of text"):
        read_features(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x" * 5000, "a text of 5,000 letters"),
        (np.zeros(5), "should be a text or an integer"),
        (np.array(["a"] * 5, h5py.string_dtype()), "should be a text or an integer"),
        (1.5, "should be a text or an integer"),
        (np.bytes_(b"x" * 5000), "has 5,000 bytes"),
        (np.bytes_(b"\xff"), "can't decode"),
        (h5py.Empty("f"), "should be a text or an integer"),
    ],
)
def test_attributes_that_are_none_of_ours_are_refused(tmp_path: Path, value, reason):
    path = write(tmp_path, [1], ids=["a"])
    with h5py.File(path, "r+") as file:
        file.attrs["pooling"] = value
    with pytest.raises(CheckpointError, match=f"{path.name}: .*{reason}"):
        read_part(path)


@pytest.mark.parametrize("size", [2**64 - 16, 2**64 - 8, 2**64 - 24, 2**63, 2**32, 5000])
@pytest.mark.parametrize("number", [0, 1])
def test_a_heap_whose_objects_claim_more_than_it_holds_is_refused(tmp_path, number, size):
    path = write(tmp_path, [1])
    content = bytearray(path.read_bytes())
    first_object = content.index(b"GCOL") + 16
    struct.pack_into("<H6xQ", content, first_object, number, size)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has a broken global heap"):
        read_part(path)


def test_attributes(tmp_path):
    path = write(tmp_path, [1])
    with open_file(path) as file:
        assert read_attribute(file, "backend") == "toy"
        assert read_attribute(file, "embedding_dim") == 4
        assert read_attribute(file, "none") is None


def test_an_error_keeps_nothing_of_the_library(tmp_path: Path) -> None:
    """What the library frees after Python has ended crashes the process (seen with Python 3.13)."""
    path = tmp_path / "part.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(CheckpointError, match="cannot be read") as caught, open_file(path):
        pass
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
    assert frames
    assert not [one for one in frames if "/h5py/" in one.f_code.co_filename]
