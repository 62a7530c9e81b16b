"""`checkpoints show` and `verify`, and `utils validate-checkpoints`, over files of every age."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests import legacy_files as old
from tests.checkpoints.test_parts import GOLDEN, IDENTITY, embed, identity_over, mark_done, write
from virnucpro.checkpoints.embeddings_file import write_embeddings
from virnucpro.checkpoints.parts import part_name, read_identity
from virnucpro.cli.main import main
from virnucpro.config import FrameRule
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store

DIMS = ["--dna-dim=6", "--protein-dim=4"]
DNA = old.make_frames(5, 6, seed=1)
PROTEIN = old.make_frames(5, 4, seed=2)


def invoke(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def show(path: Path) -> dict:
    result = invoke("checkpoints", "show", path, "--json", *DIMS)
    assert result.exit_code == 0
    return json.loads(result.stdout)


@pytest.fixture
def old_files(tmp_path) -> Path:
    directory = tmp_path / "old"
    old.save(directory / "dna.pt", old.dna_document(DNA))
    document = old.versioned(old.protein_document(PROTEIN))
    old.save(directory / "protein.pt", document, done=True)
    old.write_shard(directory / "shard_0.h5", PROTEIN)
    return directory


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of three frames, two of which have the same protein, half done."""
    reads = tmp_path / "reads.fa"
    reads.write_text(">a\nATGGCC\n")
    store = build_frame_store([str(reads)], tmp_path / "run/checkpoints/frames", StoreSettings(300))
    assert store.num_rows == 6
    write(tmp_path / "run/checkpoints/dna", range(6), identity=identity_over(store))
    write(tmp_path / "run/checkpoints/protein", [0, 1], identity=identity_over(store))
    return tmp_path / "run"


def test_show_a_part(tmp_path):
    path = write(tmp_path, [5, 3])
    (summary,) = show(path)["files"]
    assert summary["version"] == 3
    assert summary["what"] == "part"
    assert (summary["num_rows"], summary["dims"]) == (2, {"toy": 4})
    assert summary["is_marked"]
    assert summary["num_bytes"] == path.stat().st_size
    assert summary["identity"]["weights_identity"] == "sha256:22"
    assert summary["error"] is None
    assert "  weights_identity: sha256:22" in invoke("checkpoints", "show", path).stdout


def test_show_old_files(old_files):
    summaries = {Path(file["path"]).name: file for file in show(old_files)["files"]}
    assert {name: file["version"] for name, file in summaries.items()} == {
        "dna.pt": 0,
        "protein.pt": 1,
        "shard_0.h5": 2,
    }
    assert all(file["num_rows"] == 5 and file["error"] is None for file in summaries.values())
    assert summaries["dna.pt"]["dims"] == {"dna": 6}
    assert summaries["protein.pt"]["is_marked"]
    assert "wrong embeddings" in summaries["shard_0.h5"]["notes"][0]


def test_show_a_run(run):
    document = show(run)
    assert document["run"]["finished"] == {"dna": 6, "protein": 2}
    assert document["run"]["wanted"]["dna"] == 6
    assert len(document["files"]) == 2
    assert "a run of 6 open frames, chunks of 300 bp" in invoke("checkpoints", "show", run).stdout


def test_show_and_verify_a_run_of_stretches(tmp_path):
    reads = tmp_path / "reads.fa"
    reads.write_text(f">a\n{'GCAGATCTCAAATCCGGTCATTTCCAGACGATGGTC' * 5}\n")
    store = build_frame_store(
        [str(reads)],
        tmp_path / "run/checkpoints/frames",
        StoreSettings(300, rule=FrameRule("stretches")),
    )
    assert store.num_rows == 2
    identity = identity_over(store)
    write(tmp_path / "run/checkpoints/dna", [0], identity=identity)
    document = show(tmp_path / "run")
    assert document["run"]["frame_rule"] == "stretches:2:20"
    assert document["run"]["wanted"] == {"dna": 1, "protein": 2}
    assert document["files"][0]["identity"]["frame_rule"] == "stretches:2:20"
    text = invoke("checkpoints", "show", tmp_path / "run").stdout
    assert "a run of 2 stretches, chunks of 300 bp, frame rule stretches:2:20" in text
    assert invoke("checkpoints", "verify", tmp_path / "run").exit_code == 0
    identity = replace(identity, frame_rule="open")
    write(tmp_path / "run/checkpoints/protein", [0], identity=identity)
    result = invoke("checkpoints", "verify", tmp_path / "run")
    assert result.exit_code == 1
    assert "its frame rule is open, and that of the run's frame store is stretches" in result.stdout


