from __future__ import annotations

import hashlib
import json
import logging
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.finished_work import collect_parts, refuse_other_runs
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import (
    FormatVersionError,
    check_part,
    finished_parts,
    finished_rows,
    next_part_number,
    part_name,
    read_identity,
    read_part,
    write_part,
)
from virnucpro.errors import CheckpointError, IdentityMismatchError, OutputError
from virnucpro.sequences.frame_store import FrameStore

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "part_v3.h5"

IDENTITY = Identity(
    input_digest="sha256:11",
    backend="toy",
    backend_version="1.2.3",
    weights_identity="sha256:22",
    precision="fp32",
    chunk_length_bp=500,
    pooling="mean over all tokens",
    embedding_dim=4,
)


def embed(rows) -> np.ndarray:
    """Embeddings that tell which row they belong to."""
    return np.asarray(rows, np.float32)[:, None] + np.float32([0, 0.25, 0.5, 0.75])


def write(directory: Path, rows, number: int = 0, identity: Identity = IDENTITY, **options) -> Path:
    rows = np.asarray(rows, np.int64)
    return write_part(directory, part_name(0, number), rows, embed(rows), identity, **options)


def identity_over(store: FrameStore) -> Identity:
    """Return the identity of parts whose rows are those of a frame store."""
    return replace(
        IDENTITY,
        input_digest=store.digest_for_parts,
        chunk_length_bp=store.chunk_length_bp,
        frame_rule=str(store.rule),
    )


