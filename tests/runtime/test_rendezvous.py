"""Processes of a launch wait for each other for a limited time, and a signal ends the wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.runs import VIRNUCPRO
from virnucpro.runtime.rendezvous import _choose_network

pytestmark = [pytest.mark.slow, pytest.mark.launch]

MEET = """
import sys
from accelerate.utils import gather_object
from virnucpro.config import ComputeConfig
from virnucpro.errors import VirnucproError
from virnucpro.runtime.devices import make_accelerator
print("here", flush=True)
try:
    accelerator = make_accelerator(ComputeConfig(device="cpu", rendezvous_timeout=int(sys.argv[1])))
except VirnucproError as error:
    sys.exit(str(error))
print(gather_object([accelerator.process_index]), flush=True)
accelerator.end_training()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(port: int, rank: int, *command: str) -> subprocess.Popen[str]:
    place = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        command or [sys.executable, "-c", MEET, "60"],
        env=os.environ | place | meeting,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sockets_of_one_machine_stay_on_it(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    _choose_network("127.0.0.1")
    addresses = psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]]
    assert "127.0.0.1" in [address.address for address in addresses]


def test_processes_that_nobody_launched_meet():
    port = free_port()
    early = start(port, 1)
    assert early.stdout is not None
    assert early.stdout.readline() == "here\n"
    time.sleep(1)
    late = start(port, 0)
    for process in (early, late):
        output, errors = process.communicate(timeout=100)
        assert output.endswith("[0, 1]\n"), errors


def test_a_process_that_stays_alone_says_so():
    alone = [start(free_port(), rank, sys.executable, "-c", MEET, "1") for rank in (0, 1)]
    for process, reason in zip(alone, ("1 of 2 processes has", "nobody answers"), strict=True):
        output, errors = process.communicate(timeout=100)
        assert output == "here\n"
        assert reason in errors
        assert "to run alone: unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT;" in errors
        assert "Traceback" not in errors


def test_signals_end_the_wait(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    command = [*VIRNUCPRO, "predict", str(tmp_path / "a.fa"), "-m", "mini", "--device=cpu"]
    ends = {signal.SIGINT: 130, signal.SIGTERM: 143}
    ports = {number: free_port() for number in ends}
    waiting = {
        number: start(port, 0, *command, "-o", str(tmp_path / str(port)))
        for number, port in ports.items()
    }
    for number, process in waiting.items():
        while not listens(ports[number]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        listening = psutil.Process(process.pid).net_connections("inet")
        assert {one.laddr.ip for one in listening if one.status == "LISTEN"} == {"127.0.0.1"}
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == ends[number]
        assert "Traceback" not in errors


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