@pytest.mark.slow
def test_show_imports_no_torch(run):
    script = (
        "import sys; from virnucpro.cli.main import main; "
        "main(['checkpoints', 'verify', sys.argv[1]], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, run], check=True)


def test_whole_files_are_verified(run, old_files):
    for place in (run, old_files, GOLDEN):
        result = invoke("checkpoints", "verify", place, *DIMS)
        assert result.exit_code == 0, result.output
    result = invoke("utils", "validate-checkpoints", old_files, *DIMS)
    assert result.exit_code == 0
    assert "3 of 3 checkpoints can be used" in result.stdout


def test_an_empty_directory_has_no_invalid_checkpoints(tmp_path):
    assert invoke("utils", "validate-checkpoints", tmp_path).exit_code == 0


def test_what_is_not_there_has_its_own_exit_code(tmp_path):
    assert invoke("checkpoints", "verify", tmp_path / "none").exit_code == 3
    assert invoke("utils", "validate-checkpoints", tmp_path / "none").exit_code == 3
    assert invoke("utils", "validate-checkpoints", write(tmp_path, [1])).exit_code == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def negate_rows(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["rows"][:] = [-1, 0]
    mark_done(path, 2)


def repeat_rows(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["rows"][:] = [1, 1]
    mark_done(path, 2)


def spoil_values(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["embeddings"][1, 1] = np.nan
    mark_done(path, 2)


def unmark(path: Path) -> None:
    Path(f"{path}.done").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "SHA-256"),
        (negate_rows, "negative or repeated rows"),
        (repeat_rows, "negative or repeated rows"),
        (spoil_values, "NaN"),
        (unmark, "was not finished (there is no .done file)"),
    ],
)
def test_damaged_parts_are_named(tmp_path, damage, reason):
    path = write(tmp_path, [5, 3])
    damage(path)
    for command in (("checkpoints", "verify"), ("utils", "validate-checkpoints")):
        result = invoke(*command, tmp_path)
        assert result.exit_code == 1
        assert f"bad  {path}: " in result.stdout
        assert reason in result.stdout


def test_damaged_old_files_are_named(old_files):
    content = (old_files / "dna.pt").read_bytes()
    (old_files / "dna.pt").write_bytes(content[: len(content) // 2])
    (old_files / "protein.pt").write_bytes(b"no zip")
    result = invoke("utils", "validate-checkpoints", old_files, *DIMS)
    assert result.exit_code == 1
    assert "1 of 3 checkpoints can be used" in result.stdout


def test_skip_load_looks_at_the_outside_only(old_files):
    with h5py.File(old_files / "shard_0.h5", "r+") as file:
        file["embeddings"][0, 0] = np.nan
    assert invoke("utils", "validate-checkpoints", old_files, "--skip-load").exit_code == 0
    assert invoke("utils", "validate-checkpoints", old_files, *DIMS).exit_code == 1
    (old_files / "dna.pt").write_bytes(b"no zip")
    result = invoke("utils", "validate-checkpoints", old_files, "--skip-load")
    assert result.exit_code == 1
    assert "2 of 3 checkpoints can be used" in result.stdout


def test_the_file_of_embed_needs_no_mark(tmp_path):
    path = tmp_path / "embeddings.h5"
    write_embeddings(path, np.arange(3), list("abc"), [embed(range(3))], IDENTITY)
    result = invoke("checkpoints", "verify", path)
    assert result.exit_code == 0
    assert "no .done file" in result.stdout
    flip(path)
    with h5py.File(path, "r+") as file:
        file["embeddings"][1, 1] = np.inf
    assert invoke("checkpoints", "verify", path).exit_code == 1


def test_a_directory_without_checkpoints_is_not_good(tmp_path):
    result = invoke("checkpoints", "verify", tmp_path)
    assert result.exit_code == 3
    assert f"{tmp_path}: holds neither checkpoints nor a run" in result.stderr


def test_a_link_to_checkpoints_that_are_gone_is_named(run):
    shutil.move(run / "checkpoints", run / "moved")
    (run / "checkpoints").symlink_to(run / "mount", target_is_directory=True)
    for command in (("checkpoints", "verify"), ("utils", "validate-checkpoints")):
        result = invoke(*command, run)
        assert result.exit_code == 1
        assert f"bad  {run}/checkpoints: is a link to {run}/mount, which is not" in result.stdout


def test_rows_of_another_run_are_found(run):
    identity = read_identity(run / "checkpoints/dna" / part_name(0, 0))
    write(run / "checkpoints/dna", [7], number=1, identity=identity)
    result = invoke("checkpoints", "verify", run)
    assert result.exit_code == 1
    assert "not among the 6 open frames" in result.stdout


def test_a_damaged_frame_store_is_explained(run):
    (run / "checkpoints/frames/manifest.json").write_text("{}")
    assert invoke("checkpoints", "verify", run).exit_code == 1


def test_a_frame_store_damaged_at_equal_size_is_named(run):
    path = run / "checkpoints/frames/headers.text"
    path.write_bytes(b"b" * path.stat().st_size)
    for command in (("checkpoints", "verify"), ("utils", "validate-checkpoints")):
        result = invoke(*command, run)
        assert result.exit_code == 1
        assert "headers.text changed since they were written" in result.stdout
        assert "2 of 2 checkpoints can be used" in result.stdout


def test_parts_of_another_input_are_named(run):
    write(run / "checkpoints/dna", [5], number=1)
    result = invoke("utils", "validate-checkpoints", run)
    assert result.exit_code == 1
    assert "its input digest is sha256:11, and that of the run's frame store is" in result.stdout


def test_parts_set_aside_are_left_out(run):
    path = next((run / "checkpoints/dna").glob("*.h5"))
    shutil.move(path, f"{path}.damaged")
    assert len(show(run)["files"]) == 1
