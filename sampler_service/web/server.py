"""The HTTP server: where it listens, how it starts and stops."""

from __future__ import annotations

import os
import socket
import threading
import time

import uvicorn

from sampler_client.config import Timeouts
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.factories import find_factory
from sampler_service.web.previews import Looks, Previews
from sampler_service.web.recorder import Recorder
from sampler_service.web.routes import make_app
from sampler_service.web.sharing import SharingClient

START_S = 10.0

ASK_S = 5.0
"""deadline of a call to the service: a person waits for it, or Prometheus does"""


class WebServer:
    """A started server of the page; `port` is the one it listens on.

    Args:
        service: "host:port" of the gateway.
        host: interface to listen on.
        port: 0 takes a free one.
        previews: the operator's "package.module:factory" of previews; empty: there is none.
        looks: (dataset) -> source of previews where the operator has none; see `Previews`.

    Raises:
        ConfigError: the port is in use, or there is no such factory.
        Unavailable: it does not start.
    """

    def __init__(
        self, service: str, *, host: str, port: int, previews: str = "", looks: Looks = lambda _: None
    ) -> None:
        factories = [find_factory("--previews", previews)] if previews else []
        source = Previews(*factories, looks)
        listening = listen(host, port)
        self.port: int = listening.getsockname()[1]
        self._client = SharingClient(service, timeouts=Timeouts(call_s=ASK_S))
        self.recorder = Recorder(self._client)
        config = uvicorn.Config(
            make_app(self._client, self.recorder, source),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="page", daemon=True
        )
        self._thread.start()
        until = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise Unavailable(f"the page on {host}:{self.port} did not start within {START_S:g} s")
            time.sleep(0.01)

    def stop(self, grace_s: float = 10.0) -> None:
        """Answer what was asked, for two seconds at most, and listen no more; wait `grace_s` for that."""
        self._server.should_exit = True
        self._thread.join(timeout=grace_s)
        self.recorder.stop()
        self._client.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the port is in use, or the host not this machine's.
    """
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"can't show the page on {host}:{port} ({why}): the port is in use or the address is not this machine's; "
            "choose another with --page-port, 0 for a free one, or leave the page out with --no-page"
        ) from None
