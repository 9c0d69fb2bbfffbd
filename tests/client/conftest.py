"""A proxy that breaks connections on demand, and the loaders that are attached."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from sampler_client.config import Timeouts
from tests.served import ServedService

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from sampler_client import RemoteBatches

N = 50
BATCH = 8
STEPS = 7  # of an epoch of N examples, the last one of 2

QUICK = Timeouts(call_s=5, batch_s=5, report_s=5, reconnect_s=5)


def remote(served: ServedService, **changes: Any) -> RemoteBatches:
    """Batches with their records from the data set "numbers" that a server holds."""
    from sampler_client import RemoteBatches  # needs torch, which the tests of the client without it lack

    settings = {
        "run": "run",
        "dataset": "numbers",
        "batch_size": BATCH,
        "policy": "shuffle",
        "rank": 0,
        "world_size": 1,
    }
    return RemoteBatches(served.address, **{**settings, **changes})


class Proxy:
    """Forwards TCP to a port until it is told to cut, which resets every connection; or to refuse new ones."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.refuse = False
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for ends in pairs:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.refuse = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    key.data.sendall(data)


@pytest.fixture
def proxy(served: ServedService) -> Iterator[Proxy]:
    proxy = Proxy(served.port)
    yield proxy
    proxy.close()


@pytest.fixture
def plain_loader() -> Callable[..., DataLoader]:
    """A DataLoader over N examples, example i being the number i, with what is given changed."""
    import torch  # here, so that the tests of the client without torch run without it
    from torch.utils.data import DataLoader, TensorDataset

    def make(**changes) -> DataLoader:
        dataset = TensorDataset(torch.arange(N))
        return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **changes})

    return make
