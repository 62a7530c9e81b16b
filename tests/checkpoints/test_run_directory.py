from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from virnucpro.checkpoints.run_directory import EmbedDirectory, RunDirectory
from virnucpro.errors import UsageError


def write_run(directory: RunDirectory) -> list[Path]:
    """Write a file under every name that the directory knows."""
    written = [
        directory.prediction_results,
        directory.highest_scores,
        directory.records_tsv,
        directory.viral_fasta,
        directory.chunks_tsv,
        directory.scores_bedgraph,
        directory.regions_tsv,
        directory.regions_bed,
        directory.regions_gff3,
        directory.run_json,
        directory.run_log,
        directory.chunked_fasta(500),
        directory.frames_fasta("dna"),
        directory.frames_fasta("protein"),
        directory.split_fasta("dna", 0),
        directory.split_fasta("protein", 12),
        directory.frame_store_dir / "anything.npy",
    ]
    for alphabet in ("dna", "protein"):
        part = "part-00000-000000.h5"
        names = (part, f"{part}.done", f"{part}.damaged", f".{part}.tmp", f".{part}.done.tmp")
        written += [directory.parts_dir(alphabet) / name for name in names]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")
    return written


def test_names_are_those_of_the_fork(tmp_path):
    directory = RunDirectory(tmp_path, "reads")
    names = [
        directory.prediction_results,
        directory.highest_scores,
        directory.chunked_fasta(300),
        directory.frames_fasta("dna"),
        directory.frames_fasta("protein"),
        directory.split_fasta("dna", 3),
        directory.split_fasta("protein", 3),
    ]
    assert [str(path.relative_to(tmp_path)) for path in names] == [
        "reads_merged/prediction_results.txt",
        "reads_merged/prediction_results_highestscore.csv",
        "reads_chunked300.fa",
        "reads_nucleotide.fa",
        "reads_protein.faa",
        "reads_nucleotide/output_3.fa",
        "reads_protein/output_3.fa",
    ]


def test_clear_removes_the_whole_run_but_the_lock(tmp_path):
    directory = RunDirectory(tmp_path, "a+b[1]")
    write_run(directory)
    directory.lock_path.touch()
    directory.clear()
    assert list(tmp_path.iterdir()) == [directory.lock_path]


def test_clear_leaves_what_is_not_ours(tmp_path):
    directory = RunDirectory(tmp_path, "reads")
    written = write_run(directory)
    others = [
        tmp_path / "thesis.tex",
        tmp_path / "reads_chunkedX.fa",
        tmp_path / "other_chunked500.fa",
        tmp_path / "checkpoints" / "model.ckpt",
        directory.parts_dir("dna") / "notes.h5",
        directory.split_dir("dna") / "output_0_DNABERT_S.pt",
        directory.merged_dir / "output_0_merged.pt",
    ]
    for path in others:
        path.write_text("theirs")
    directory.clear()
    assert all(path.read_text() == "theirs" for path in others)
    assert not any(path.exists() for path in written)


def test_clear_of_nothing_does_nothing(tmp_path):
    RunDirectory(tmp_path / "none", "reads").clear()
    assert list(tmp_path.iterdir()) == []


def test_is_run_tells_a_finished_and_an_interrupted_run_from_a_strangers_directory(tmp_path):
    directory = RunDirectory(tmp_path, "reads")
    (tmp_path / "run.log").touch()
    (tmp_path / "checkpoints").mkdir()
    assert not directory.is_run()
    directory.frame_store_dir.mkdir()
    assert directory.is_run()
    directory.frame_store_dir.rmdir()
    directory.run_json.touch()
    assert directory.is_run()


@pytest.mark.parametrize(
    "name",
    [
        "run.log",
        "checkpoints/frames/manifest.json",
        "checkpoints/frames.new/x",
        "checkpoints/screen/checkpoints/frames/manifest.json",
        ".lock.holder",
        ".launch",
    ],
)
def test_what_a_run_leaves_that_computed_nothing_is_not_in_the_way(tmp_path, monkeypatch, name):
    directory = RunDirectory(tmp_path / "out", "reads")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    (tmp_path / "out/checkpoints/dna").mkdir(parents=True)
    (tmp_path / "out/checkpoints/screen/checkpoints/dna").mkdir(parents=True)
    assert not directory.is_used()
    monkeypatch.chdir(tmp_path)
    assert not RunDirectory(Path("out"), "reads").is_used()


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "checkpoints/dna/part-00000-000000.h5",
        "checkpoints/screen/checkpoints/dna/part-00000-000000.h5",
        "a/run.log",
    ],
)
def test_work_and_files_of_others_are_in_use(tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    assert RunDirectory(tmp_path / "out", "reads").is_used()


@pytest.mark.parametrize(("output", "kept"), [("out", "out/kept"), ("kept/out", "kept")])
def test_locks_are_no_work_if_one_directory_lies_in_the_other(tmp_path, output, kept):
    directory = RunDirectory(tmp_path / output, "reads")
    directory.place_checkpoints(tmp_path / kept)
    for path in (directory.lock_path, directory.run_log, *directory.checkpoints_lock_paths):
        path.touch()
    assert not directory.is_used()
    directory.parts_dir("dna").mkdir()
    (directory.parts_dir("dna") / "part-00000-000000.h5").touch()
    assert directory.is_used()


def test_embed_leaves_nothing_in_use_before_it_computes(tmp_path):
    directory = EmbedDirectory(tmp_path / "out.h5")
    directory.records_dir.mkdir(parents=True)
    (directory.records_dir / "manifest.json").touch()
    assert not directory.is_used()
    (directory.path / "part-00000-000000.h5").touch()
    assert directory.is_used()


def test_checkpoints_are_not_the_run_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="out: is the output directory itself; leave out"):
        RunDirectory(tmp_path / "out", "reads").place_checkpoints(Path("out"))
    assert not (tmp_path / "out").exists()


def test_all_processes_mend_a_link_that_leads_nowhere(tmp_path):
    directory, moved = RunDirectory(tmp_path / "out", "reads"), tmp_path / "moved"
    directory.path.mkdir()
    # The file system refuses so long a name, as it refuses a path whose server is away.
    directory.checkpoints_dir.symlink_to(tmp_path / ("x" * 300))
    assert directory.has_lost_checkpoints()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(directory.place_checkpoints, [moved] * 8))
    assert directory.checkpoints_dir.readlink() == moved
    assert list(directory.path.iterdir()) == [directory.checkpoints_dir]
