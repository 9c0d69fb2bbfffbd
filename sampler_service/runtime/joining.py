"""This process becomes part of a Ray cluster: of one of its own, or of the one at an address."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from sampler_service.errors import ConfigError, Unavailable

EMBEDDED_STORE_BYTES = 256 * 1024 * 1024
"""object store of an embedded cluster: calls carry arrays of some megabytes at most"""

OLDEST_RAY = (2, 55)

REACH_S = 5.0
"""within which a cluster to be joined must take a connection"""

JOIN_S = 30.0
"""within which it must let us in: one that was just started takes connections before its first node is there"""
JOIN_PAUSE_S = 0.5

TOKEN_ADVICE = "set RAY_AUTH_MODE=token here, and RAY_AUTH_TOKEN_PATH to a file with the token that its nodes have"

SETTINGS = 4
"""type of the frame by which HTTP/2, and so gRPC, begins"""


def connect(address: str | None, namespace: str) -> None:
    """Join the cluster at `address`, or start one when it is None.

    Raises:
        ConfigError: the Ray that is installed here is too old.
        Unavailable: nobody is there, or it can't be joined from here; the message says what to do.
    """
    _check_version()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": True, "logging_level": "warning"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": EMBEDDED_STORE_BYTES}
    else:
        options |= {"address": address}
        _knock(address)
    until = time.monotonic() + JOIN_S
    while True:
        try:
            ray.init(**options)
            return
        except AuthenticationError as error:
            ray.shutdown()
            raise Unavailable(
                f"the Ray cluster at {address!r} asks for a token: {error.message}; {TOKEN_ADVICE}"
            ) from error
        except Exception as error:  # Ray raises all kinds; that a node of its own did not start is a plain one
            ray.shutdown()
            if isinstance(error, ConnectionError) and time.monotonic() < until:
                time.sleep(JOIN_PAUSE_S)
                continue
            said = " ".join(str(error).split())
            raise Unavailable(
                f"no Ray cluster at {address!r} that can be joined: {said}; {_advice(said, address)}"
            ) from error


def _advice(said: str, address: str | None) -> str:
    """What to do about what Ray said."""
    if "Version mismatch" in said:
        return "install the same versions of Ray and Python here as on the cluster's nodes"
    if "No node info found" in said:
        return f"this machine is no node of that cluster: first `ray start --address={address}` here"
    if "Failed to connect" in said:  # all that Ray says of a token that is wrong, or that it was not told to send
        return f"a server answers there: if it asks for a token, {TOKEN_ADVICE}"
    return "start one with `ray start --head`"


def _check_version() -> None:
    installed = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if installed < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise ConfigError(
            f"ray {ray.__version__} is installed, {oldest} is the oldest that serves: pip install '.[service]'"
        )


def _knock(address: str) -> None:
    """Raise Unavailable when nobody listens at "host:port", or somebody who is no gRPC server, as
    Ray's are: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise Unavailable(
                    f"no Ray cluster at {address!r}: somebody else listens there; Ray's own port is 6379 unless it was "
                    "given another, see `ray status`"
                )
    except OSError as error:
        raise Unavailable(f"no Ray cluster at {address!r}: {error}; start one with `ray start --head`") from error


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether a server greets as HTTP/2 has it: its settings come first, in a frame of type 4."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0)))
    frame = b""
    try:
        while len(frame) < 4:
            more = connection.recv(9)
            if not more:
                return False
            frame += more
    except (TimeoutError, ConnectionError):
        return False
    return frame[3] == SETTINGS
