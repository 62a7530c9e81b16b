"""Where the processes of a launch on one machine meet: a store that only this machine can reach."""

from __future__ import annotations

import socket

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

LOOPBACK = "virnucpro-loopback"
"""The name by which torch's launcher finds this rendezvous (`--rdzv-backend`)."""

_ADDRESS = "127.0.0.1"


def register_loopback() -> None:
    """Make the rendezvous known to torch's launcher; a second call changes nothing."""
    rendezvous_handler_registry.register(LOOPBACK, _LoopbackRendezvous)


class _LoopbackRendezvous(RendezvousHandler):
    """Meets with nobody: one launcher starts all processes, which use its store.

    torch's own rendezvous listens on all interfaces, and the store asks nobody for a secret.
    """

    def __init__(self, params: RendezvousParameters) -> None:
        self._run_id = params.run_id
        self._store: Store | None = None
        self._port = 0

    def get_backend(self) -> str:
        return LOOPBACK

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        if self._store is None:
            listener = socket.create_server((_ADDRESS, 0))
            self._port = listener.getsockname()[1]
            self._store = TCPStore(
                _ADDRESS,
                self._port,
                is_master=True,
                wait_for_workers=False,
                # From here on, the store owns the socket.
                master_listen_fd=listener.detach(),
            )
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_ADDRESS, self._port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True
