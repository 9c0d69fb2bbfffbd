"""A service in this process behind a real gRPC server, and a proxy that breaks connections on demand."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sampler_client.config import Timeouts
from sampler_service.config import ServiceConfig
from sampler_service.rpc.server import Server
from sampler_service.service import LocalService

N = 50
BATCH = 8
STEPS = 7  # of an epoch of N examples, the last one of 2

QUICK = Timeouts(call_s=5, batch_s=5, report_s=5, reconnect_s=5)


class Host:
    """A service that can be stopped, and started again on the same port, with its memory or without."""

    def __init__(self) -> None:
        self.service: LocalService = LocalService()
        self._server: Server | None = None
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def start(self, service: LocalService | None = None) -> None:
        self.service = service or self.service
        self._server = Server(self.service, ServiceConfig(port=self._port))
        self._port = self._server.port

    def stop(self, grace_s: float = 0.0) -> None:
        if self._server is not None:
            self._server.stop(grace_s)
            self._server = None


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
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def proxy(host: Host) -> Iterator[Proxy]:
    proxy = Proxy(host.port)
    yield proxy
    proxy.close()


@pytest.fixture
def plain_loader() -> Callable[..., DataLoader]:
    """A DataLoader over N examples, example i being the number i, with what is given changed."""

    def make(**changes) -> DataLoader:
        dataset = TensorDataset(torch.arange(N))
        return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **changes})

    return make
