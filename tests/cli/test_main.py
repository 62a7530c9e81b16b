from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import MISSING
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

from tests.runs import REPOSITORY, on_a_terminal
from virnucpro import config
from virnucpro.backend import registry
from virnucpro.backend.interface import BackendInfo, Requirement
from virnucpro.backend.registry import BackendListing
from virnucpro.cli.main import main
from virnucpro.cli.options import ConfigArgument, ConfigOption, make_config
from virnucpro.cli.predict import predict_command
from virnucpro.cli.starting import settle_output
from virnucpro.config import PredictConfig
from virnucpro.config.settings_file import command_keys, read_settings
from virnucpro.errors import (
    BackendError,
    IncompleteError,
    MemoryExhaustedError,
    OutputError,
    OutputExistsError,
    ProcessError,
    WeightsError,
)


def walk(command, *words):
    """Yield the words of a command and of all below it, joined, and each command."""
    yield " ".join(words), command
    if isinstance(command, click.Group):
        for name in command.list_commands(None):
            yield from walk(command.get_command(None, name), *words, name)


COMMANDS = dict(walk(main))

pytestmark = pytest.mark.usefixtures("fasta")


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    """Make the working directory one that holds a.fa and b.fa."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.fa"
    path.write_text(">one first\nACGTACGT\n>two\nACGNNN\n")
    path.with_name("b.fa").write_bytes(path.read_bytes())
    return path


@pytest.fixture
def run(monkeypatch):
    """Run the program in this process, outside any launch of several."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    # --gpus changes it, and it is to be put back afterwards.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda *args, **extra: CliRunner().invoke(main, [str(arg) for arg in args], **extra)


def config_of(line: str, *, before: str = "") -> PredictConfig:
    words = [*shlex.split(line), *shlex.split(before)]
    return make_config(predict_command.make_context("predict", words), PredictConfig)


def start(*args, **extra) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "virnucpro", *map(str, args)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **extra,
    )


