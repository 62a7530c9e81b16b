"""How the launchers of several machines meet: `accelerate launch --rdzv_backend virnucpro`.

torch's own rendezvous listens on all interfaces, and its store asks nobody for a secret. This one
listens on the address that the launch names. Only torch imports this module, by an entry point.
"""

from __future__ import annotations

from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from virnucpro.runtime.rendezvous import listen

_NAME = "virnucpro"
_WAIT_SECONDS = 600


def find_rendezvous() -> type[RendezvousHandler]:
    """Return what makes the rendezvous of one launcher."""
    return _Rendezvous


class _Rendezvous(RendezvousHandler):
    """Each launcher is given its number, and number 0 makes the store for the processes of all."""

    def __init__(self, params: RendezvousParameters) -> None:
        rank = params.get_as_int("rank")
        if rank is None:
            raise ValueError(
                "the number of this machine is missing; give --rdzv_conf rank=N, with the N of "
                "--machine_rank"
            )
        self._rank = rank
        self._num_launchers = params.max_nodes
        self._place = parse_rendezvous_endpoint(params.endpoint, 0)
        self._timeout = timedelta(seconds=params.get_as_int("timeout") or _WAIT_SECONDS)
        self._run_id = params.run_id
        self._store: Store | None = None

    def get_backend(self) -> str:
        return _NAME

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        if self._store is None:
            is_host = self._rank == 0
            self._store = TCPStore(
                *self._place,
                world_size=self._num_launchers,
                is_master=is_host,
                timeout=self._timeout,
                # From here on, the store owns the socket.
                master_listen_fd=listen(*self._place) if is_host else None,
            )
        store = PrefixStore(self._run_id, self._store)
        place = RendezvousStoreInfo(*self._place)
        return RendezvousInfo(store, self._rank, self._num_launchers, place)

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
