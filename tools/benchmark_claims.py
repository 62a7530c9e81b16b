"""Measures how many batches a second processes can claim from one torch.distributed store.

    TORCH_CPP_LOG_LEVEL=ERROR python -m tools.benchmark_claims

The store runs in a process of its own, as in a launch. Client processes call `add`, each over its
own connection, on this machine's loopback. Here the server shares the cores with its clients. On a
cluster it has cores of its own and can do more.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event

import numpy as np
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tools.simulate_scheduling import MODELS

# Forked, because 64 processes that each import torch would be all that is measured.
CONTEXT = multiprocessing.get_context("fork")
HOST = "127.0.0.1"
KEY = "claimed"
TIMEOUT = datetime.timedelta(seconds=60)
SERVERS = {"libuv": True, "legacy": False}
LARGE_CLUSTER = 4096


def serve(use_libuv: bool, port_to: Connection, done: Event) -> None:
    """Serve a store on a free port until `done`."""
    store = TCPStore(
        HOST, 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False, use_libuv=use_libuv
    )
    port_to.send(store.port)
    done.wait(TIMEOUT.total_seconds())


def claim(
    port: int, max_seconds: float, max_claims: int, ready: Barrier, report_to: Connection
) -> None:
    """Claim until time or claims are up; send the claims, when they began and when they ended."""
    store = TCPStore(HOST, port, timeout=TIMEOUT, wait_for_workers=False)
    num_claims = 0
    ready.wait(TIMEOUT.total_seconds())
    began = time.monotonic()
    while num_claims < max_claims and time.monotonic() - began < max_seconds:
        store.add(KEY, 1)
        num_claims += 1
    report_to.send((num_claims, began, time.monotonic()))


def measure_claims(
    num_clients: int, use_libuv: bool, max_seconds: float, max_claims: int
) -> tuple[float, float]:
    """Return (claims a second of all clients together, mean seconds of one claim)."""
    done, ready = CONTEXT.Event(), CONTEXT.Barrier(num_clients)
    receive_port, send_port = CONTEXT.Pipe(duplex=False)
    receive_report, send_report = CONTEXT.Pipe(duplex=False)
    server = CONTEXT.Process(target=serve, args=(use_libuv, send_port, done), daemon=True)
    server.start()
    arguments = (receive_port.recv(), max_seconds, max_claims // num_clients, ready, send_report)
    clients = [
        CONTEXT.Process(target=claim, args=arguments, daemon=True) for _ in range(num_clients)
    ]
    for client in clients:
        client.start()
    reports = [receive_report.recv() for _ in clients]
    done.set()
    for process in (*clients, server):
        process.join()
    num_claims, began, ended = (np.asarray(column) for column in zip(*reports, strict=True))
    rate = num_claims.sum() / (ended.max() - began.min())
    return float(rate), float((ended - began).sum() / num_claims.sum())


def main() -> None:
    """Print the claims a second for each server and number of clients, and what a cluster needs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=2, help="limit of one measurement")
    parser.add_argument("--claims", type=int, default=1_000_000, help="limit of one measurement")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores for server and clients together")
    print(f"{'server':<8} {'clients':>7} {'claims/s':>10} {'ms a claim':>11}")
    for name, use_libuv in SERVERS.items():
        for num_clients in args.clients:
            rate, seconds = measure_claims(num_clients, use_libuv, args.seconds, args.claims)
            print(f"{name:<8} {num_clients:>7} {rate:>10,.0f} {seconds * 1e3:>11.3f}", flush=True)
    print(f"\n{LARGE_CLUSTER:,} H200 would claim, a second:")
    for model in MODELS.values():
        print(f"  {model.name:<10} {LARGE_CLUSTER / model.batch_s:>10,.0f}")


if __name__ == "__main__":
    main()