# How it is started


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--citation",
        "--version",
        "models list",
        "predict --help",
        "embed --help",
        "check-precision --help",
        "frames --help",
        "backends",
    ],
)
def test_torch_is_not_imported_for(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "virnucpro", *command.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "virnucpro.cli.main" in imported
    assert not imported & {"torch", "accelerate"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["-m virnucpro", "virnucpro"])
def test_ways_to_start(how, repository):
    done = subprocess.run(
        [sys.executable, *how.split(), "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository,
    )
    assert done.stdout.startswith("virnucpro 0.")
    assert f", torch {torch.__version__} for " in done.stdout


@pytest.mark.slow
def test_python_does_not_look_for_unused_objects_at_the_end(repository):
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        "from virnucpro.cli.main import main; main(['backends'])"
    )
    # Without the tests' own sitecustomize.py, which does the same.
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    # What is registered first runs last.
    assert done.stdout.endswith("True\n")


def test_citation_names_every_work_as_text_and_as_bibtex(run, repository):
    software = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    version = run("--version").stdout.split()[1].rstrip(",")
    text, bibtex = run("--citation").stdout.split("\n\n@", maxsplit=1)
    message, *citations = text.split("\n\n")
    entries = [parse_bibtex(f"@{entry}") for entry in bibtex.split("\n\n@")]
    assert message == software["message"]
    works = [software, *software["references"]]
    for work, citation, entry in zip(works, citations, entries, strict=True):
        assert f". {work['title']}. " in citation
        assert entry["title"] == f"{{{work['title']}}}"
        assert len(entry["author"].split(" and ")) == len(work["authors"])
        assert entry.get("doi") == work.get("doi")
        assert work.get("doi", version) in citation
    assert entries[0]["note"] == f"Version {version}"
    assert entries[0]["author"] == "{The virnucpro developers}"
    assert citations[2] == (
        "Zhou Z, Wu W, Ho H, Wang J, Shi L, Davuluri RV, Wang Z, Liu H (2025). DNABERT-S: "
        "pioneering species differentiation with species-aware DNA embeddings. "
        "Bioinformatics 41:i255-i264. https://doi.org/10.1093/bioinformatics/btaf188"
    )
    assert entries[3] == {
        "author": entries[3]["author"],
        "title": "{Evolutionary-scale prediction of atomic-level protein structure with a language "
        "model}",
        "journal": "Science",
        "volume": "379",
        "number": "6637",
        "year": "2023",
        "pages": "1123--1130",
        "doi": "10.1126/science.ade2574",
    }


def parse_bibtex(entry):
    """Return the fields of one entry."""
    head, *lines, end = entry.splitlines()
    assert re.fullmatch(r"@(article|misc)\{\w+,", head)
    assert end == "}"
    return dict(re.fullmatch(r"  (\w+) = \{(.*)\},", line).groups() for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_80_columns(run, command, option):
    result = run(*command.split(), option, terminal_width=80)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    # click cuts a summary that does not fit.
    assert not re.search(r"^  .*\.\.\.$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_has_a_name_that_the_page_lacks(command, repository):
    documented = (repository / "docs/command-line.md").read_text(encoding="utf-8")
    options = COMMANDS[command].params
    names = [name for one in options for name in (*one.opts, *one.secondary_opts)]
    missing = [
        name
        for name in names
        if name.startswith("--") and not re.search(rf"`{name}[` ]", documented)
    ]
    assert not missing


# How it ends


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict --colour red a.fa", "No such option"),
        ("backends -q", "'-q'. Put it before the command: virnucpro -q backends"),
        ("models list -l x.log", "Put it before the command: virnucpro -l models"),
        ("predict", "Missing argument 'INPUT...'"),
        ("predict missing.fa", "'missing.fa' does not exist"),
        ("predict a.fa -m 400", "'400' is not one of '300', '500', 'mini', 'custom'"),
        ("predict a.fa -m custom", "custom needs a classifier"),
        ("predict a.fa --threshold 2", "--threshold 2.0: wanted a number from 0 to 1"),
        (
            "predict a.fa",
            "500_model.pth: no such classifier; get it and its models with `virnucpro models ",
        ),
        ("predict a.fa --gpus 0-3", "wanted numbers with commas between"),
        ("predict a.fa --v1-attention --attention sdpa", "give one of the two"),
        ("predict a.fa --threshold high", "--threshold 'high': wanted a number from 0 to 1"),
        ("predict a.fa --num-processes 2.5", "'2.5': wanted a whole number, at least 1"),
        ("-c a.fa predict a.fa", "a.fa, line 1: cannot be read as YAML"),
        ("-l no/where.log backends", "no/where.log: cannot be written"),
        (
            "predict a.fa -p x.pth",
            "x.pth: no such classifier; give the path of a classifier with -p, or -m mini",
        ),
        ("check-precision a.fa", "500_model.pth: no such classifier"),
        ("check-precision a.fa --sample 0", "--num-records 0: wanted a whole number, at least 1"),
        ("embed a.fa --backend esm2 -o a.h5", "Missing option '--weights'"),
        ("predictt a.fa", "No such command 'predictt'. Did you mean 'predict'?"),
        ("verify out", "Did you mean 'checkpoints verify' or 'models verify'?"),
        ("generate-config", "Did you mean 'utils generate-config'?"),
        ("pred a.fa", "No such command 'pred'. Did you mean 'predict'?"),
        ("a.fa -m mini", "No such command 'a.fa'. Did you mean 'virnucpro predict a.fa'?"),
        ("predict a.fa -m mini --relaxed --threshold 0.4", "--relaxed and --threshold both decide"),
        ("predict a.fa -m mini --dna-backend toy", "model type mini is for the backends dnabert-s"),
        ("predict a.fa -m 300", "300_model.pth: no such classifier"),
        (
            "predict a.fa -m 300 --dna-weights dnabert-s --protein-weights esm2-650m",
            "`virnucpro models download 300 dnabert-s esm2-650m`",
        ),
        ("predict a.fa -m 300", "or -m mini -e 300 for the small model"),
        ("export a.fa --to npz -o x", "a.fa: is a file; wanted the directory of a run"),
    ],
)
def test_wrong_usage_is_2(run, fasta, line, message):
    result = run(*line.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreadable_input_is_1(run, tmp_path):
    (tmp_path / "broken.fa").write_text("no header\n")
    result = run("utils", "validate", "broken.fa")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: broken.fa, line 1: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BackendError("esm2 is broken"), 1, "Error: esm2 is broken\n"),
        (MemoryExhaustedError("give a smaller batch"), 4, "Error: give a smaller batch\n"),
        (MemoryError(), 4, "memory is used up"),
        (
            OSError(28, "No space left on device", "a.h5"),
            1,
            "Error: a.h5: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "Error: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(run, monkeypatch, error, code, message):
    def fail():
        raise error

    monkeypatch.setattr(registry, "describe_backends", fail)
    result = run("backends")
    assert (result.exit_code, "Traceback" in result.stderr) == (code, False)
    assert message in result.stderr


TOP_LEVEL = [words for words in COMMANDS if words and " " not in words]
RUNS = ("embed", "predict", "train")


@pytest.mark.parametrize("words", TOP_LEVEL)
@pytest.mark.parametrize(
    ("error", "keeps_work"),
    [
        (MemoryExhaustedError("use another device"), True),
        (IncompleteError("use another device"), True),
        (ProcessError("take less"), True),
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "No space left on device", "a"), True),
        (OSError(errno.EACCES, "Permission denied", "a"), False),
        (OutputError("a: cannot be written"), False),
        (WeightsError("no weights"), False),
    ],
)
def test_only_commands_that_can_continue_advise_it(run, monkeypatch, words, error, keeps_work):
    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(COMMANDS[words], "make_context", fail)
    result = run(words)
    more = "; finished work is kept: run the same command with --resume to continue\n"
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith(more) == (words in RUNS and keeps_work)
    assert ("--resume" in result.stderr) == (words in RUNS and keeps_work)
    assert result.exit_code == getattr(error, "exit_code", 4 if error.args == () else 1)


