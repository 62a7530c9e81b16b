"""`virnucpro call`: a finished run is called again, as `predict` would call it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import VIRNUCPRO, invoke, read_table, read_tables, run, write_reads
from virnucpro import CallConfig, PredictConfig, call, predict
from virnucpro.errors import ClassifierError, InputError, UsageError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier_files import read_classifier, save_classifier

CALIBRATION = Calibration(slope=4.0, slope_growth=0.5, offset=-0.25, most_chunks=20)


@pytest.fixture(scope="module")
def config(demo_weights: dict[str, str], tmp_path_factory) -> PredictConfig:
    directory = tmp_path_factory.mktemp("run")
    path = directory / "calibrated.safetensors"
    state, metadata, _ = read_classifier(Path(demo_weights["model_path"]))
    save_classifier(path, state, replace(metadata, calibration=CALIBRATION))
    weights = demo_weights | {"model_path": str(path)}
    # Enough to estimate the share of viral ones.
    reads = write_reads(directory / "reads.fa", 200)
    return PredictConfig(
        inputs=reads, output_dir=directory / "out", device="cpu", resume=True, **weights
    )


@pytest.mark.parametrize(
    "rule",
    [
        {"max_fdr": 0.1},
        {"threshold": 0.7},
        {"preset": "relaxed", "viral_share": 0.05},
        {"preset": "conservative", "viral_share": 0.9},
        {"max_fdr": 0.3, "estimate_viral_share": True},
        {},
    ],
    ids=lambda rule: "-".join(rule) or "default",
)
def test_it_writes_what_predict_would(config: PredictConfig, rule: dict, tmp_path: Path) -> None:
    wanted = predict(replace(config, **rule))
    directory = tmp_path / "moved"
    shutil.copytree(wanted.output_dir, directory)
    # Away from the rule that is wanted, and back.
    call(CallConfig(run_dir=directory, threshold=0.01, viral_share=0.3))
    assert read_tables(directory)["records.tsv"] != read_tables(wanted.output_dir)["records.tsv"]
    result = call(CallConfig(run_dir=directory, **rule))
    assert read_tables(directory) == read_tables(wanted.output_dir)
    found, document = (
        json.loads((path / "run.json").read_text()) for path in (directory, wanted.output_dir)
    )
    assert found == document
    assert replace(result, directory=wanted.directory, seconds=wanted.seconds) == wanted
    assert result.directory.stem == wanted.directory.stem


def test_the_viral_share_of_the_run_stays(config: PredictConfig) -> None:
    result = predict(replace(config, viral_share=0.1))
    call(CallConfig(run_dir=result.output_dir, viral_share=0.3))
    call(CallConfig(run_dir=result.output_dir, threshold=0.6))
    document = json.loads(result.directory.run_json.read_text())
    assert (document["calls"]["viral_share"], document["calls"]["threshold"]) == (0.1, 0.6)
    log = result.directory.run_log.read_text()
    assert "a record is viral from a probability of 0.6 on" in log


def test_the_estimate_of_the_run_stays_until_another_share_is_given(config: PredictConfig) -> None:
    result = predict(replace(config, estimate_viral_share=True))

    def call_again(**settings: object) -> tuple[float, bool]:
        call(CallConfig(run_dir=result.output_dir, **settings))
        found = json.loads(result.directory.run_json.read_text())["calls"]
        return found["viral_share"], found["is_share_estimated"]

    estimated = call_again(threshold=0.6)
    assert estimated == (pytest.approx(0.5, abs=0.499), True)
    assert estimated[0] != 0.5
    assert call_again(viral_share=0.3) == (0.3, False)
    assert call_again(estimate_viral_share=False) == (0.5, False)
    assert call_again() == estimated
    with pytest.raises(UsageError, match=r"--viral-share and --estimate-viral-share both say"):
        CallConfig(run_dir=result.output_dir, viral_share=0.3, estimate_viral_share=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_report_that_measures_former_calls_is_marked(config: PredictConfig, tmp_path) -> None:
    output = predict(config).output_dir
    labels = tmp_path / "labels.tsv"
    rows = read_table(output / "records.tsv")
    labels.write_text(
        "id\tlabel\n"
        + "".join(f"{row['record_id']}\t{index % 2}\n" for index, row in enumerate(rows))
    )
    evaluate = ("evaluate", output, "--truth", labels)
    mark = output / "evaluation" / "STALE.txt"
    assert invoke(*evaluate).returncode == 0
    predict(config)
    assert not mark.exists()
    assert invoke(*evaluate).returncode == 2
    done = invoke("call", output, "--threshold", 0.9)
    assert done.returncode == 0
    assert "this report measures the former calls" in done.stderr
    assert done.stdout.endswith(f"results: {output}\n")
    assert "have changed since" in mark.read_text()
    # A report that is out of date may be overwritten.
    assert invoke(*evaluate).returncode == 0
    assert not mark.exists()


@pytest.mark.slow
def test_it_needs_no_torch(config: PredictConfig) -> None:
    output = predict(config).output_dir
    program = f"""
import sys
from virnucpro.cli.main import main
try:
    main(["call", {str(output)!r}, "--relaxed"])
except SystemExit as done:
    assert not done.code
