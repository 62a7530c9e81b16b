"""`predict --screen`: a small model judges first, and the large ones see the rest."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runs import REPOSITORY, VIRNUCPRO, predict_options, run, write_reads
from tools.make_demo_weights import make_demo_weights
from virnucpro import (
    CalibrateConfig,
    CallConfig,
    MergeConfig,
    PredictConfig,
    PredictResult,
    calibrate,
    call,
    merge,
    predict,
    predict_shard,
)
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.errors import ClassifierError, InputError
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.scoring.classifier_files import read_classifier, save_classifier

pytestmark = pytest.mark.slow

EXAMPLE = str(REPOSITORY / "examples" / "example.fasta")
MAX_LOSS = 0.1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_demo_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def config(weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> PredictConfig:
    return PredictConfig(
        inputs=(EXAMPLE,),
        output_dir=tmp_path_factory.mktemp("runs") / "screened",
        model_type="custom",
        device="cpu",
        dataloader_workers=0,
        screen="mini",
        screen_loss=MAX_LOSS,
        report=False,
        **weights,
    )


@pytest.fixture(scope="module")
def screened(config: PredictConfig) -> PredictResult:
    return predict(config)


def records_of(output_dir: Path) -> list[dict[str, str]]:
    with (output_dir / "records.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_cellular_records_keep_the_word_of_the_screen(
    config: PredictConfig, screened: PredictResult, tmp_path: Path
) -> None:
    plain = {"screen": None, "output_dir": tmp_path / "plain"}
    whole = records_of(predict(dataclasses.replace(config, **plain)).output_dir)
    mini = {"model_type": "mini", "model_path": None, "screen": None, "output_dir": tmp_path / "m"}
    defaults = {name: getattr(PredictConfig, name) for name in ("dna_weights", "protein_weights")}
    small = records_of(predict(dataclasses.replace(config, **mini, **defaults)).output_dir)
    found = records_of(screened.output_dir)
    judges = [record["judged_by"] for record in found]
    assert set(judges) == {"screen", "classifier"}
    for record, large, little in zip(found, whole, small, strict=True):
        judge = little if record["judged_by"] == "screen" else large
        for name in ("score", "num_open_chunks", "scored_share", "reason"):
            if name == "score":
                assert float(record[name]) == pytest.approx(float(judge[name]), abs=2e-4)
            else:
                assert record[name] == judge[name]
        assert record["num_frames"] == large["num_frames"]
        if record["judged_by"] == "screen":
            assert record["call"] == "others"
            assert float(record["probability"]) == float(little["probability"])
        else:
            assert record["call"] == large["call"]
    lost = sum(
        float(one["probability"]) for one, by in zip(small, judges, strict=True) if by == "screen"
    )
    total = sum(float(one["probability"]) for one in small)
    about = json.loads((screened.output_dir / "run.json").read_text())["screen"]
    assert about["expected_loss"] == pytest.approx(lost / total)
    assert about["expected_loss"] <= MAX_LOSS
    assert about["num_records"] == judges.count("screen")


def test_the_large_models_see_the_other_records_only(
    screened: PredictResult, tmp_path: Path
) -> None:
    directory = screened.directory
    document = json.loads(directory.run_json.read_text())
    rows = finished_rows(finished_parts(directory.parts_dir("dna")))
    assert 0 < len(rows) < document["counts"]["distinct_dna"]
    assert document["counts"]["unscored_frames"] == 0
    assert next(iter(document["passes"])) == "screen: DNA embeddings"
    # The small model reads stretches, whatever the large ones read.
    assert "screen: find stretches" in document["seconds"]
    messages = [line.partition(": ")[2] for line in directory.run_log.read_text().splitlines()]
    for words in ("frame rule: ", "DNA embeddings: "):
        found = [message.partition(words)[0] for message in messages if words in message]
        assert sorted(set(found)) == ["", "screen: "]
    speeds = [message.startswith("screen: ") for message in messages if " tokens/s" in message]
    assert speeds == [True, True, False, False]
    write_run_page(directory, tmp_path / "page.html")
    assert "A small model judged all records first." in (tmp_path / "page.html").read_text()
    with directory.chunks_tsv.open(newline="") as file:
        chunks = list(csv.DictReader(file, delimiter="\t"))
    judged = {one["record_id"]: one["judged_by"] for one in records_of(screened.output_dir)}
    for chunk in chunks:
        if judged[chunk["record_id"]] == "screen":
            assert chunk["score"] == "NA"


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_what_the_threshold_would_call_viral_is_not_left_out(
    threshold: float, config: PredictConfig, tmp_path: Path
) -> None:
    asked = {"threshold": threshold, "screen_loss": 0.9, "output_dir": tmp_path / "run"}
    directory = predict(dataclasses.replace(config, **asked)).directory
    about = json.loads(directory.run_json.read_text())["screen"]
    assert about["bound"] == threshold
    judges = [one["judged_by"] for one in records_of(directory.path)]
    assert ("screen" in judges) == (threshold > 0)


def test_what_the_classifier_of_the_run_would_call_viral_is_not_left_out(
    config: PredictConfig, weights: dict[str, str], tmp_path: Path
) -> None:
    state, metadata, _ = read_classifier(Path(weights["model_path"]))
    stated = tmp_path / "stated.safetensors"
    save_classifier(stated, state, dataclasses.replace(metadata, threshold=0.1))
    asked = {"model_path": stated, "screen_loss": 0.9}
    for threshold, bound in ((None, 0.1), (0.2, 0.2)):
        again = dataclasses.replace(
            config, **asked, threshold=threshold, output_dir=tmp_path / f"{bound}"
        )
        document = json.loads(predict(again).directory.run_json.read_text())
        assert (document["calls"]["threshold"], document["screen"]["bound"]) == (bound, bound)


def test_a_screened_run_is_called_again_alike(config: PredictConfig, tmp_path: Path) -> None:
    calibrated = dataclasses.replace(
        config, model_type="mini", model_path=None, output_dir=tmp_path / "run"
    )
    calibrated = dataclasses.replace(
        calibrated,
        dna_weights=str(PredictConfig.dna_weights),
        protein_weights=str(PredictConfig.protein_weights),
    )
    predict(calibrated)
    first = (tmp_path / "run" / "records.tsv").read_bytes()
    call(CallConfig(run_dir=tmp_path / "run"))
    assert (tmp_path / "run" / "records.tsv").read_bytes() == first
    call(CallConfig(run_dir=tmp_path / "run", max_fdr=0.2, viral_share=0.3))
    again = dataclasses.replace(calibrated, max_fdr=0.2, viral_share=0.5, resume=True)
    predict(again)
    asked = (tmp_path / "run" / "records.tsv").read_bytes()
    call(CallConfig(run_dir=tmp_path / "run"))
    call(CallConfig(run_dir=tmp_path / "run", max_fdr=0.2, viral_share=0.5))
    assert (tmp_path / "run" / "records.tsv").read_bytes() == asked


def test_a_screened_run_calibrates_no_classifier(
    config: PredictConfig, screened: PredictResult, tmp_path: Path
) -> None:
    num_screened = sum(line["judged_by"] == "screen" for line in records_of(screened.output_dir))
    settings = CalibrateConfig(
        classifier=config.resolved_model_path,
        run_dir=screened.output_dir,
        truth=REPOSITORY / "examples" / "labels.tsv",
        output_path=tmp_path / "calibrated.safetensors",
    )
    message = f"its screen judged {num_screened} records, which have scores of the screen's model"
    with pytest.raises(InputError, match=message):
        calibrate(settings)
    assert not settings.output_path.exists()


def test_a_screen_estimates_the_share_of_viral_records(
    config: PredictConfig, tmp_path: Path
) -> None:
    reads = write_reads(tmp_path / "reads.fa", 300)
    again = dataclasses.replace(
        config, inputs=reads, output_dir=tmp_path / "run", estimate_viral_share=True
    )
    assumed = dataclasses.replace(again, output_dir=tmp_path / "half", estimate_viral_share=None)
    found, usual = (
        json.loads(predict(each).directory.run_json.read_text())["screen"]
        for each in (again, assumed)
    )
    # Stretches in random letters look viral, because few cellular genes are like them.
    assert found["viral_share"] > 0.9
    assert usual["viral_share"] == 0.5
    assert found["expected_loss"] <= MAX_LOSS
    first = (tmp_path / "run" / "records.tsv").read_bytes()
    call(CallConfig(run_dir=tmp_path / "run"))
    assert (tmp_path / "run" / "records.tsv").read_bytes() == first


def test_another_loss_embeds_what_is_missing(config: PredictConfig, tmp_path: Path) -> None:
    run_config = dataclasses.replace(config, output_dir=tmp_path / "run")
    before = predict(run_config)
    rows = finished_rows(finished_parts(before.directory.parts_dir("dna")))
    lower = dataclasses.replace(run_config, screen_loss=0.001, resume=True)
    after = predict(lower)
    more = finished_rows(finished_parts(after.directory.parts_dir("dna")))
    assert set(rows) < set(more)
    document = json.loads(after.directory.run_json.read_text())
    (told,) = document["passes"]["DNA embeddings"]
    assert told["num_rows"] == len(more) - len(rows)
    # A fresh start removes the screen as well.
    kept = after.directory.screen.parts_dir("dna")
    written = next(kept.glob("part-*.h5")).stat().st_mtime_ns
    predict(dataclasses.replace(run_config, force=True))
    assert next(kept.glob("part-*.h5")).stat().st_mtime_ns > written


def num_computed(directory: RunDirectory) -> int:
    passes = json.loads(directory.run_json.read_text())["passes"]
    assert len(passes) == 4
    return sum(process["num_rows"] for told in passes.values() for process in told)


def test_a_screen_goes_on_elsewhere_from_its_checkpoints(
    config: PredictConfig, tmp_path: Path
) -> None:
    there = dataclasses.replace(
        config, output_dir=tmp_path / "there", checkpoint_dir=tmp_path / "kept"
    )
    before = predict(there)
    assert num_computed(before.directory) > 0
    records = before.directory.records_tsv.read_bytes()
    # The machine is lost, and its disk with it.
    shutil.rmtree(tmp_path / "there")
    here = dataclasses.replace(there, output_dir=tmp_path / "here", resume=True)
    after = predict(here)
    assert num_computed(after.directory) == 0
    assert after.directory.records_tsv.read_bytes() == records


def test_a_screen_of_an_earlier_state_is_found(config: PredictConfig, tmp_path: Path) -> None:
    mine = dataclasses.replace(config, output_dir=tmp_path / "run")
    directory = predict(mine).directory
    records = directory.records_tsv.read_bytes()
    # Where it was: beside the checkpoints of the run.
    shutil.move(tmp_path / "run/checkpoints/screen", tmp_path / "run/screen")
    predict(dataclasses.replace(mine, resume=True))
    assert num_computed(directory) == 0
    assert directory.records_tsv.read_bytes() == records
    assert not (tmp_path / "run/checkpoints/screen").exists()
    # A fresh start has one place only.
    predict(dataclasses.replace(mine, force=True))
    assert (tmp_path / "run/checkpoints/screen").is_dir()
    assert not (tmp_path / "run/screen").exists()


def test_two_processes_screen_as_one(
    screened: PredictResult, weights: dict[str, str], tmp_path: Path
) -> None:
    options = (*predict_options(weights), "--screen=mini", f"--screen-loss={MAX_LOSS}")
    started = run(
        *(*VIRNUCPRO, "predict", EXAMPLE, "-m", "custom", "-o", tmp_path / "two", *options),
        *("--num-processes=2", "--no-progress", "--no-report"),
    )
    assert started.returncode == 0, started.stderr
    ours, theirs = records_of(tmp_path / "two"), records_of(screened.output_dir)
    for one, other in zip(ours, theirs, strict=True):
        assert (one["judged_by"], one["call"]) == (other["judged_by"], other["call"])
        assert np.isclose(float(one["score"]), float(other["score"]), atol=2e-4)


def test_a_screen_needs_probabilities(
    config: PredictConfig, weights: dict[str, str], tmp_path: Path
) -> None:
    uncalibrated = dataclasses.replace(
        config,
        output_dir=tmp_path / "run",
        screen=weights["model_path"],
        screen_dna_weights=weights["dna_weights"],
        screen_protein_weights=weights["protein_weights"],
    )
    with pytest.raises(ClassifierError, match="a screen needs probabilities"):
        predict(uncalibrated)
    # Before the input is read.
    assert not (tmp_path / "run/checkpoints").exists()


def test_standard_input_is_screened_alike(
    config: PredictConfig, screened: PredictResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(EXAMPLE).open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        result = predict(dataclasses.replace(config, inputs=("-",), output_dir=tmp_path / "run"))
    assert records_of(result.output_dir) == records_of(screened.output_dir)
    ours, theirs = (
        json.loads((one.directory.screen.frame_store_dir / "manifest.json").read_text())
        for one in (result, screened)
    )
    assert ours["files"] == theirs["files"]


def test_short_records_are_noted_once(config: PredictConfig, tmp_path: Path) -> None:
    reads = write_reads(tmp_path / "reads.fa", 5)
    result = predict(dataclasses.replace(config, inputs=reads, output_dir=tmp_path / "run"))
    log = result.directory.run_log.read_text()
    assert log.count("5 of 5 records are shorter than a chunk of 500 bp") == 1


def test_shares_of_a_screened_run_become_that_run(
    config: PredictConfig, screened: PredictResult, tmp_path: Path
) -> None:
    shares = [tmp_path / "1", tmp_path / "2"]
    for path in shares:
        predict_shard(dataclasses.replace(config, output_dir=path, shard=f"{path.name}/2"))
    merged = merge(MergeConfig(run_dirs=tuple(shares), output_dir=tmp_path / "merged"))
    for name in ("records.tsv", "chunks.tsv", "viral_regions.tsv"):
        ours, theirs = (one.output_dir / name for one in (merged, screened))
        assert ours.read_bytes() == theirs.read_bytes(), name
    documents = [json.loads(one.directory.run_json.read_text()) for one in (merged, screened)]
    assert documents[0]["screen"] == documents[1]["screen"]
    assert documents[0]["counts"] == documents[1]["counts"]
    call(CallConfig(run_dir=merged.output_dir))
    assert records_of(merged.output_dir) == records_of(screened.output_dir)
    # A share that left out other records.
    run_json = shares[1] / "run.json"
    document = json.loads(run_json.read_text())
    document["screen"]["num_records"] += 1
    run_json.write_text(json.dumps(document))
    with pytest.raises(InputError, match="screen differ"):
        merge(MergeConfig(run_dirs=tuple(shares), output_dir=tmp_path / "none"))