def test_what_several_commands_share_names_no_option_that_some_lack():
    for floor in ("embedding", "scoring", "training"):
        for path in (REPOSITORY / "virnucpro" / floor).rglob("*.py"):
            assert "--resume" not in path.read_text(encoding="utf-8"), path


def test_a_bug_is_called_one(run, monkeypatch):
    monkeypatch.setattr(registry, "describe_backends", lambda: [None])
    result = run("backends")
    assert result.exit_code == 1
    assert "This is a bug in virnucpro; please report it" in result.stderr
    assert "Traceback" in result.stderr


def test_verbose_shows_where_an_error_comes_from(run, fasta):
    assert "Traceback" in run("-v", "predict", fasta).stderr


def test_quiet_and_log_file(run, fasta, tmp_path):
    assert run("-q", "-l", "all.log", "predict", fasta, "-w", "4").exit_code == 2
    log = (tmp_path / "all.log").read_text()
    assert "--num-workers has no effect any more" in log
    assert "no such classifier" in log
    refused = run("-l", fasta, "predict", fasta).stderr
    assert refused.startswith(f"Error: {fasta}: exists and does not begin as a log")
    quiet = run("predict", fasta, "--quiet", "-w", "4").stderr
    assert quiet.startswith("Error: 500_model.pth: no such classifier")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_signals_end_it_with_their_exit_code(number, code, message):
    process = start("utils", "validate", "-")
    # It has come to its input when it takes more than a pipe holds.
    process.stdin.write(">a\nACGT\n" * 50_000)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 143, "terminated"),
    ],
)
def test_signals_end_it_while_it_imports(tmp_path, fasta, number, code, message):
    # As modules in C do, this one loses exceptions.
    module = "import time\nprint(flush=True)\ntry: time.sleep(60)\nexcept BaseException: pass\n"
    (tmp_path / "torch.py").write_text(module)
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": search}
    process = start("predict", "a.fa", "-m", "mini", env=variables, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(number)
    _, messages = process.communicate(timeout=30)
    more = "finished work is kept: run the same command with --resume to continue"
    assert (process.returncode, messages) == (code, f"Error: {message}; {more}\n")


@pytest.mark.slow
def test_nohup_lets_it_go_on_when_the_terminal_closes():
    # What nohup does; an ignored signal stays ignored in the program that starts.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("utils", "validate", "-", stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.stdin.write(">a\nACGT\n" * 50_000)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(">b\nACGT\n")
    assert "50,001" in output


@pytest.mark.slow
def test_a_run_whose_terminal_closes_says_so_in_its_log(tmp_path):
    letters = random.Random(0).choices("ACGT", k=200_000)
    (tmp_path / "a.fa").write_text(f">a\n{''.join(letters)}\n")
    terminal, inner = os.openpty()
    # The terminal belongs to the session of a shell, as at a desk.
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, termios; "
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.orig_argv[:1] + "
            "'-m virnucpro predict a.fa -m mini --device cpu -o out'.split())",
        ],
        cwd=tmp_path,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    shown = b""
    while b"find stretches" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    process.wait(timeout=60)
    *_, last = (tmp_path / "out" / "run.log").read_text().splitlines()
    # The second where the signal met an import.
    assert re.search("ERROR .*: (ended by Terminated|terminated; finished work is kept: .*)$", last)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_without_standard_streams(tmp_path, processes):
    """As some schedulers start programs."""
    letters = random.Random(0).choices("ACGT", k=700)
    (tmp_path / "a.fa").write_text(f">a\n{''.join(letters)}\n")
    command = [sys.executable, "-m", "virnucpro", "predict", "a.fa", "-m", "mini", "-o", "out"]
    command += ["--device", "cpu", "--num-processes", str(processes), "--no-report"]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, cwd=tmp_path, check=False).returncode == 0
    *_, last = (tmp_path / "out" / "run.log").read_text().splitlines()
    assert "scores and tables: " in last
    assert (tmp_path / "out" / "records.tsv").read_text().count("\n") == 2