def mark_done(path: Path, num_rows: int) -> None:
    content = path.read_bytes()
    done = {
        "num_rows": num_rows,
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    Path(f"{path}.done").write_text(json.dumps(done))


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Writing and reading


def test_a_part_holds_what_the_format_says(tmp_path):
    path = write(tmp_path / "new" / "dir", [5, 3], ids=["a", "β 2"])
    assert path.name == "part-00000-000000.h5"
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "format": "virnucpro-embeddings",
            "format_version": 3,
            "input_digest": "sha256:11",
            "backend": "toy",
            "backend_version": "1.2.3",
            "weights_identity": "sha256:22",
            "precision": "fp32",
            "chunk_length_bp": 500,
            "pooling": "mean over all tokens",
            "embedding_dim": 4,
        }
        assert file["rows"].dtype == np.int64
        assert file["rows"][:].tolist() == [5, 3]
        assert file["embeddings"].dtype == np.float32
        np.testing.assert_array_equal(file["embeddings"][:], embed([5, 3]))
        assert file["ids"].asstr()[:].tolist() == ["a", "β 2"]
    assert json.loads(Path(f"{path}.done").read_text()) == {
        "num_rows": 2,
        "num_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    check_part(path)
    assert read_identity(path) == IDENTITY
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.done"]


def test_ids_of_another_number_than_rows_are_refused(tmp_path):
    path = write(tmp_path, [5, 3], ids=["a", "b"])
    with h5py.File(path, "r+") as file:
        del file["ids"]
        file["ids"] = ["a"]
    with pytest.raises(CheckpointError, match="1 ids and 2 rows"):
        read_part(path).read_ids(0, 1)


def test_a_part_may_be_empty(tmp_path):
    path = write(tmp_path, [], ids=[])
    check_part(path)
    assert EmbeddingReader([path]).gather(np.array([], np.int64)).shape == (0, 4)


def test_the_golden_part_is_read_for_ever():
    check_part(GOLDEN)
    assert read_identity(GOLDEN) == IDENTITY
    with h5py.File(GOLDEN) as file:
        assert "frame_rule" not in file.attrs
    assert read_identity(GOLDEN).frame_rule == "open"
    reader = EmbeddingReader([GOLDEN])
    np.testing.assert_array_equal(reader.gather(np.array([0, 7, 2])), embed([0, 7, 2]))


def test_a_part_of_another_frame_rule_names_it_and_stops_the_run(tmp_path):
    identity = replace(IDENTITY, frame_rule="stretches:2:20:code=4")
    path = write_part(tmp_path, part_name(0, 0), np.arange(2), embed([0, 1]), identity)
    with h5py.File(path) as file:
        assert file.attrs["frame_rule"] == "stretches:2:20:code=4"
    check_part(path)
    assert read_identity(path) == identity
    with pytest.raises(
        IdentityMismatchError, match="frame rule is open now and was stretches:2:20:code=4 there"
    ):
        collect_parts(tmp_path, IDENTITY)
    assert collect_parts(tmp_path, identity) == [path]


@pytest.mark.parametrize("found", ["", "closed", "stretches:2", "open:code=7", 7])
def test_a_part_of_an_unknown_frame_rule_is_damaged(tmp_path, found):
    path = write(tmp_path, [1])
    with h5py.File(path, "a") as file:
        file.attrs["frame_rule"] = found
    with pytest.raises(CheckpointError, match=r"part-00000-000000\.h5: attribute frame_rule"):
        read_identity(path)


def test_a_part_is_never_overwritten(tmp_path):
    path = write(tmp_path, [1])
    with pytest.raises(CheckpointError, match="exists already"):
        write(tmp_path, [2])
    assert finished_rows([path]).tolist() == [1]


def test_embeddings_that_do_not_fit_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="3 rows"):
        write_part(tmp_path, "x.h5", np.arange(3), embed([1, 2]), IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_not_used_again_even_after_damage(tmp_path):
    assert next_part_number(tmp_path / "none", 0) == 0
    write(tmp_path, [1], number=4).rename(tmp_path / (part_name(0, 4) + ".damaged"))
    Path(tmp_path / (part_name(0, 4) + ".done")).unlink()
    (tmp_path / part_name(1, 9)).touch()
    assert [next_part_number(tmp_path, rank) for rank in (0, 1, 2)] == [5, 10, 0]


FILL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_parts import write, OutputError
directory = Path(sys.argv[2])
write(directory, range(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    write(directory, range(10, 3000), number=1, ids=[str(n) for n in range(2990)])
except OutputError as error:
    sys.exit(f"explained: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 3000, 50_000])
def test_a_disk_that_refuses_is_explained_and_leaves_nothing(tmp_path, limit):
    result = run_python(FILL_DISK, Path(__file__).parent, tmp_path, limit)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith(f"explained: {tmp_path / part_name(0, 1)}: cannot be written")
    assert "File too large" in result.stderr
    first = part_name(0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, f"{first}.done"]
    check_part(tmp_path / first)


def test_an_unwritable_directory_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: cannot be made \(File exists\)"):
        write(tmp_path / "file", [1])


def test_a_part_that_cannot_be_marked_done_is_taken_back(tmp_path):
    in_the_way = tmp_path / f".{part_name(0, 0)}.done.tmp"
    in_the_way.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path, [1])
    assert list(tmp_path.iterdir()) == [in_the_way]


# Interruption

WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_parts import IDENTITY, next_part_number, part_name, write
directory = Path(sys.argv[2])
for number in itertools.count(next_part_number(directory, 0)):
    write(directory, np.arange(20_000) + 20_000 * number, number)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_only_whole_parts(tmp_path):
    chance = random.Random(3)
    for _ in range(6):
        before = len(finished_parts(tmp_path))
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(Path(__file__).parent), str(tmp_path)]
        with subprocess.Popen(command) as child:
            while len(finished_parts(tmp_path)) == before:
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.05))
            child.kill()
        parts = finished_parts(tmp_path)
        assert len(parts) > before
        for path in parts:
            check_part(path)
        assert collect_parts(tmp_path, IDENTITY) == parts
        assert not list(tmp_path.glob(".*"))
    rows = finished_rows(parts)
    assert len(rows) == 20_000 * len(parts)
    np.testing.assert_array_equal(EmbeddingReader(parts).gather(rows), embed(rows))


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_identity(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"sha256:11", b"sha256:13"))


