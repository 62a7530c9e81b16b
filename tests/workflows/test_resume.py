"""Runs that were killed, interrupted or damaged, and end as if nothing had been."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from tests.runs import (
    REPOSITORY,
    SMALL_PARTS,
    accelerate_launch,
    distinct_rows,
    parts_of,
    predict_options,
    read_tables,
    rows_of,
    wait_for,
    write_reads,
)
from tests.samples import read_state
from tests.small_parts import ROWS_PER_PART, SmallPartWriter
from tools.make_demo_weights import make_demo_weights
from virnucpro import PredictConfig, predict
from virnucpro.cli.main import main
from virnucpro.embedding import loop as embedding
from virnucpro.errors import IdentityMismatchError, InputError, Terminated

pytestmark = pytest.mark.slow

# Small batches make a run slow enough to be killed on its way.
BUDGETS = {"dna_batch_tokens": 100, "protein_batch_tokens": 100}
BUDGET_OPTIONS = ("--dnabert-batch-size=100", "--esm-batch-size=100")
NUM_READS = 600


@pytest.fixture(scope="module")
def small_parts():
    """Write parts as small as those of tests/small_parts.py in this process, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "PartWriter", SmallPartWriter)
        yield


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    return write_reads(tmp_path_factory.mktemp("inputs") / "reads.fa", NUM_READS)


@pytest.fixture(scope="module")
def undisturbed(reads, demo_weights, tmp_path_factory, small_parts):
    """The directory of a run to which nothing happened."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    predict(make_config(reads, output_dir, demo_weights))
    return output_dir


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))


def make_config(inputs, output_dir, weights, **settings) -> PredictConfig:
    return PredictConfig(
        **{"inputs": inputs, "output_dir": output_dir, "device": "cpu"}
        | weights
        | BUDGETS
        | settings
    )


def rows_embedded(output_dir: Path) -> int:
    """Return how many rows the last run embedded itself."""
    passes = json.loads((output_dir / "run.json").read_text())["passes"]
    return sum(summary["num_rows"] for summaries in passes.values() for summary in summaries)


# Killed


def make_command(inputs, output_dir, weights) -> list[object]:
    options = [*predict_options(weights), *BUDGET_OPTIONS]
    return ["predict", inputs, "-o", output_dir, "--resume", *options]


def start(num_processes: int, *arguments: object) -> subprocess.Popen[str]:
    """Start the command line, with small parts, in one or several processes."""
    command = [*SMALL_PARTS, *map(str, arguments)]
    if num_processes > 1:
        command = accelerate_launch(num_processes, *command[1:])
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a program and all that it has started: a launcher's processes are no group."""
    leader = psutil.Process(process.pid)
    leader.suspend()  # or a launcher would end the others by itself
    family = [*leader.children(recursive=True), leader]
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family)


def finish(config: PredictConfig, output_dir: Path, undisturbed: Path) -> None:
    """Let an interrupted run end; finished work stays, no row is repeated, and tables are equal."""
    before = parts_of(output_dir)
    predict(config)
    assert before.items() <= parts_of(output_dir).items()
    for alphabet in ("dna", "protein"):
        assert sorted(rows_of(output_dir, alphabet)) == distinct_rows(output_dir, alphabet)
    assert read_tables(output_dir) == read_tables(undisturbed)


@pytest.mark.launch
def test_kill_at_random_moments(reads, demo_weights, undisturbed, tmp_path):
    generator = random.Random(3)
    output_dir = tmp_path / "out"
    command = make_command(reads, output_dir, demo_weights)
    num_parts = len(parts_of(undisturbed))

    process = start(1, *command)
    wait_for((output_dir / "checkpoints/frames").exists, process)
    kill_all(process)
    moments = sorted(generator.uniform(0.05, 0.8) for _ in range(3))
    for num_processes, moment in zip((1, 2, 2), moments, strict=True):
        before = parts_of(output_dir)
        process = start(num_processes, *command)
        wait_for(lambda: len(parts_of(output_dir)) > moment * num_parts, process)  # noqa: B023
        time.sleep(generator.uniform(0, 0.05))
        kill_all(process)
        # Finished work is neither touched nor done again.
        assert before.items() <= parts_of(output_dir).items()
    finish(make_config(reads, output_dir, demo_weights, resume=True), output_dir, undisturbed)


