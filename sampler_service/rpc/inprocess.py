"""The calls of the wire without the wire: the same servicers, asked in the caller's own thread.

What a client asks for comes to the same code as behind a server, and errors come back by the same two tables. Messages
are handed over as they are: nothing is made bytes of but arrays, and no socket or thread is opened. The batch stream is
not among the calls: with nothing between the two ends, its credits and reconnections have no purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, cast

import grpc

from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts
from sampler_client.errors import grpc_errors
from sampler_service.config import ServiceConfig
from sampler_service.rpc.server import add_calls
from sampler_service.rpc.status import errors_as_status
from sampler_service.service import Service

ADDRESS = "inproc:0"
"""stands in messages where there would be a host and a port"""


class InProcessClient(SamplerClient):
    """A SamplerClient whose service is in this process.

    Args:
        service: what answers.
        config: how it was made.
        timeouts: deadlines, of which calls that are answered at once need none; see Timeouts.
    """

    def __init__(self, service: Service, config: ServiceConfig, *, timeouts: Timeouts | None = None) -> None:
        super().__init__(ADDRESS, timeouts=timeouts)
        self._calls = _Calls(service, config)

    def channel(self) -> grpc.Channel:
        return cast(grpc.Channel, self._calls)

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} can't be sent to another process: all that it knows is in this one; "
            "processes share a service by its address: `sampler-service up`, or running_service()"
        )


class _Calls:
    """What the generated code takes for a server when it adds handlers, and for a channel when it calls them."""

    def __init__(self, service: Service, config: ServiceConfig) -> None:
        self._handlers: dict[str, Any] = {}
        add_calls(service, config, self)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Other than those that are registered there are none."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Any]:
        return partial(_call, self._handlers[method].unary_unary)

    def stream_unary(self, method: str, **_: Any) -> Callable[..., Any]:
        return partial(_call, self._handlers[method].stream_unary)


def _call(handler: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:  # noqa: ARG001 - it is there
    return handler(request, _Context())


class _Context:
    """What unary calls need of a `grpc.ServicerContext`."""

    def peer(self) -> str:
        return ADDRESS

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise _Refused(code, details)


class _Refused(grpc.RpcError):
    """A call that the service ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@contextmanager
def as_client_errors(what: str) -> Iterator[None]:
    """Ask the service itself, and raise the client's errors where it raises its own.

    Args:
        what: is asked, in words, for messages.
    """
    with grpc_errors(what, ADDRESS), errors_as_status(cast(grpc.ServicerContext, _Context())):
        yield