@pytest.mark.slow
def test_a_working_directory_that_was_removed_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-m", "virnucpro", "doctor", "--quick"]
    line = f"rmdir {tmp_path / 'gone'} && {shlex.join(command)}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path / "gone", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: the working directory cannot be used (No such file")


@pytest.mark.slow
def test_a_closed_pipe_is_no_trouble(tmp_path):
    (tmp_path / "same.fa").write_text("".join(f">{n}\nACGT\n" for n in range(25_000)) * 2)
    reading, writing = os.pipe()
    os.close(reading)
    process = start("utils", "validate", tmp_path / "same.fa", "-e", 50_000, stdout=writing)
    os.close(writing)
    _, errors = process.communicate()
    assert errors == ""


# predict's options


def test_every_option_of_the_fork_is_accepted():
    config = config_of(
        "a.fa -m 300 -p m.pth -e 250 -o out -d cpu -b 8 -w 2 -k --resume -f --no-progress "
        "--dnabert-batch-size 9 --esm-batch-size 10 --parallel --gpus 0,1 -t 4 --verbose "
        "--skip-checkpoint-validation --force-resume --dataloader-workers 3 --pin-memory "
        "--no-expandable-segments --cache-clear-interval 0 --no-cuda-streams --persistent-models "
        "--v1-fallback --v1-attention"
    )
    assert config == PredictConfig(
        inputs=("a.fa",),
        model_type="300",
        model_path=Path("m.pth"),
        chunk_length_bp=250,
        output_dir=Path("out"),
        device="cpu",
        keep_intermediate=True,
        resume=True,
        force=True,
        dna_batch_tokens=9,
        protein_batch_tokens=10,
        skip_checkpoint_validation=True,
        dataloader_workers=3,
        pin_memory=True,
        expandable_segments=False,
        cache_clear_interval=0,
        attention="eager",
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.fa", {}),
        ("a.fa b.fa -o out", {"inputs": ("a.fa", "b.fa"), "output_dir": Path("out")}),
        ("- -o out", {"inputs": ("-",), "output_dir": Path("out")}),
        ("a.fa -d 1", {"device": "cuda:1"}),
        ("a.fa --force-resume", {"resume": True}),
        ("a.fa --threads 2 --cuda-streams --quiet", {}),
        ("a.fa --merge-threads 2 --no-persistent-models --num-workers 1", {}),
        (
            "a.fa --dna-backend d --protein-backend p --dna-weights v --protein-weights w "
            "--precision bf16 --attention sdpa --min-length 150 --threshold 0.7",
            {
                "dna_backend": "d",
                "protein_backend": "p",
                "dna_weights": "v",
                "protein_weights": "w",
                "precision": "bf16",
                "attention": "sdpa",
                "min_length_bp": 150,
                "threshold": 0.7,
            },
        ),
    ],
)
def test_options_become_settings(line, expected):
    assert config_of(line) == PredictConfig(**{"inputs": "a.fa"} | expected)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "prediction: {sequences_per_file: 8, models: {300: three.pth, 500: five.pth}}\n"
        "features: {esm: {toks_per_batch: 100}}\n"
    )
    config = config_of("a.fa -m 300 --esm-batch-size 256", before="-c s.yaml")
    assert config.protein_batch_tokens == 256
    assert config.sequences_per_file == 8
    assert config.resolved_model_path == Path("three.pth")
    assert config.dna_batch_tokens is None


