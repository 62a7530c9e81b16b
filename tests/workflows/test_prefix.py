"""Many runs in one directory: `--prefix`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, invoke, read_table, write_reads
from virnucpro import CallConfig, EvaluateConfig, PredictConfig, call, evaluate, predict, read_run
from virnucpro.checkpoints.run_directory import RunDirectory, find_run
from virnucpro.errors import InputError, OutputExistsError, UsageError
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.workflows.checkpoints import summarize_files


def test_runs_with_prefixes_share_a_directory(demo_weights, tmp_path: Path) -> None:
    config = PredictConfig(
        inputs=str(write_reads(tmp_path / "reads.fa", 20)),
        output_dir=tmp_path / "out",
        prefix="first",
        device="cpu",
        **demo_weights,
    )
    first = predict(config)
    other = str(write_reads(tmp_path / "other.fa", 30, seed=1))
    second = predict(replace(config, inputs=(other,), prefix="second"))
    names = {path.name.partition("_")[0] for path in (tmp_path / "out").iterdir()}
    assert names == {"first", "second"}
    assert len(read_table(tmp_path / "out/first_records.tsv")) == 20
    assert len(read_table(second.directory.records_tsv)) == 30
    assert (tmp_path / "out/second_merged/prediction_results.txt").is_file()
    # Other commands name the run by its directory and prefix.
    assert find_run(tmp_path / "out/first") == first.directory
    before = second.directory.records_tsv.read_bytes()
    call(CallConfig(run_dir=tmp_path / "out/first", threshold=1.0))
    assert json.loads((tmp_path / "out/first_run.json").read_text())["counts"]["virus"] == 0
    assert second.directory.records_tsv.read_bytes() == before
    with pytest.raises(OutputExistsError, match="out/first: exists already"):
        predict(config)
    # A directory of several runs is no run, and neither is a prefix that nothing has.
    for wrong in ("out", "out/frist"):
        with pytest.raises(InputError, match=r"did you mean .*out/first, .*out/second"):
            call(CallConfig(run_dir=tmp_path / wrong))
        with pytest.raises(InputError, match=r"did you mean .*out/first, .*out/second"):
            evaluate(EvaluateConfig(run_dir=tmp_path / wrong, truth=tmp_path / "labels.tsv"))
    labels = tmp_path / "labels.tsv"
    ids = [line["record_id"] for line in read_table(tmp_path / "out/first_records.tsv")]
    labels.write_text("id\tlabel\n" + "".join(f"{one}\tothers\n" for one in ids))
    found = evaluate(EvaluateConfig(run_dir=tmp_path / "out/first", truth=labels))
    assert found.output_dir == tmp_path / "out/first_evaluation"
    # So do the commands on embeddings, and the two runs keep theirs apart.
    tables = [read_run(tmp_path / f"out/{name}").embeddings for name in ("first", "second")]
    assert [one.n_obs for one in tables] == [first.num_frames, second.num_frames]
    assert all(one.obs["score_virus"].between(0, 1).all() for one in tables)
    shown = invoke("checkpoints", "show", tmp_path / "out/first").stdout
    assert f"out/first: a run of {first.num_frames} open frames" in shown
    assert invoke("checkpoints", "verify", tmp_path / "out/first").returncode == 0
    assert "2 of 2" in invoke("checkpoints", "verify", tmp_path / "out/first").stdout
    missing = invoke("checkpoints", "show", tmp_path / "out/frist")
    assert (missing.returncode, "did you mean" in missing.stderr) == (2, True)
    second.directory.clear()
    assert first.directory.records_tsv.is_file()
    assert not RunDirectory(tmp_path / "out", "third", "third").is_used()


def test_the_working_directory_may_be_the_run() -> None:
    config = EvaluateConfig(run_dir=Path(), truth=Path("labels.tsv"))
    assert (config.records_tsv, config.resolved_output_dir) == (
        Path("records.tsv"),
        Path("evaluation"),
    )


def test_runs_with_prefixes_share_no_path(tmp_path: Path) -> None:
    one, other = (
        {
            path
            for name in dir(RunDirectory)
            if isinstance(path := getattr(RunDirectory(tmp_path, prefix, prefix), name), Path)
        }
        for prefix in ("a", "b")
    )
    assert len(one) > 20
    assert one & other == {tmp_path}


@pytest.mark.parametrize("place", [None, "screen"], ids=["now", "in earlier states"])
def test_each_prefix_has_a_screen_of_its_own(place: str | None, tmp_path: Path) -> None:
    runs = [RunDirectory(tmp_path, prefix, prefix) for prefix in ("a", "b", "")]
    for one in runs:
        if place is not None:
            screen = f"{one.prefix}_{place}" if one.prefix else place
            (tmp_path / screen / "checkpoints").mkdir(parents=True)
            assert one.screen.path == tmp_path / screen
        one.screen.parts_dir("dna").mkdir(parents=True)
        (one.screen.parts_dir("dna") / "part-00000-000000.h5").touch()
    screens = [one.screen.path for one in runs]
    runs[0].clear()
    assert [screen.is_dir() for screen in screens] == [False, True, True]
    assert not runs[0].checkpoints_dir.exists()


@pytest.mark.parametrize("place", ["a_screen", "a_checkpoints/screen"])
def test_the_parts_of_a_screen_are_checked(place: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "a", "a")
    run.run_json.touch()
    folders = [tmp_path / place / "checkpoints", run.checkpoints_dir]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("part_v3.h5", "part_v3.h5.done"):
            shutil.copy(REPOSITORY / "tests/data" / name, folder)
    found = list(summarize_files(tmp_path / "a", EmbeddingDims(), digests=True))
    assert [(one.path.parent, one.error) for one in found] == [(folder, None) for folder in folders]


@pytest.mark.parametrize("prefix", ["a/b", ".hidden", "-o"])
def test_a_prefix_is_the_beginning_of_a_name(prefix: str) -> None:
    with pytest.raises(UsageError, match="wanted the beginning of a file name"):
        PredictConfig(inputs="reads.fa", prefix=prefix)
