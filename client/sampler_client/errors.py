"""What can go wrong, seen from a trainer. One root; every message says what, the value and what to do.

SamplerError
├── ConfigError          an argument the caller must change                        INVALID_ARGUMENT
├── NotFound             no such dataset, run or session: open it first            NOT_FOUND
├── Conflict             the name or rank exists with something that differs       ALREADY_EXISTS
├── Stale                a position, version or call does not fit run or service   FAILED_PRECONDITION
├── Damaged              records at the service are not as they were registered     DATA_LOSS
├── VersionMismatch      client and service speak different versions               UNIMPLEMENTED
├── Busy                 the service is full: retry later                          RESOURCE_EXHAUSTED
├── MessageTooLarge      a message is over the limit (raised before sending)       OUT_OF_RANGE
├── ServiceUnavailable   the service can't be reached: retried, then this          UNAVAILABLE
├── ReplyTimeout         no answer within the deadline                             DEADLINE_EXCEEDED
├── SketchError          a sketch could not be taken from this backward pass       (never on the wire)
├── ScoringError         examples could not be scored, here or by a scorer         (never on the wire)
└── RecordError          a record could not be used; its example is named          (never on the wire)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc


class SamplerError(Exception):
    """Root of every error that this client raises on purpose."""


class ConfigError(SamplerError, ValueError):
    """An argument is wrong; the message names it, its value and what is allowed."""


class NotFound(SamplerError, LookupError):
    """A dataset, run or session that the service does not know."""


class Conflict(SamplerError):
    """The name or rank is taken by something that differs from what was asked for."""


class Stale(SamplerError):
    """A saved position, session or version does not fit the run as it is now; or a call, the service as it was
    started."""


class Damaged(SamplerError):
    """Records at the service are not what was registered: a disk or a file there is at fault."""


class VersionMismatch(SamplerError):
    """The service does not know this call or protocol version: one side is too old."""


class Busy(SamplerError):
    """The service has too much in hand; retry with back-off."""


class MessageTooLarge(SamplerError):
    """A message is larger than the limit both ends have agreed on."""


class ServiceUnavailable(SamplerError, ConnectionError):
    """The service could not be reached within the time given for reconnecting."""


class ReplyTimeout(SamplerError, TimeoutError):
    """The service did not answer within the deadline of the call."""


class SketchError(SamplerError):
    """A gradient sketch could not be taken; the message says which call is missing or which shape is off."""


class ScoringError(SamplerError):
    """The scorer of two-stage selection failed, or did not return one score for each candidate; or the service's
    scorers could not use the published weights or their records."""


class RecordError(SamplerError):
    """A record could not be made into what the training loop takes; the message names its example."""


ERROR_OF_CODE: dict[grpc.StatusCode, type[SamplerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ConfigError,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Stale,
    grpc.StatusCode.DATA_LOSS: Damaged,
    grpc.StatusCode.UNIMPLEMENTED: VersionMismatch,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.OUT_OF_RANGE: MessageTooLarge,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ReplyTimeout,
}
"""The one table between status codes and errors; the service answers with the same codes (`rpc/status.py`)."""


def from_rpc(error: grpc.RpcError, what: str, address: str) -> SamplerError:
    """Translate a failed call into its error.

    Args:
        error: what grpc raised; of a call it has a code and details.
        what: the call in words, such as "open run 'mnist'".
        address: host:port of the service, for the message.
    """
    call: Any = error if hasattr(error, "code") else None  # a `grpc.Call`, or what stands for one in process
    code, details = (call.code(), call.details()) if call else (None, str(error))
    kind = ERROR_OF_CODE.get(code, SamplerError) if code is not None else SamplerError
    if kind is ServiceUnavailable:
        hint = "is `sampler-service up` running there and the port right?"
        return kind(f"{what}: no service at {address} ({details}); {hint}")
    if kind is ReplyTimeout:
        return kind(f"{what}: {address} did not answer in time ({details}); raise Timeouts or look at its log")
    if kind is Busy:
        return kind(f"{what}: {address} has too much in hand ({details}); try again later")
    return kind(f"{what}: {details}")


@contextmanager
def grpc_errors(what: str, address: str) -> Iterator[None]:
    """Run a call and raise this module's error in place of grpc's."""
    try:
        yield
    except grpc.RpcError as error:
        # grpc's own text repeats the details in a page of noise
        raise from_rpc(error, what, address) from None
