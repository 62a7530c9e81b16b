"""What docs/clusters.md says, done: two hosts in network namespaces, restarts, a batch job."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.runs import (
    REPOSITORY,
    accelerate_launch,
    distinct_rows,
    let_compute,
    parts_of,
    predict_options,
    read_tables,
    rows_of,
    wait_for,
    wait_until_embedding,
    write_reads,
)
from virnucpro import PredictConfig, predict

pytestmark = pytest.mark.launch

ADDRESSES = ("10.213.5.1", "10.213.5.2")
SMALL_BATCHES = ("--dnabert-batch-size=100", "--esm-batch-size=100")


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    return write_reads(tmp_path_factory.mktemp("inputs") / "reads.fa", 1200)


@pytest.fixture(scope="module")
def one_process(reads, demo_weights, tmp_path_factory) -> dict[str, bytes]:
    output_dir = tmp_path_factory.mktemp("one_process")
    budgets = {"dna_batch_tokens": 100, "protein_batch_tokens": 100}
    settings = {"inputs": reads, "output_dir": output_dir, "device": "cpu"}
    predict(PredictConfig(**settings, **budgets, **demo_weights))
    return read_tables(output_dir)


def start(*command: object, cwd: Path = REPOSITORY, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | environment,
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_embed(output_dir: Path, process: subprocess.Popen[str]) -> None:
    """Wait until batches are computed, some of which are in no part yet."""
    wait_until_embedding(output_dir, process)
    let_compute(process, 0.4)


def assert_complete(output_dir: Path, tables: dict[str, bytes], kept: dict[str, float]) -> None:
    """Make sure that a run ended well, did nothing twice and left alone what was done before."""
    assert read_tables(output_dir) == tables
    assert kept.items() <= parts_of(output_dir).items()
    for alphabet in ("dna", "protein"):
        assert sorted(rows_of(output_dir, alphabet)) == distinct_rows(output_dir, alphabet)


# Two hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two network namespaces and a cable between them, whose end `0` of each name belongs to it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and ip of iproute2")
    names = [f"vnp{os.getpid()}{letter}" for letter in "ab"]
    if subprocess.run(["ip", "netns", "add", names[0]], check=False).returncode:
        pytest.skip("no network namespaces here")
    ip("netns", "add", names[1])
    end, other_end = ([f"{name}0", "netns", name] for name in names)
    ip("link", "add", "name", *end, "type", "veth", "peer", "name", *other_end)
    for name, address in zip(names, ADDRESSES, strict=True):
        ip("-n", name, "address", "add", f"{address}/24", "dev", f"{name}0")
        for device in ("lo", f"{name}0"):
            ip("-n", name, "link", "set", device, "up")
    yield names
    for name in names:
        ip("netns", "del", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def launch_on(
    hosts: list[str], *arguments: object, port: int, second_host: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    """Start a launcher on each host; `second_host` goes before the command of the second one."""
    options = ["--config_file", "accelerate_configs/multi_node.yaml", "--num_processes=2"]
    options += [f"--main_process_ip={ADDRESSES[0]}", f"--main_process_port={port}"]
    options += ["-m", "virnucpro", *map(str, arguments)]
    return [
        start(
            *("ip", "netns", "exec", host, *(second_host if rank else ())),
            *(sys.executable, "-m", "accelerate.commands.launch", f"--machine_rank={rank}"),
            *("--rdzv_backend=virnucpro", f"--rdzv_conf=rank={rank}"),
            *options,
        )
        for rank, host in enumerate(hosts)
    ]


def listening(launcher: subprocess.Popen[str]) -> set[str]:
    """Return the addresses on which a launcher listens, as soon as it does."""
    found: set[str] = set()
    while not found:
        assert launcher.poll() is None, launcher.communicate()[1]
        # Its sockets are in another network namespace, where psutil does not look, and which `ip`
        # enters after its start.
        if Path(f"/proc/{launcher.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            continue
        table = Path(f"/proc/{launcher.pid}/net/tcp").read_text().splitlines()[1:]
        entries = [line.split() for line in table]
        # 0A is the state LISTEN; the address is a number in the machine's order of bytes.
        found = {
            socket.inet_ntoa(bytes.fromhex(entry[1][:8])[::-1])
            for entry in entries
            if entry[3] == "0A"
        }
    return found


@pytest.fixture(scope="module")
def blind_launch(
    hosts, reads, demo_weights, tmp_path_factory
) -> tuple[Path, list[subprocess.Popen[str]]]:
    """An output, and launchers of which the second has another file system there.

    It also has a name of its own. They wait for 15 s, in which other tests run.
    """
    if subprocess.run(["unshare", "--mount", "--uts", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    directory = tmp_path_factory.mktemp("blind")
    hide = 'hostname blind && mount -t tmpfs none "$0" && exec "$@"'
    second_host = ("unshare", "--mount", "--uts", "sh", "-c", hide, str(directory))
    options = ["-o", directory / "out", *predict_options(demo_weights)]
    launchers = launch_on(hosts, "predict", reads, *options, port=29600, second_host=second_host)
    return directory / "out", launchers


@pytest.mark.usefixtures("blind_launch")
def test_two_hosts_give_what_one_process_gives(hosts, reads, demo_weights, one_process, tmp_path):
    options = ["-o", tmp_path / "out", *SMALL_BATCHES, *predict_options(demo_weights)]
    launchers = launch_on(hosts, "predict", reads, *options, port=29500)
    assert listening(launchers[0]) == {ADDRESSES[0]}
    messages = [launcher.communicate()[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], messages
    assert_complete(tmp_path / "out", one_process, kept={})
    ranks = {Path(name).name.split("-")[1] for name in parts_of(tmp_path / "out")}
    assert ranks == {"00000", "00001"}


def test_a_host_that_does_not_see_the_output_is_named(blind_launch):
    output, launchers = blind_launch
    for launcher in launchers:
        _, messages = launcher.communicate()
        assert launcher.returncode != 0
        assert f"Error: {output}: blind (machine 1) cannot see this directory" in messages


# Restarts


def test_a_launch_restarts_and_goes_on(reads, demo_weights, one_process, tmp_path):
    output_dir = tmp_path / "out"
    options = [reads, "-o", output_dir, "--resume", *SMALL_BATCHES, *predict_options(demo_weights)]
    launch, program = accelerate_launch(2), ["-m", "virnucpro", "predict"]
    restarts = ["--max_restarts=1", "--rdzv_backend=c10d"]
    launcher = start(*launch, *restarts, *program, *options, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    let_embed(output_dir, launcher)
    psutil.Process(launcher.pid).children()[1].kill()
    wait_for(lambda: "ended by" in (output_dir / "run.log").read_text(), launcher)
    kept = parts_of(output_dir)
    _, messages = launcher.communicate()
    assert launcher.returncode == 0, messages
    assert_complete(output_dir, one_process, kept)


# SLURM

STAND_INS = {
    # Two nodes, both of them this machine.
    "srun": """
        shift
        for node in 0 1; do SLURM_NODEID=$node "$@" & echo $! >> launchers; done
        wait %1 && wait %2
    """,
    "scancel": "kill -TERM $(cat launchers)",
    "scontrol": '[ "$1" = show ] && echo localhost || echo "$@" > queue',
}


def test_a_batch_job_that_is_stopped_goes_back_into_the_queue(
    reads, demo_weights, one_process, tmp_path
):
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "2",
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/backends",
    }
    command = ["bash", REPOSITORY / "examples/slurm.sh", reads, "-o", tmp_path / "out"]
    command += [*SMALL_BATCHES, *predict_options(demo_weights)]

    first = start(*command, cwd=tmp_path, **job)
    let_embed(tmp_path / "out", first)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode != 0
    assert (tmp_path / "queue").read_text() == f"requeue {os.getpid()}\n"
    kept = parts_of(tmp_path / "out")
    assert kept
    second = start(*command, cwd=tmp_path, **job)
    _, messages = second.communicate()
    assert second.returncode == 0, messages
    assert_complete(tmp_path / "out", one_process, kept)