@pytest.mark.parametrize("where", ["before", "after"])
def test_every_command_reads_the_settings_file(run, where, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "frames: {output: frames.tsv, expected-length: 3}\n"
        "utils: {validate: {max-errors: 0}}\n"
        "embed: {backend: toy, weights: w, output-path: a.h5, device: gpu}\n"
    )

    def run_with_file(command, *words):
        start = ["-c", "s.yaml", *command] if where == "before" else [*command, "-c", "s.yaml"]
        return run(*start, *words)

    assert run_with_file(["frames"], "a.fa").exit_code == 0
    assert (tmp_path / "frames.tsv").read_text().splitlines()[1].startswith("one_chunk_1F1\tACG\tT")
    assert "... and 1 more" in run_with_file(["utils", "validate"], "a.fa").stdout
    assert "... and" not in run_with_file(["utils", "validate"], "a.fa", "-e", "1").stdout
    assert "device 'gpu': wanted auto" in run_with_file(["embed"], "a.fa").stderr


def test_the_keys_of_the_fork_stand_behind_those_of_the_command(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "predict: {device: cpu, model-type: 300}\n"
        "device: {default: cuda}\n"
        "prediction: {sequences_per_file: 8, models: {300: three.pth, 500: five.pth}}\n"
    )
    config = config_of("a.fa", before="-c s.yaml")
    assert (config.device, config.sequences_per_file) == ("cpu", 8)
    assert config.model_path == Path("three.pth")


def test_an_option_without_meaning_says_so_once_and_only_when_given(run, fasta):
    assert "any more" not in run("predict", fasta).stderr
    errors = run("predict", fasta, "-w", "4", "-t", "2", "--cuda-streams").stderr
    assert errors.count(" has no effect any more: ") == 3
    assert errors.count("--num-workers") == 1


# What lies in the output directory already


@pytest.fixture
def occupied(fasta):
    directory = fasta.parent / "a_predictions"
    directory.mkdir()
    (directory / "records.tsv").touch()
    fasta.with_name("500_model.pth").touch()
    return directory


def test_without_a_terminal_existing_results_are_an_error(run, occupied):
    result = run("predict", "a.fa")
    assert result.exit_code == 2
    assert "a_predictions exists; give --resume to continue" in result.stderr
    assert "--force to overwrite the results in it (other files stay)" in result.stderr


def test_only_the_main_process_of_a_launch_looks(occupied, monkeypatch):
    config = PredictConfig(inputs="a.fa")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OutputExistsError):
        settle_output(config, occupied, used=True, may_ask=True)
    monkeypatch.setenv("RANK", "1")
    assert settle_output(config, occupied, used=True, may_ask=True) is config


@pytest.mark.slow
def test_on_a_terminal_the_user_is_asked(occupied):
    code, seen = on_a_terminal("-m", "virnucpro", "predict", "a.fa", answer="n")
    assert (
        "a_predictions exists; --resume would continue the run in it. "
        "Overwrite the results in it (other files stay)? [y/N]" in seen
    )
    assert code == 0
    assert (occupied / "records.tsv").exists()


@pytest.mark.slow
def test_the_end_of_the_input_is_no_answer(occupied):
    code, seen = on_a_terminal("-m", "virnucpro", "predict", "a.fa", answer="\x04")
    assert code == 130
    assert "Error: interrupted; nothing was changed" in seen
    assert (occupied / "records.tsv").exists()