def poison(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["embeddings"][1, 2] = np.nan
    mark_done(path, 2)


def poison_with_infinity(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["embeddings"][0, 1] = np.inf
    mark_done(path, 2)


def lose_a_row(path: Path) -> None:
    mark_done(path, 3)


def garble_done(path: Path) -> None:
    Path(f"{path}.done").write_text("{")


def overwrite(path: Path) -> None:
    path.write_bytes(b"no HDF5")
    mark_done(path, 2)


def forget_an_attribute(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["pooling"]
    mark_done(path, 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes instead of"),
        (flip_a_bit, "SHA-256"),
        (flip_a_bit_of_the_identity, "SHA-256"),
        (poison, "NaN or infinite"),
        (poison_with_infinity, "NaN or infinite"),
        (lose_a_row, "2 rows instead of 3"),
        (garble_done, ".done file cannot be read"),
        (overwrite, "cannot be read"),
        (forget_an_attribute, "attribute pooling"),
    ],
)
def test_a_damaged_part_is_set_aside_and_said_why(tmp_path, caplog, damage, reason):
    good = write(tmp_path, [1, 2])
    damage(write(tmp_path, [3, 4], number=1))
    with caplog.at_level(logging.WARNING):
        assert collect_parts(tmp_path, IDENTITY) == [good]
    (message,) = caplog.messages
    assert reason in message
    assert "computed again" in message
    assert len(list(tmp_path.glob("*.damaged"))) == 1
    assert finished_parts(tmp_path) == [good]
    caplog.clear()
    assert collect_parts(tmp_path, IDENTITY) == [good]
    assert not caplog.messages


def test_a_part_that_was_killed_before_its_mark_is_unfinished_and_not_damaged(tmp_path, caplog):
    good = write(tmp_path, [1, 2])
    path = write(tmp_path, [3, 4], number=1)
    content = path.read_bytes()
    Path(f"{path}.done").unlink()
    # A damaged part stays damaged.
    damaged = write(tmp_path, [5, 6], number=2)
    truncate(damaged)
    assert collect_parts(tmp_path, IDENTITY) == [good]
    assert caplog.messages[0] == (
        f"{path}: was not finished (there is no .done file); set aside as {path.name}.unfinished "
        "and computed again"
    )
    assert sorted(tmp_path.iterdir()) == [
        good,
        Path(f"{good}.done"),
        Path(f"{path}.unfinished"),
        Path(f"{damaged}.damaged"),
    ]
    assert Path(f"{path}.unfinished").read_bytes() == content
    # Its number is not used again.
    Path(f"{damaged}.damaged").unlink()
    assert next_part_number(tmp_path, 0) == 2


def test_the_quick_check_does_not_read_the_values(tmp_path):
    path = write(tmp_path, [1, 2])
    flip_a_bit(path)
    check_part(path, full=False)
    with pytest.raises(CheckpointError, match="SHA-256"):
        check_part(path)
    truncate(path)
    with pytest.raises(CheckpointError, match="bytes instead of"):
        check_part(path, full=False)


def test_leftover_temporaries_are_deleted(tmp_path):
    (tmp_path / f".{part_name(0, 0)}.tmp").touch()
    assert collect_parts(tmp_path, IDENTITY) == []
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_holds_no_parts(tmp_path):
    assert collect_parts(tmp_path / "none", IDENTITY) == []
    assert finished_parts(tmp_path / "none") == []
    assert finished_rows([]).tolist() == []


# Parts of other runs and versions


def test_a_part_of_another_run_stops_and_changes_nothing(tmp_path):
    truncate(write(tmp_path, [1]))
    path = write(tmp_path, [2], number=1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IdentityMismatchError) as caught:
        collect_parts(tmp_path, replace(IDENTITY, precision="bf16", chunk_length_bp=300))
    message = str(caught.value)
    assert str(path) in message
    assert "precision is bf16 now and was fp32 there" in message
    assert "chunk length bp is 300 now and was 500 there" in message
    assert "--force" in message
    assert "backend" not in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("version", "advice"), [(4, "update virnucpro"), (2, "virnucpro migrate")])
def test_a_part_of_another_version_stops_and_stays(tmp_path, version, advice):
    path = write(tmp_path, [1])
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version
    mark_done(path, 1)
    for read in (check_part, read_identity, lambda path: collect_parts(path.parent, IDENTITY)):
        with pytest.raises(FormatVersionError, match=f"version {version}.*version 3.*{advice}"):
            read(path)
    assert finished_parts(tmp_path) == [path]


# Files that somebody made to lead elsewhere


def replace_dataset(file: h5py.File, name: str, kind: str, secret: Path) -> None:
    data = file[name][:]
    del file[name]
    if kind == "external link":
        file[name] = h5py.ExternalLink(str(secret), name)
    elif kind == "soft link":
        file["elsewhere"] = data
        file[name] = h5py.SoftLink("/elsewhere")
    elif kind == "external storage":
        external = [(str(secret), 0, data.nbytes)]
        file.create_dataset(name, data.shape, data.dtype, external=external)
    elif kind == "virtual":
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[...] = h5py.VirtualSource(str(secret), name, data.shape)
        file.create_virtual_dataset(name, layout)
    elif kind == "compressed":
        file.create_dataset(name, data=data, compression="gzip")
    elif kind == "chunked":
        file.create_dataset(name, data=data, maxshape=(None, *data.shape[1:]))
    elif kind == "references":
        file.create_dataset(name, data.shape, h5py.ref_dtype)
    elif kind == "wrong type":
        file[name] = data.astype(">f8")
    elif kind == "wrong shape":
        file[name] = data[..., None]
    elif kind == "unwritten":
        file.create_dataset(name, (2**40, *data.shape[1:]), data.dtype)
    elif kind == "group":
        file.create_group(name)


@pytest.mark.parametrize("name", ["rows", "embeddings"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("external link", "a link"),
        ("soft link", "a link"),
        ("missing", "missing"),
        ("external storage", "lies in other files"),
        ("virtual", "lies in other files"),
        ("compressed", "compressed"),
        ("chunked", "not contiguous"),
        ("wrong type", "should be"),
        ("references", "should be"),
        ("wrong shape", "should be"),
        ("group", "should be"),
        ("unwritten", "beyond the end"),
    ],
)
def test_data_that_lie_elsewhere_are_refused(tmp_path, name, kind, reason):
    secret = write(tmp_path / "secret", [8, 9])
    path = write(tmp_path, [1, 2])
    with h5py.File(path, "r+") as file:
        replace_dataset(file, name, kind, secret)
    mark_done(path, 2)
    for read in (check_part, lambda path: EmbeddingReader([path])):
        with pytest.raises(CheckpointError, match=reason):
            read(path)


def test_parts_of_another_run_are_refused_and_nothing_is_moved(tmp_path):
    write(tmp_path, [1])
    damaged = write(tmp_path, [2], number=1)
    damaged.write_bytes(damaged.read_bytes()[:-8])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refuse_other_runs(tmp_path, IDENTITY)
    other = replace(IDENTITY, weights_identity="sha256:33")
    with pytest.raises(IdentityMismatchError, match="weights identity is sha256:33 now and was"):
        refuse_other_runs(tmp_path, other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_part_whose_identity_is_damaged_belongs_to_nobody(tmp_path):
    path = write(tmp_path, [1])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"sha256:22", b"sha256:23"))
    assert read_identity(path) != IDENTITY
    refuse_other_runs(tmp_path, IDENTITY)
    assert collect_parts(tmp_path, IDENTITY) == []
    assert path.with_name(f"{path.name}.damaged").exists()
