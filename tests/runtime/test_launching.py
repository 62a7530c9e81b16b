"""The commands that start a process for each GPU themselves; here on CPUs, with --num-processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

from tests.runs import (
    VIRNUCPRO,
    distinct_rows,
    let_compute,
    on_a_terminal,
    parts_of,
    predict_options,
    read_tables,
    rows_of,
    write_reads,
)
from virnucpro import EmbedConfig, PredictConfig, embed, predict
from virnucpro.cli.main import main
from virnucpro.errors import Terminated, UsageError, VirnucproError
from virnucpro.runtime import launching

pytestmark = pytest.mark.slow

HOW_TO_GO_ON = "; finished work is kept: run the same command with --resume to continue\n"

launch = pytest.mark.launch


# How many


@pytest.mark.parametrize(
    ("num_gpus", "device", "num_processes", "gpus", "expected"),
    [
        (0, "auto", None, None, 1),
        (1, "auto", None, None, 1),
        (4, "auto", None, None, 4),
        (4, "cuda", None, None, 4),
        (4, "cuda", 2, None, 2),
        (3, "auto", None, "0,1,2", 3),
        (1, "auto", None, "2", 1),
        (4, "auto", 1, None, 1),
        (4, "cuda:2", None, None, 1),
        (4, "cpu", None, None, 1),
        (4, "cpu", 6, None, 6),
        (0, "auto", 3, None, 3),
    ],
)
def test_one_process_for_each_gpu(monkeypatch, num_gpus, device, num_processes, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert launching.choose_num_processes(device, num_processes, gpus) == expected


@pytest.mark.parametrize(
    ("num_gpus", "device", "num_processes", "gpus", "message"),
    [
        (2, "auto", 3, None, "3 processes need a GPU each, and this machine shows 2"),
        (0, "cuda", 2, None, "this machine shows 0; start fewer, or give --device cpu"),
        (4, "cuda:1", 2, None, "device cuda:1 is a single one"),
        (2, "auto", None, "0,1,5", "--gpus 0,1,5: torch finds only 2 of these GPUs"),
        (0, "auto", None, "0", "--gpus 0: torch finds no NVIDIA GPU here"),
    ],
)
def test_gpus_that_are_not_there(monkeypatch, num_gpus, device, num_processes, gpus, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(UsageError, match=message):
        launching.choose_num_processes(device, num_processes, gpus)


@pytest.mark.parametrize(
    ("visible", "cuda", "expected"),
    [
        (None, "13.0", 4),
        ("0,2", "13.0", 2),
        ("3", "13.0", 1),
        # CUDA alone knows what it makes of these; torch asks it, and says 7 here.
        ("0,9", "13.0", 7),
        ("1,1", "13.0", 7),
        ("GPU-1a", "13.0", 7),
        ("", "13.0", 7),
        (None, None, 7),
    ],
)
def test_gpus_are_counted_without_torch(monkeypatch, visible, cuda, expected):
    """No machine of the tests has a driver, so its number stands here."""
    monkeypatch.setattr(launching, "ask_driver", lambda: 4)
    monkeypatch.setattr(launching, "read_torch_build", lambda: {"cuda": cuda})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launching.choose_num_processes("auto", None, None) == expected


@pytest.mark.parametrize(
    "mark",
    [{"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"ACCELERATE_MIXED_PRECISION": "no"}],
    ids=["one_of_several", "one_alone"],
)
def test_inside_a_launch_nothing_is_started(monkeypatch, tmp_path, mark):
    for name, value in mark.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("virnucpro.cli.main._SECONDS_BEFORE_OTHERS_SPEAK", 0)
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    (tmp_path / "m.pth").touch()
    arguments = ["predict", str(tmp_path / "a.fa"), "-p", str(tmp_path / "m.pth")]
    result = CliRunner().invoke(main, [*arguments, "--device=cpu", "--num-processes=3"])
    assert result.exit_code == 2
    num_launched = mark.get("WORLD_SIZE", "1")
    assert f"this is a launch of {num_launched} already; leave the option out" in result.stderr


# How it ends


@pytest.mark.parametrize(
    ("exit_codes", "expected"),
    [
        ([0, 0], 0),
        ([1], 1),
        ([0, 143, 3], 3),
        ([2, 1], 2),
        ([1, 4], 4),
        ([143, 4], 4),
        ([1, 143], 1),
        ([1, -15], 1),
        ([130, 143], KeyboardInterrupt),
        ([143, 143], Terminated),
        ([-9, 1], VirnucproError),
        ([1, -9], VirnucproError),
    ],
)
def test_the_exit_code_is_that_of_the_one_who_took_down_the_others(exit_codes, expected):
    by_rank = dict(enumerate(exit_codes))
    if isinstance(expected, int):
        assert launching._find_exit_code(by_rank) == expected
    else:
        with pytest.raises(expected):
            launching._find_exit_code(by_rank)


# Launches


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    return write_reads(tmp_path_factory.mktemp("inputs") / "reads.fa", 120)


@pytest.fixture(scope="module")
def one_process(reads, demo_weights, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("one_process") / "out"
    predict(PredictConfig(inputs=reads, output_dir=output_dir, device="cpu", **demo_weights))
    return output_dir


def start(command: str, *arguments: object, **extra) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*VIRNUCPRO, command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **extra,
    )


@launch
def test_two_launches_at_once_of_a_file_and_of_standard_input(
    reads, demo_weights, one_process, tmp_path
):
    options = ["--num-processes=2", "--num-workers=3", *predict_options(demo_weights)]
    of_file = start("predict", reads, "-o", tmp_path / "file", *options)
    with reads.open() as data:
        of_stdin = start("predict", "-", "-o", tmp_path / "stdin", *options, stdin=data)
    for process in (of_file, of_stdin):
        printed, messages = process.communicate()
        assert process.returncode == 0, messages
        assert messages.count("--num-workers has no effect any more") == 1
        assert printed.count("results: ") == 1
    for name, stem in (("file", "reads"), ("stdin", "stdin")):
        found = read_tables(tmp_path / name)
        wanted = read_tables(one_process)
        assert {file.replace(stem, "reads"): text for file, text in found.items()} == wanted
        assert '"num_processes": 2' in (tmp_path / name / "run.json").read_text()


@launch
def test_embed(reads, demo_weights, tmp_path):
    settings = {"backend": "dnabert-s", "weights": demo_weights["dna_weights"], "device": "cpu"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    # So few tokens that there are several batches.
    options += ["--batch-tokens=300", "--num-processes=2"]
    several = start("embed", reads, "-o", tmp_path / "several.h5", *options)
    embed(EmbedConfig(input=reads, output_path=tmp_path / "one.h5", batch_tokens=300, **settings))
    _, messages = several.communicate()
    assert several.returncode == 0, messages
    assert (tmp_path / "several.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@launch
def test_an_error_is_told_once_and_nothing_else(demo_weights, tmp_path):
    config = tmp_path / "home/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    # What a user may have set up for other work.
    config.write_text(
        "{distributed_type: MULTI_GPU, num_machines: 2, num_processes: 16, machine_rank: 1, "
        'main_process_ip: 10.0.0.9, gpu_ids: "7", mixed_precision: fp16, debug: true}'
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    # Left out, torch's launcher would set it, and say so.
    del environment["OMP_NUM_THREADS"]
    (tmp_path / "broken.fa").write_text(">a\nACGT\n>b\nAC!T\n")
    options = ["-o", tmp_path / "out", "--num-processes=2", *predict_options(demo_weights)]
    process = start("predict", tmp_path / "broken.fa", *options, env=environment)
    _, messages = process.communicate()
    assert process.returncode == 1
    device, rule, opened, error = messages.splitlines()
    assert "computing on cpu" in device
    assert rule.startswith("frame rule: open")
    assert opened.startswith("open models: ")
    assert error.startswith("Error: ")
    assert "position 3, which is not a nucleotide letter" in error


@launch
def test_signals_reach_all_and_what_is_done_is_kept(demo_weights, tmp_path):
    reads = write_reads(tmp_path / "reads.fa", 2000)
    output_dir = tmp_path / "out"
    options = [reads, "-o", output_dir, "--resume", "--num-processes=2"]
    # Small batches make a run that is slow enough to be ended on its way.
    options += ["--dnabert-batch-size=100", "--esm-batch-size=100", *predict_options(demo_weights)]
    kept: dict[str, float] = {}
    for number, code, message in (
        (signal.SIGINT, 130, f"Error: interrupted{HOW_TO_GO_ON}"),
        (signal.SIGTERM, 143, f"Error: terminated{HOW_TO_GO_ON}"),
        (signal.SIGKILL, 1, r"Error: process [01] was killed \(SIGKILL\), often because memory"),
    ):
        process = start("predict", *options)
        wait_until_embedding(output_dir / "run.log", process)
        family = psutil.Process(process.pid).children(recursive=True)
        (family[-1] if number == signal.SIGKILL else process).send_signal(number)
        _, messages = process.communicate()
        assert process.returncode == code, messages
        assert re.search(message, messages)
        assert "Traceback" not in messages
        assert psutil.wait_procs(family, timeout=1)[1] == []
        assert kept.items() <= parts_of(output_dir).items()
        kept = parts_of(output_dir)
        assert kept
    settings = {
        "dna_batch_tokens": 100,
        "protein_batch_tokens": 100,
        "device": "cpu",
    } | demo_weights
    predict(PredictConfig(inputs=reads, output_dir=output_dir, resume=True, **settings))
    assert kept.items() <= parts_of(output_dir).items()
    for alphabet in ("dna", "protein"):
        assert sorted(rows_of(output_dir, alphabet)) == distinct_rows(output_dir, alphabet)


def wait_until_embedding(log_path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until one more run than before has begun to embed, and has computed a little."""
    before = num_passes(log_path)
    while num_passes(log_path) == before:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    let_compute(process, 0.4)


def num_passes(log_path: Path) -> int:
    return log_path.read_text().count(" of up to ") if log_path.exists() else 0


@launch
def test_a_person_is_asked_before_and_not_again(reads, demo_weights, tmp_path):
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "records.tsv").write_text("old")
    options = ["--num-processes=2", "--no-progress", *predict_options(demo_weights)]
    arguments = ["-m", "virnucpro", "predict", str(reads), "-o", str(output_dir), *options]
    code, seen = on_a_terminal(*arguments, answer="y")
    assert code == 0
    assert seen.count("Overwrite the results in it (other files stay)? [y/N]") == 1
    assert (output_dir / "records.tsv").read_text().startswith("record_id\t")