@pytest.mark.launch
def test_a_process_that_dies_ends_the_launch_and_fewer_go_on(
    reads, demo_weights, undisturbed, tmp_path
):
    generator = random.Random(5)
    output_dir = tmp_path / "out"
    command = make_command(reads, output_dir, demo_weights)
    process = start(3, *command)
    wait_for(lambda: len(parts_of(output_dir)) > 0.4 * len(parts_of(undisturbed)), process)
    time.sleep(generator.uniform(0, 0.1))
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 3
    generator.choice(ranks).kill()
    process.communicate()
    assert process.returncode != 0
    assert not any(rank.is_running() for rank in ranks)
    finish(make_config(reads, output_dir, demo_weights, resume=True), output_dir, undisturbed)


def test_signals_keep_what_is_done(reads, demo_weights, undisturbed, tmp_path):
    output_dir = tmp_path / "out"
    command = make_command(reads, output_dir, demo_weights)
    for number, code, alphabet in ((signal.SIGINT, 130, "dna"), (signal.SIGTERM, 143, "protein")):
        process = start(1, *command)
        wait_for(lambda: any(f"/{alphabet}/" in name for name in parts_of(output_dir)), process)  # noqa: B023
        process.send_signal(number)
        _, messages = process.communicate()
        assert process.returncode == code
        assert "Traceback" not in messages
    done = sum(len(rows_of(output_dir, alphabet)) for alphabet in ("dna", "protein"))
    predict(make_config(reads, output_dir, demo_weights, resume=True))
    assert rows_embedded(output_dir) + done == rows_embedded(undisturbed)
    assert read_tables(output_dir) == read_tables(undisturbed)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_what_was_computed_before_an_interruption_is_kept(
    reads, demo_weights, undisturbed, tmp_path, error
):
    seen = []

    def interrupt(progress) -> None:
        seen.append(progress)
        if len(seen) == 20:
            raise error

    with pytest.raises(error):
        predict(make_config(reads, tmp_path / "out", demo_weights), on_progress=interrupt)
    assert len(rows_of(tmp_path / "out", "dna")) == seen[-1].num_rows
    assert seen[-1].num_rows % ROWS_PER_PART
    predict(make_config(reads, tmp_path / "out", demo_weights, resume=True))
    assert rows_embedded(tmp_path / "out") == rows_embedded(undisturbed) - seen[-1].num_rows
    assert read_tables(tmp_path / "out") == read_tables(undisturbed)


def test_standard_input_is_read_again(reads, demo_weights, undisturbed, tmp_path, monkeypatch):
    def predict_piped(content: bytes, on_progress=None, **settings) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        predict(make_config("-", tmp_path / "out", demo_weights, **settings), on_progress)

    def interrupt(progress) -> None:
        if progress.num_rows > progress.total_rows / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_piped(reads.read_bytes(), interrupt)
    done = len(rows_of(tmp_path / "out", "dna"))
    with pytest.raises(IdentityMismatchError, match="the input has changed"):
        predict_piped(b">other\nACGACGACG\n", resume=True)
    predict_piped(reads.read_bytes(), resume=True)
    assert rows_embedded(tmp_path / "out") == rows_embedded(undisturbed) - done
    assert read_tables(tmp_path / "out") == read_tables(undisturbed)


# Finished, or not begun


def test_resuming_a_finished_run_computes_nothing(reads, demo_weights, finished):
    before = parts_of(finished)
    tables = read_tables(finished)
    for path in (finished / "reads_merged").iterdir():
        path.unlink()
    predict(make_config(reads, finished, demo_weights, resume=True))
    assert rows_embedded(finished) == 0
    assert parts_of(finished) == before
    assert read_tables(finished) == tables
    assert "take over an older run" not in (finished / "run.log").read_text()


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [("reads.fa", {"precision": "bf16"}, IdentityMismatchError), ("bad.fa", {}, InputError)],
)
def test_a_refused_command_leaves_no_trace_in_a_finished_run(
    reads, demo_weights, finished, tmp_path, name, settings, error
):
    (tmp_path / "bad.fa").write_text("no header\n")
    (tmp_path / "reads.fa").symlink_to(reads)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(error):
        predict(make_config(tmp_path / name, finished, demo_weights, resume=True, **settings))
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before
    assert read_state(finished / "metrics.jsonl").outcome == "finished"


