"""Every error has a status code, and both ends agree which."""

from __future__ import annotations

import inspect

import grpc
import pytest

import sampler_client.errors as client_errors
import sampler_service.errors as service_errors
from sampler_client.errors import ERROR_OF_CODE, from_rpc
from sampler_service.rpc.status import CODE_OF_ERROR

NEVER_ON_THE_WIRE = {"SketchError", "ScoringError", "RecordError"}
RAISED_BY_GRPC_OR_BEFORE = {"ReplyTimeout", "VersionMismatch", "MessageTooLarge"}
"""errors of the client for which the service has no class"""


def errors_of(module) -> dict[str, type[Exception]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, module.SamplerError) and kind is not module.SamplerError
    }


def test_every_error_of_the_service_has_a_code():
    assert set(CODE_OF_ERROR) == set(errors_of(service_errors).values())
    assert len(set(CODE_OF_ERROR.values())) == len(CODE_OF_ERROR)


def test_the_client_turns_each_code_into_the_error_of_the_same_name():
    for kind, code in CODE_OF_ERROR.items():
        name = "ServiceUnavailable" if kind is service_errors.Unavailable else kind.__name__
        assert ERROR_OF_CODE[code].__name__ == name


def test_every_error_of_the_client_has_a_code_or_is_never_on_the_wire():
    named = {kind.__name__ for kind in ERROR_OF_CODE.values()}
    assert named == set(errors_of(client_errors)) - NEVER_ON_THE_WIRE
    of_service = {ERROR_OF_CODE[code].__name__ for code in CODE_OF_ERROR.values()}
    assert named - of_service == RAISED_BY_GRPC_OR_BEFORE


def test_every_error_is_drawn_in_the_tree_at_the_head_of_its_module():
    for module in (client_errors, service_errors):
        assert all(name in (module.__doc__ or "") for name in errors_of(module))


class Failed(grpc.RpcError, grpc.Call):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self):
        return self._code

    def details(self):
        return "in detail"


for _name in grpc.Call.__abstractmethods__:
    if _name not in Failed.__dict__:
        setattr(Failed, _name, lambda _self: None)
Failed.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_failed_call_says_what_was_asked_and_what_was_answered(code):
    error = from_rpc(Failed(code), "open run 'r'", "host:1")
    assert isinstance(error, ERROR_OF_CODE.get(code, client_errors.SamplerError))
    assert "open run 'r'" in str(error) and "in detail" in str(error)
