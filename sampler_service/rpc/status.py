"""Errors of the service as gRPC status codes. The client has the same table the other way round."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc

from sampler_service.errors import Busy, ConfigError, Conflict, Damaged, NotFound, SamplerError, Stale, Unavailable

log = logging.getLogger(__name__)

CODE_OF_ERROR: dict[type[Exception], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    Stale: grpc.StatusCode.FAILED_PRECONDITION,
    Damaged: grpc.StatusCode.DATA_LOSS,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


def abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with the code of its error; what nobody foresaw is INTERNAL and logged with its trace."""
    for kind, code in CODE_OF_ERROR.items():
        if isinstance(error, kind):
            context.abort(code, str(error))
    if not isinstance(error, SamplerError):
        log.error("unforeseen error in a call", exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    raise AssertionError("abort returns never")


@contextmanager
def errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    """Run a handler and turn what it raises into the status of the call."""
    try:
        yield
    except Exception as error:
        # context.abort raises a bare Exception of its own to end the handler; it has set the code already.
        if type(error) is Exception and not error.args:
            raise
        abort(context, error)