@pytest.mark.slow
def test_a_yes_means_force(occupied):
    program = (
        "from virnucpro.cli.starting import *\n"
        "config = PredictConfig(inputs='a.fa')\n"
        "print(settle_output(config, Path('a_predictions'), used=True, may_ask=True).force)"
    )
    assert on_a_terminal("-c", program, answer="y")[1].endswith("True\n")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", "--quiet", "--no-progress"])
def test_progress_is_for_terminals_and_those_who_want_it(option, tmp_path):
    program = (
        "from pathlib import Path\n"
        "from virnucpro.cli import options, predict, progress, starting\n"
        "from virnucpro.config import LaunchConfig\n"
        "from virnucpro.runtime.monitoring import Monitor, PassStatus\n"
        f"path, argv = Path({str(tmp_path)!r}, 'metrics.jsonl'), ['a.fa', *{option.split()}]\n"
        "with predict.predict_command.make_context('predict', argv) as context:\n"
        "    launch = options.make_config(context, LaunchConfig)\n"
        "    wanted = starting.wants_progress(context, launch)\n"
        "    with progress.shown_progress(path, wanted=wanted), Monitor(path) as monitor:\n"
        "        status = PassStatus('DNA embeddings', 5000, 60, 10)\n"
        "        status.count_batch(num_rows=1234, num_tokens=30, cost=30)\n"
        "        monitor.begin_pass(status)\n"
    )
    code, seen = on_a_terminal("-c", program, answer="")
    assert code == 0
    assert ("DNA embeddings" in seen) == (not option)
    assert ("1,234 of 5,000" in seen and " 50.0 %" in seen) == (not option)
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert piped.stderr == b""


# backends


def test_backends_lists_those_that_cannot_be_used_with_their_reason(run, monkeypatch):
    esm2 = BackendInfo("esm2", "protein", None, 1026, "mean", linear_layers=("fc1", "fc2"))
    toy = BackendInfo("toy", "dna", 4, None, "sum")
    needing = BackendInfo("x", "dna", 4, None, "sum", needs=(Requirement("no-such", "x[big]"),))
    reason = "ModuleNotFoundError: no module named 'torch_of_another_kind', which it imports " * 2
    listings = [
        BackendListing("bad", "bad-plugin", "0.1", None, reason),
        BackendListing("esm2", "virnucpro", "1.0", esm2, None),
        BackendListing("toy", "toy-plugin", "2.0", toy, None),
        BackendListing("x", "x-plugin", "3.0", needing, None),
    ]
    monkeypatch.setattr(registry, "describe_backends", lambda: listings)
    monkeypatch.setenv("COLUMNS", "80")
    result = run("backends")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split() for line in (*lines[:2], *lines[-4:-1])] == [
        ["name", "molecule", "dimension", "package", "version", "status", "trainable"],
        ["bad", "-", "-", "bad-plugin", "0.1", "broken", "-"],
        ["esm2", "protein", "by", "weights", "virnucpro", "1.0", "ok", "yes"],
        ["toy", "DNA", "4", "toy-plugin", "2.0", "ok", "no"],
        ["x", "DNA", "4", "x-plugin", "3.0", "incomplete", "no"],
    ]
    assert " ".join(" ".join(lines[2:-4]).split()) == reason.strip()
    missing = "needs the package no-such, which is not installed: `pip install 'x[big]'`"
    assert lines[-1].strip() == missing
    assert max(map(len, lines)) <= 80
    described = json.loads(run("backends", "--json").stdout)
    assert [entry["status"] for entry in described] == ["broken", "ok", "ok", "incomplete"]
    assert [entry["reason"] for entry in described] == [reason, None, None, missing]
    assert described[1]["dimension"] is None
    assert described[2]["dimension"] == 4
    assert [entry["trainable"] for entry in described] == [None, True, False, False]
    assert [entry["linear_layers"] for entry in described] == [None, ["fc1", "fc2"], [], []]


def test_the_built_in_backends_are_listed(run):
    lines = run("backends").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == [
        *("dnabert-s", "esm2", "fair-esm", "transformers", "transformers-dna")
    ]


