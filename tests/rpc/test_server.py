"""The server around the service: health, draining, reflection, and who may stop it."""

from __future__ import annotations

import queue
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.errors import Busy, NotFound
from sampler_service.config import ServiceConfig
from sampler_service.errors import ConfigError
from sampler_service.rpc.server import CONTROL_THREADS, Server
from sampler_service.rpc.servicer import LOOKS_AT_ONCE, ControlServicer
from sampler_service.service import InProcessService
from sampler_service.views import RunStatistics
from tests.raw_wire import QUICK, RawStream, hello, raw_channel, raw_join
from tests.served import ServedService

SERVICES = ["", *(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_of(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


def test_the_server_and_each_of_its_services_say_that_they_serve(service_address: str):
    assert len(SERVICES) == 7
    with raw_channel(service_address) as channel:
        assert {service: health_of(channel, service) for service in SERVICES} == dict.fromkeys(SERVICES, SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            health_of(channel, "sampler.v1.Nope")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_draining_server_says_first_that_it_serves_no_more_and_ends_open_streams_within_the_grace(
    served: ServedService,
):
    with raw_channel(served.address) as channel:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)
            for name in SERVICES
        ]
        assert {next(watch).status for watch in watches} == {SERVING}
        stream = RawStream(channel, hello(raw_join(channel)), pb.BatchRequest(epoch=pb.StartEpoch(epoch=0)))
        stream.reply()
        idle = RawStream(channel, hello(raw_join(channel, run="other")))
        time.sleep(0.1)
        start = time.monotonic()
        stopping = threading.Thread(target=served.stop, args=(3.0,))
        stopping.start()
        assert {next(watch).status for watch in watches} == {NOT_SERVING}
        assert stream.reply() is None and idle.reply() is None, "they end in good order"
        for watch in watches:
            watch.cancel()
        stopping.join(5)
        assert not stopping.is_alive() and time.monotonic() - start < 3.0
    with SamplerClient(served.address, timeouts=QUICK) as client, pytest.raises(ConnectionError):
        client.runs()


def test_stopping_with_a_stream_that_waits_for_a_lost_trainer_does_not_hang(served: ServedService):
    with raw_channel(served.address) as channel:
        for rank in range(2):
            token = raw_join(channel, rank=rank, world_size=2)
            stream = RawStream(channel, hello(token), pb.BatchRequest(epoch=pb.StartEpoch(epoch=0)))
            stream.reply()
            if rank == 0:
                stream.send(credit=pb.Credit(count=4))
                stream.batches(4)
                stream.cancel()
        stream.send(credit=pb.Credit(count=100))
        start = time.monotonic()
        served.stop(3.0)
        assert time.monotonic() - start < 3.0


def test_a_port_may_be_taken_again_at_once(served: ServedService):
    for _ in range(3):
        served.restart()
    with SamplerClient(served.address, timeouts=QUICK) as client:
        assert client.runs() == []


class SlowService(InProcessService):
    """Each fence, and each call for statistics, waits for its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = threading.Semaphore(0)

    def fence(self, run: str) -> int:
        self.turns.acquire()
        return super().fence(run)

    def statistics(self, run: str, *, detail: bool = False) -> RunStatistics:
        self.turns.acquire()
        return super().statistics(run, detail=detail)


def test_a_server_whose_threads_are_all_taken_says_that_it_is_busy_and_answers_when_one_is_free():
    slow = SlowService()
    served = ServedService(slow, max_trainers=1)
    with raw_channel(served.address) as channel, SamplerClient(served.address, timeouts=QUICK) as client:
        fence = pb_grpc.ReportsStub(channel).Fence
        calls = [fence.future(pb.FenceRequest(run="run")) for _ in range(1 + CONTROL_THREADS)]
        time.sleep(0.3)
        with pytest.raises(Busy, match=f"list runs: {served.address} has too much in hand"):
            client.runs()
        threading.Timer(0.2, slow.turns.release).start()
        assert client.runs() == []
        slow.turns.release(len(calls))
        assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}
    served.stop()


def first_of(calls: list[grpc.Future], count: int) -> list[grpc.Future]:
    """The first so many that end."""
    ended: queue.SimpleQueue[grpc.Future] = queue.SimpleQueue()
    for call in calls:
        call.add_done_callback(ended.put)
    return [ended.get(timeout=10) for _ in range(count)]


def test_those_who_look_never_take_all_threads_and_one_too_many_is_refused():
    slow = SlowService()
    served = ServedService(slow, max_trainers=1)
    with raw_channel(served.address) as channel, SamplerClient(served.address, timeouts=QUICK) as client:
        ask = pb_grpc.StatisticsStub(channel).Get
        calls = [ask.future(pb.GetStatisticsRequest(run="run")) for _ in range(1 + CONTROL_THREADS)]
        refused = first_of(calls, len(calls) - LOOKS_AT_ONCE)
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all("8 others look at this service right now" in call.details() for call in refused)
        assert client.runs() == [], "there is a thread for it"
        slow.turns.release(LOOKS_AT_ONCE + 1)
        assert {call.code() for call in calls if call not in refused} == {grpc.StatusCode.NOT_FOUND}
        with pytest.raises(NotFound):
            client.statistics("run")
    served.stop()


def reflected(address: str) -> set[str]:
    with raw_channel(address) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
        return {service.name for service in reply.list_services_response.service}


def test_reflection_is_off_unless_asked_for(service_address: str):
    with pytest.raises(grpc.RpcError) as caught:
        reflected(service_address)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_lists_every_service_when_it_is_on():
    server = Server(InProcessService(), ServiceConfig(port=0, reflection=True))
    try:
        assert reflected(f"127.0.0.1:{server.port}") >= set(SERVICES[1:])
    finally:
        server.stop(0.0)


def test_a_stop_asked_for_on_this_machine_is_passed_on():
    asked = threading.Event()
    server = Server(InProcessService(on_stop=asked.set), ServiceConfig(port=0))
    try:
        with SamplerClient(f"127.0.0.1:{server.port}", timeouts=QUICK) as client:
            client.stop_service()
        assert asked.is_set()
    finally:
        server.stop(0.0)


class Aborted(Exception):
    pass


class Caller:
    """A call's context, as far as Control looks at it."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self.code: grpc.StatusCode | None = None

    def peer(self) -> str:
        return self._peer

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise Aborted(details)


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:5000", "ipv4:127.8.0.1:1", "ipv6:%5B::1%5D:5000", "unix:/tmp/socket"])
def test_a_stop_from_this_machine_is_allowed(peer: str):
    asked = threading.Event()
    ControlServicer(InProcessService(on_stop=asked.set)).Stop(pb.StopRequest(), Caller(peer))
    assert asked.is_set()


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.7:5000", "ipv6:%5Bfe80::1%5D:5000", "ipv6:[2001:db8::1]:1", "", "odd"])
def test_a_stop_from_elsewhere_is_refused(peer: str):
    asked, caller = threading.Event(), Caller(peer)
    with pytest.raises(Aborted, match="only on the service's own machine"):
        ControlServicer(InProcessService(on_stop=asked.set)).Stop(pb.StopRequest(), caller)
    assert not asked.is_set() and caller.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "setting",
    [{"port": -1}, {"port": 65536}, {"shards": 0}, {"max_trainers": 0}, {"message_bytes": 2**25 + 1}, {"scorers": -1}],
)
def test_a_setting_of_the_service_that_can_not_be_is_refused(setting: dict[str, int]):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=rf"{name} must be .*got {value}"):
        ServiceConfig(**setting)


def test_an_unforeseen_error_is_told_and_logged(served: ServedService, caplog: pytest.LogCaptureFixture):
    def broken(run: str, *, detail: bool) -> None:
        raise RuntimeError("a slip of ours")

    served.service.statistics = broken
    with raw_channel(served.address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.StatisticsStub(channel).Get(pb.GetStatisticsRequest(run="run"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "RuntimeError: a slip of ours" in caught.value.details()
    assert "unforeseen error" in caplog.text