assert not {{"torch", "accelerate"}} & sys.modules.keys()
"""
    done = run(VIRNUCPRO[0], "-c", program)
    assert done.returncode == 0, done.stderr
    assert "--relaxed: bound on the expected false discovery rate 0.2" in done.stderr


def test_a_run_without_a_calibration_has_no_probabilities(demo_weights, tmp_path: Path) -> None:
    reads = write_reads(tmp_path / "reads.fa", 10)
    output = tmp_path / "out"
    predict(PredictConfig(inputs=reads, output_dir=output, device="cpu", **demo_weights))
    with pytest.raises(ClassifierError, match="--relaxed needs probabilities"):
        call(CallConfig(run_dir=output, preset="relaxed"))
    assert "ClassifierError" not in (output / "run.log").read_text()
    result = call(CallConfig(run_dir=output, threshold=0.0))
    assert result.num_virus == result.num_records - result.num_none
    assert json.loads(result.directory.run_json.read_text())["calls"]["by"] == "score"
    page = result.directory.report_html.read_text()
    assert "So a score is not a probability, and" in page
    assert "Confidence is" not in page
    reads.unlink()
    before = (output / "records.tsv").read_bytes()
    with pytest.raises(InputError, match=r"reads\.fa: is not there any more"):
        call(CallConfig(run_dir=output, threshold=1.0, fastq=True))
    assert (output / "records.tsv").read_bytes() == before


def test_checkpoints_of_another_input_are_noticed(demo_weights, tmp_path: Path) -> None:
    """Two samples with records of the same names, and one --checkpoint-dir."""
    shared = {"checkpoint_dir": tmp_path / "shared", "device": "cpu"} | demo_weights
    runs = []
    for seed in (1, 2):
        reads = write_reads(tmp_path / f"sample_{seed}.fa", 10, seed=seed)
        config = PredictConfig(inputs=reads, output_dir=tmp_path / f"{seed}", force=True, **shared)
        runs.append(predict(config).output_dir)
    before = (runs[0] / "viral.fasta").read_bytes()
    with pytest.raises(InputError, match=r"another input \(.*sample_2\.fa\), so a later run has"):
        call(CallConfig(run_dir=runs[0], threshold=0.0))
    assert (runs[0] / "viral.fasta").read_bytes() == before
    assert call(CallConfig(run_dir=runs[1], threshold=0.0)).num_virus > 0


def test_what_is_no_finished_run_is_explained(config: PredictConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json: cannot be read .*wanted the output dir"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"run\.json: is not there, because the run has not fin"):
        call(CallConfig(run_dir=tmp_path))
    # `train` leaves metrics and a report.
    (tmp_path / "report.json").touch()
    with pytest.raises(InputError, match=r"run\.json: cannot be read .*wanted the output dir"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "report.json").unlink()
    # It is there, and something else is wrong with it.
    (tmp_path / "run.json").mkdir()
    with pytest.raises(InputError, match=r"run\.json: cannot be read \(Is a directory\)"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "run.json").rmdir()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: is not JSON"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json: is \[\]; wanted the output dir"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "run.json").write_text('{"shard": "1/3"}')
    with pytest.raises(InputError, match=r"is share '1/3' of a run; virnucpro merge makes the"):
        call(CallConfig(run_dir=tmp_path))
    (tmp_path / "run.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match=r"has schema version 2, and this virnucpro reads version"):
        call(CallConfig(run_dir=tmp_path))
    run_dir = tmp_path / "copy"
    shutil.copytree(predict(config).output_dir, run_dir)
    table = run_dir / "records.tsv"
    with pytest.raises(InputError, match=rf"did you mean {re.escape(str(run_dir))}\?"):
        call(CallConfig(run_dir=table))
    text = table.read_text()
    table.write_text(text.rpartition("\nread_199")[0] + "\n")
    with pytest.raises(InputError, match=r"records\.tsv: 199 records, wanted 200"):
        call(CallConfig(run_dir=run_dir))
    table.write_text(text.replace("\tNA\t", "\tnothing\t", 1))
    with pytest.raises(InputError, match=r"records\.tsv, line \d+: found 'nothing', wanted a n"):
        call(CallConfig(run_dir=run_dir))
    table.write_text(text.replace("\t1\t", f"\t{1 << 63}\t", 1))
    with pytest.raises(InputError, match=r"records\.tsv, line \d+: found '9223372036854775808', "):
        call(CallConfig(run_dir=run_dir))
    table.write_text(text)
    document = json.loads((run_dir / "run.json").read_text())
    document["classifier"]["made_for"] |= {"regions": {"least": 0.0, "contrast": 1.6}}
    (run_dir / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"run\.json: damaged, or written by .*'contrast'"):
        call(CallConfig(run_dir=run_dir))
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(InputError, match=r"frames: not there, and viral\.fasta is written from"):
        call(CallConfig(run_dir=run_dir))


@pytest.mark.slow
def test_a_full_disk_leaves_the_former_calls_whole(config: PredictConfig, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(predict(config).output_dir, tmp_path / "full"))
    # It grows with each command.
    (directory / "run.log").unlink()
    before = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    # The tables fit, and a file that is written after them does not.
    limit = 2048 + max(path.stat().st_size for path in directory.glob("*.tsv"))
    command = shlex.join(map(str, [*VIRNUCPRO, "call", directory, "--threshold", "0.01"]))
    done = run("bash", "-c", f"ulimit -f {limit // 1024} && {command}")
    assert done.returncode == 1
    assert "viral_regions.gff3: cannot be written (File too large)" in done.stderr
    after = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    assert "Traceback" in after.pop(directory / "run.log").decode()
    assert after == before