def test_the_extras_that_built_in_backends_name_hold_the_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = {}
    for listing in registry.describe_backends():
        for package, install in listing.info.needs if listing.distribution == "virnucpro" else ():
            extra = re.fullmatch(r"virnucpro\[(\w+)\]", install)[1]
            wanted = project["optional-dependencies"][extra]
            assert package in [re.split("[<>=]", requirement)[0] for requirement in wanted]
            found[listing.name] = extra
    assert found == {
        "fair-esm": "reference", "transformers": "transformers", "transformers-dna": "transformers",
    }  # fmt: skip


# utils


def test_the_template_with_every_line_in_use_sets_the_defaults(run):
    assert run("utils", "generate-config", "-o", "s.yaml").exit_code == 0
    path = Path("s.yaml")
    assert read_settings(path, command_keys()) == {}
    path.write_text(re.sub(r"^( *)#(\S)", r"\1\2", path.read_text(), flags=re.MULTILINE))
    found = read_settings(path, command_keys())
    for command in config.COMMANDS:
        for name, option in config.command_options(command).items():
            target = f"{command.replace(' ', '.')}.{name}"
            is_written = not (
                option.is_argument or option.unset or option.default in (None, (), MISSING)
            )
            assert found.pop(target, "nothing") == (option.default if is_written else "nothing")
    assert not found
    assert config_of("a.fa", before="-c s.yaml") == PredictConfig(inputs="a.fa")
    assert run("utils", "generate-config", "-o", "s.yaml").exit_code == 2
    Path("link.yaml").symlink_to("s.yaml")
    path.write_text("")
    assert run("utils", "generate-config", "-o", "link.yaml", "--force").exit_code == 0
    # The link stays, and leads to what is new.
    assert Path("link.yaml").is_symlink()
    assert read_settings(path, command_keys()) == {}
    assert path.stat().st_size


def test_validate_counts(run):
    result = run("utils", "validate", "a.fa")
    assert result.exit_code == 0
    assert [line.split(":")[-1].strip() for line in result.stdout.splitlines()] == [
        "2",
        "6 to 8, 7.0 on average",
        "1",
        "two",
        "0",
        "0",
    ]


def test_validate_names_what_is_wrong(run, tmp_path):
    same = "".join(f">{name}\nACGT\n" for name in "acd")
    (tmp_path / "c.fa").write_text(">a\nACGT\n" * 2 + same * 2 + ">b\n\n")
    result = run("utils", "validate", "c.fa", "-e", "2")
    assert result.exit_code == 1
    assert "Empty:                   1\n  b\n" in result.stdout
    assert "seen before:  5\n  a\n  c\n  ... and 1 more\n" in result.stdout


def test_devices_are_listed(run):
    assert run("utils", "list-devices").stdout.startswith("cpu ")


def test_an_unknown_backend_is_named_before_its_weights(run):
    result = run("profile", "-m", "esm3")
    assert result.exit_code == 1
    assert "No backend is called 'esm3'; installed are: dnabert-s, esm2, " in result.stderr
    assert "Did you mean 'esm2'?" in result.stderr


@pytest.mark.parametrize("words", [name for name, command in COMMANDS.items() if command.callback])
def test_an_empty_value_is_not_the_working_directory(words, run):
    for param in COMMANDS[words].get_params(click.Context(COMMANDS[words])):
        if not isinstance(param, (ConfigOption, ConfigArgument)) or getattr(param, "is_flag", 0):
            continue
        given = [""] if isinstance(param, click.Argument) else [param.opts[-1], ""]
        result = run(*words.split(), *given)
        # A pipeline may say that there is no prefix.
        if param.name == "prefix":
            assert "is empty" not in result.stderr
        else:
            assert (result.exit_code, "it is empty; if a script" in result.stderr) == (2, True)


@pytest.fixture
def pipe():
    """A path as the shell gives it for <(command)."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w"):
        yield f"/dev/fd/{reading}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("predict {} -m mini --fastq -o out", "can be read only once, as standard input or a pipe"),
        ("predict {} -m mini", "standard input or a pipe need an output directory"),
        ("predict {} -m mini -o out --num-processes 2 -d cpu", "be passed on to 2 processes"),
        ("train --viral {} --other b.fa -o head.safetensors", "give files instead of - and of pip"),
    ],
)
def test_what_a_pipe_cannot_do_is_told(options, message, pipe, run):
    result = run(*options.format(pipe).split())
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert not Path("out").exists()