def test_resuming_what_does_not_exist_begins_it(reads, demo_weights, undisturbed, tmp_path):
    predict(make_config(reads, tmp_path / "new", demo_weights, resume=True))
    assert read_tables(tmp_path / "new") == read_tables(undisturbed)


# Damaged


def test_damaged_and_unfinished_parts_are_set_aside_and_computed_again(
    reads, demo_weights, undisturbed, finished, caplog
):
    before = parts_of(finished)
    cut_off, changed, unmarked = (
        finished / "checkpoints" / name
        for name in (
            "dna/part-00000-000001.h5",
            "protein/part-00000-000002.h5",
            "protein/part-00000-000004.h5",
        )
    )
    num_rows = sum(rows_in(part) for part in (cut_off, changed, unmarked))
    os.truncate(cut_off, cut_off.stat().st_size - 100)
    content = bytearray(changed.read_bytes())
    content[-50] ^= 1
    changed.write_bytes(content)
    unmarked.with_name(f"{unmarked.name}.done").unlink()

    with caplog.at_level(logging.WARNING):
        predict(make_config(reads, finished, demo_weights, resume=True))
    endings = {cut_off: "damaged", changed: "damaged", unmarked: "unfinished"}
    for part, ending in endings.items():
        assert len(re.findall(f"{part}: .*set aside as {part.name}.{ending}", caplog.text)) == 1
        assert part.with_name(f"{part.name}.{ending}").exists()
        del before[str(part.relative_to(finished))]
    assert before.items() <= parts_of(finished).items()
    assert rows_embedded(finished) == num_rows
    assert read_tables(finished) == read_tables(undisturbed)


def rows_in(part: Path) -> int:
    return json.loads(part.with_name(f"{part.name}.done").read_text())["num_rows"]


# Of another run


@pytest.fixture
def changes(demo_weights, tmp_path, reads):
    """Settings that make another run of it, and what the message says of each."""
    others = make_demo_weights(tmp_path / "other_weights", seed=1)
    more = tmp_path / "more.fa"
    more.write_text(reads.read_text() + ">one_more\nACGACG\n")
    short = str(Path(demo_weights["model_path"]).with_name("300_model.safetensors"))
    return {
        "input": ((more,), [], "another run: the input has changed: its bytes"),
        "min-length": (
            (reads,),
            ["--min-length=60"],
            "another run: --min-length-bp is 60 now and was 0 there",
        ),
        "precision": ((reads,), ["--precision=bf16"], "precision is bf16 now and was fp32"),
        "chunk length": (
            (reads,),
            ["--model-type=300", f"--model-path={short}"],
            "chunk length bp is 300 now and was 500",
        ),
        "DNA weights": (
            (reads,),
            [f"--dna-weights={others['dna_weights']}"],
            r"checkpoints/dna/part.*weights identity is sha256:\w+ now",
        ),
        "protein weights": (
            (reads,),
            [f"--protein-weights={others['protein_weights']}"],
            r"checkpoints/protein/part.*weights identity is sha256:\w+ now",
        ),
    }


def test_another_run_is_not_continued(changes, reads, demo_weights, undisturbed, finished):
    before = read_tree(finished / "checkpoints")
    for inputs, options, message in changes.values():
        command = ["predict", *inputs, "-o", finished, "--resume"]
        command += [*predict_options(demo_weights), *options]
        result = CliRunner().invoke(main, list(map(str, command)))
        assert result.exit_code == 1
        assert re.search(message, result.stderr)
        assert "Give another output directory (-o), start again with --force" in result.stderr
        assert read_tree(finished / "checkpoints") == before
    predict(make_config(reads, finished, demo_weights, resume=True))
    assert rows_embedded(finished) == 0
    assert read_tables(finished) == read_tables(undisturbed)


def read_tree(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_damaged_frame_store_is_built_again(reads, demo_weights, undisturbed, finished, caplog):
    frames = finished / "checkpoints/frames"
    whole = read_tree(frames)
    for name in ("headers.text", "records.text", "representatives_protein.int64"):
        content = bytearray((frames / name).read_bytes())
        content[len(content) // 2] ^= 1
        (frames / name).write_bytes(content)
    predict(make_config(reads, finished, demo_weights, resume=True))
    assert "headers.text, records.text, representatives_protein.int64 changed" in caplog.text
    assert rows_embedded(finished) == 0
    assert read_tree(frames) == whole
    assert read_tables(finished) == read_tables(undisturbed)
