"""How the processes of a launch meet: in a store, after a wait that signals can end."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from contextlib import suppress
from datetime import timedelta

import psutil
import torch.distributed
from torch._C._distributed_c10d import Store, TCPStore

from virnucpro.errors import VirnucproError, count_who, first_line
from virnucpro.runtime.environment import (
    LAUNCH_VARIABLES,
    LISTENER,
    describe_ways_out,
    num_local_processes,
    num_processes,
)

_SECONDS_BEFORE_WARNING = 20.0
_SECONDS_OF_A_TRY = 2.0
_COUNT = "virnucpro/present"

logger = logging.getLogger(__name__)


def wait_for_all(timeout_seconds: float) -> Store | None:
    """Return when all processes of the launch are there, with the store in which they met.

    torch itself would wait in C, deaf to signals. It finds the store again as long as somebody
    holds it.

    Raises:
        VirnucproError: Not all have come in time, or the store cannot be reached.
    """
    if num_processes() == 1 or torch.distributed.is_initialized():
        return None
    meeting = _Meeting(time.monotonic() + timeout_seconds)
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    _choose_network(place[0])
    # As torch decides it (`torch.distributed.rendezvous`).
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = not has_agent and os.environ["RANK"] == "0"
    # The host makes the store. All others must find it first.
    while not is_host:
        try:
            # torch's own attempts fill the screen.
            socket.create_connection(place, _SECONDS_OF_A_TRY).close()
            break
        except OSError as error:
            meeting.wait(f"nobody answers there ({error.strerror or error})")
    try:
        store = TCPStore(
            *place,
            is_master=is_host,
            wait_for_workers=False,
            multi_tenant=not has_agent,
            timeout=timedelta(seconds=_SECONDS_OF_A_TRY),
            master_listen_fd=listen(*place) if is_host else None,
        )
    except torch.distributed.DistError as error:
        raise VirnucproError(f"{meeting.describe()}; {first_line(error)}") from error
    # After a restart by the launcher, the count of the attempt before must not count again.
    key = f"{_COUNT}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    num_present = store.add(key, 1)
    while num_present < num_processes():
        missing = num_processes() - num_present
        meeting.wait(f"{count_who(missing, 'process', 'have', of=num_processes())} not come")
        try:
            # Adding 0 reads the number, and waits for no key.
            num_present = store.add(key, 0)
        except torch.distributed.DistError as error:
            raise VirnucproError(
                f"the main process of the launch has ended ({first_line(error)})"
            ) from error
    return store


def _choose_network(host: str) -> None:
    """Let gloo use the network of this machine that leads to `host`, unless the user chose one.

    By itself it takes that of the machine's own name, which often leads nowhere else.
    """
    # A machine may know itself by a name of the loopback. The last address, of no machine, tells
    # through which network most others are reached.
    for name in (host, "192.0.2.1"):
        with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            # This sends nothing.
            probe.connect((name, 9))
            own = probe.getsockname()[0]
            is_enough = num_local_processes() == num_processes()
            if ipaddress.ip_address(own).is_loopback and not is_enough:
                continue
            for interface, addresses in psutil.net_if_addrs().items():
                if own in (address.address for address in addresses):
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
                    return


def listen(host: str, port: int) -> int | None:
    """Listen on the address that the launch names; return None where torch must listen on all."""
    inherited = os.environ.pop(LISTENER, None)
    # Our own launcher listens there already.
    if inherited is not None:
        return int(inherited)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Many machines call themselves by a name that other machines cannot reach: 127.0.1.1.
        is_own_name = host not in ("localhost", address[0])
        if is_own_name and ipaddress.ip_address(address[0]).is_loopback:
            return None
        return socket.create_server(address[:2], family=family).detach()
    # The address is not of this machine, but leads to it.
    except OSError:
        return None


class _Meeting:
    """Waits in small steps, warns once, and ends."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._warn_at = time.monotonic() + _SECONDS_BEFORE_WARNING

    def describe(self) -> str:
        """Return what the environment asks for, and how to do without."""
        values = {name: os.environ[name] for name in LAUNCH_VARIABLES}
        return (
            f"WORLD_SIZE asks for {values['WORLD_SIZE']} processes (this is RANK "
            f"{values['RANK']}), which meet at {values['MASTER_ADDR']}:{values['MASTER_PORT']}; "
            f"{describe_ways_out(LAUNCH_VARIABLES)}"
        )

    def wait(self, reason: str) -> None:
        """Wait a little.

        Raises:
            VirnucproError: The time is over.
        """
        if time.monotonic() > self._deadline:
            raise VirnucproError(
                f"{reason}: {self.describe()}; if they start slowly, give a longer "
                "--rendezvous-timeout"
            )
        if time.monotonic() > self._warn_at:
            logger.warning("still waiting, %s: %s", reason, self.describe())
            # One warning is enough; the error follows at the deadline.
            self._warn_at = self._deadline
        # Short, because Python handles signals only between two steps.
        time.sleep(0.1)
