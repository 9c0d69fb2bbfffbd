"""What a trainer can get wrong, over the real wire: the error has a type, the value and what to do, and nothing
else is disturbed: in every test another run goes on, and gets each of its examples once."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

import sampler_client.client as client_module
from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions, Timeouts
from sampler_client.errors import (
    ConfigError,
    Conflict,
    NotFound,
    ReplyTimeout,
    SamplerError,
    ServiceUnavailable,
    Stale,
    VersionMismatch,
    from_rpc,
)
from sampler_client.session import Session
from sampler_service.config import MOST_EXAMPLES, ServiceConfig
from sampler_service.errors import ConfigError as ServiceConfigError
from sampler_service.planning import Planner
from sampler_service.rpc.server import Server
from sampler_service.service import InProcessService
from sampler_service.types import StratifiedDraw, WeightedDraw
from tests.raw_wire import (
    N,
    RawStream,
    hello,
    open_session,
    raw_channel,
    raw_join,
    report_message,
)
from tests.support import make_config

pytestmark = pytest.mark.usefixtures("bystander")


# --- names and options ---


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.statistics("nope"),
        lambda client: client.fence("nope"),
        lambda client: client.announce_drop("nope"),
        lambda client: client.set_reference("nope", np.zeros(N, np.float32)),
        lambda client: client.join(pb.JoinRequest(run="nope", world_size=1, batch_size=4, lead=4)),
    ],
    ids=["statistics", "fence", "announce_drop", "set_reference", "join"],
)
def test_an_unknown_run_is_named_with_those_that_are_open(client: SamplerClient, call: Callable):
    with pytest.raises(NotFound, match=r"unknown run 'nope'; open are \['bystander'\]; open it first"):
        call(client)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda client: client.explain("bystander", 10**20), f"example_id must be at most {2**63 - 1}, got {10**20}"),
        (lambda client: client.explain("bystander", -1), "example_id must be at least 0, got -1"),
        (lambda client: client.explain("bystander", 1.5), "example_id must be a whole number, got 1.5"),
        (lambda client: client.explain("bystander", 0, neighbours=0), "neighbours must be at least 1, got 0"),
        (lambda client: client.explain("bystander", 0, neighbours=101), "neighbours must be 0 to 100, got 101"),
        (lambda client: client.explain("bystander", 10**9), "example 1000000000 is not one of run 'bystander'"),
        (lambda client: client.examples("bystander", "hardest", count=-1), "count must be at least 1, got -1"),
        (lambda client: client.examples("bystander", "hardest", count=10**10), f"count must be at most {2**32 - 1}"),
        (lambda client: client.examples("bystander", "hardest", count=1001), "count must be 1 to 1000, got 1001"),
    ],
)
def test_a_question_with_a_number_out_of_range_is_refused_by_its_value(
    client: SamplerClient, call: Callable, said: str
):
    with pytest.raises(ConfigError, match=re.escape(said)):
        call(client)


def test_an_unknown_dataset_is_named_with_those_that_are_registered(client: SamplerClient):
    with pytest.raises(NotFound, match=r"unknown dataset 'nope'; registered are \['calm', 'data'\]"):
        client.open_run("run", "nope", RunOptions())


OPTIONS = [
    ({"policy": "nope"}, r"unknown policy 'nope'; choose one of \[.*'shuffle'.*\]"),
    (
        {"policy": "gradient_clustering", "policy_options": (("nope", "1"),)},
        r"no option 'nope'.*it has \['allocation', 'alpha', 'half_life'\]",
    ),
    ({"policy": "gradient_clustering", "policy_options": (("alpha", "7"),)}, r"'alpha' must lie in \[0, 1\], got 7.0"),
    (
        {"policy": "gradient_clustering", "policy_options": (("alpha", "nan"),)},
        r"'alpha' must lie in \[0, 1\], got nan",
    ),
    (
        {"policy": "gradient_clustering", "policy_options": (("alpha", "much"),)},
        r"'alpha' must be a number, got 'much'",
    ),
    (
        {"policy": "gradient_clustering", "policy_options": (("allocation", "best"),)},
        r"'allocation' must be one of .* got 'best'",
    ),
    ({"sketch_dim": 5000}, r"sketch_dim must be 1 to 4096, got 5000"),
    ({"sketch_dtype": "int8"}, r"sketch_dtype must be 'float16' or 'float32', got 'int8'"),
    ({"max_lead": 100_000}, r"max_lead must be 1 to 65536 batches, got 100000"),
    ({"candidates": 65}, r"candidates must be 1 to 64 for each example of a batch, got 65"),
    ({"lease_s": -1.0}, r"lease_s must be positive seconds, got -1"),
    ({"lease_s": float("nan")}, r"lease_s must be positive seconds, got nan"),
    ({"on_lost": "panic"}, r"on_lost must be 'redeliver' or 'drop', got 'panic'"),
    ({"num_clusters": 41}, r"num_clusters 41 is more than the 40 examples of 'data'"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_an_option_that_can_not_be_is_refused_and_leaves_no_run_behind(client: SamplerClient, options, words):
    with pytest.raises(ConfigError, match=words):
        client.open_run("run", "data", RunOptions(**options))
    assert client.runs() == ["bystander"]


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "x" * 201, "run:1"])
def test_a_name_that_is_none_is_refused(client: SamplerClient, name: str):
    with pytest.raises(ConfigError, match=r"run name .* must be 1 to 200 characters"):
        client.open_run(name, "data", RunOptions())
    with pytest.raises(ConfigError, match=r"dataset name .* must be 1 to 200 characters"):
        client.register_dataset(name, N)


@pytest.mark.parametrize("size", [0, -1, MOST_EXAMPLES + 1])
def test_a_dataset_of_an_impossible_size_is_refused(client: SamplerClient, size: int):
    with pytest.raises(ConfigError, match=f"has {size} examples; it must have 1 to"):
        client.register_dataset("big", size)


def test_the_same_name_for_something_else_is_a_conflict_that_names_the_difference(client: SamplerClient):
    with pytest.raises(Conflict, match="'data' is registered with 40 examples, asked for 41"):
        client.register_dataset("data", N + 1)
    client.open_run("run", "data", RunOptions(seed=1))
    with pytest.raises(Conflict, match="seed is 1, asked for 2"):
        client.open_run("run", "data", RunOptions(seed=2))
    assert not client.open_run("run", "data", RunOptions(seed=1)).created


JOINS = [
    ({"batch_size": 41}, r"1 x 41 = 41 examples is larger than dataset 'data' with 40; use a smaller"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"lead": 65}, r"would hold 65 batches .* allows 1 to 64; lower prefetch_factor"),
    ({"lead": 0}, "would hold 0 batches"),
    ({"rank": 2, "world_size": 2}, "got rank 2 of world_size 2"),
    ({"world_size": 0}, "got rank 0 of world_size 0"),
]


@pytest.mark.parametrize(("changes", "words"), JOINS, ids=[str(changes) for changes, _ in JOINS])
def test_a_geometry_that_can_not_be_is_refused(service_address: str, changes, words):
    with pytest.raises(ConfigError, match=words):
        open_session(service_address, **changes)


def test_a_rank_that_is_taken_is_a_conflict_that_names_its_holder(service_address: str, session: Session):
    with pytest.raises(Conflict, match=rf"rank 0 of run 'run' is held by {socket.gethostname()}:\d+ at ipv4:127"):
        open_session(service_address)


# --- sessions and streams ---


def failure(stream: RawStream, address: str) -> SamplerError:
    with pytest.raises(grpc.RpcError) as caught:
        while stream.reply() is not None:
            pass
    return from_rpc(caught.value, "stream", address)


START = pb.BatchRequest(epoch=pb.StartEpoch(epoch=0))
CREDIT = pb.BatchRequest(credit=pb.Credit(count=1))


@pytest.mark.parametrize(
    ("requests", "kind", "words"),
    [
        ([CREDIT], ConfigError, "first request of a batch stream must be hello"),
        ([START], ConfigError, "first request of a batch stream must be hello"),
        ([pb.BatchRequest()], ConfigError, "first request of a batch stream must be hello"),
        ([hello("nonsense")], ConfigError, "'nonsense' is no session; use the one that Join returned"),
        ([hello("")], ConfigError, "'' is no session"),
        ([hello("nope:1")], NotFound, "unknown run 'nope'"),
        ([hello("bystander:1")], NotFound, "run 'bystander' knows no session 'bystander:1'; join again"),
    ],
)
def test_a_stream_that_begins_wrongly_is_refused_in_words(service_address: str, requests, kind, words):
    with raw_channel(service_address) as channel:
        error = failure(RawStream(channel, *requests), service_address)
        assert type(error) is kind
        assert words in str(error)


@pytest.mark.parametrize(
    ("requests", "kind", "words"),
    [
        ([CREDIT], ConfigError, "ask for an epoch before asking for batches"),
        ([START, hello("again")], ConfigError, "one hello"),
        ([pb.BatchRequest(epoch=pb.StartEpoch(skip_examples=N + 1))], ConfigError, "skip_examples is 41, outside"),
        ([pb.BatchRequest(epoch=pb.StartEpoch(population="all"))], ConfigError, "population 'all' was never given"),
    ],
)
def test_a_stream_that_goes_on_wrongly_is_refused_in_words(service_address: str, requests, kind, words):
    with raw_channel(service_address) as channel:
        token = raw_join(channel)
        error = failure(RawStream(channel, hello(token), *requests), service_address)
        assert type(error) is kind and words in str(error)
        good = RawStream(channel, hello(token), START, pb.BatchRequest(credit=pb.Credit(count=4)))
        good.reply()
        assert len(good.batches(4)) == 4, "the session lives on"
        good.cancel()


def test_a_stream_that_is_closed_before_hello_is_refused(service_address: str):
    with raw_channel(service_address) as channel:
        stream = RawStream(channel)
        stream.half_close()
        assert "must be hello" in str(failure(stream, service_address))


def test_a_session_that_was_taken_over_is_stale_in_every_call(service_address: str):
    with raw_channel(service_address) as channel:
        old = raw_join(channel)
        stream = RawStream(channel, hello(old), START)
        stream.reply()
        stream.cancel()
        heir = None
        for _ in range(50):  # until the service has noticed
            try:
                heir = raw_join(channel)
                break
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ALREADY_EXISTS
                time.sleep(0.05)
        assert heir
        error = failure(RawStream(channel, hello(old)), service_address)
        assert isinstance(error, Stale) and "left or taken over; join again" in str(error)
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.ReportsStub(channel).Send(iter([pb.ReportBundle(reports=[report_message(old, [1])])]), timeout=5)
        assert isinstance(from_rpc(caught.value, "send", ""), Stale)
        pb_grpc.RunsStub(channel).Leave(pb.LeaveRequest(session=old), timeout=5)
        good = RawStream(channel, hello(heir), START, CREDIT)
        good.reply()
        assert len(good.batches(1)) == 1
        good.cancel()


# --- the service itself ---


def test_a_port_in_use_is_refused_and_the_one_that_listens_goes_on(client: SamplerClient):
    port = int(client.address.rpartition(":")[2])
    with pytest.raises(ServiceConfigError, match=rf"can't listen on 127.0.0.1:{port}.*the port is in use"):
        Server(InProcessService(), ServiceConfig(port=port))
    assert client.runs() == ["bystander"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpus_per_shard", "at least 0"),
        ("scorer_gpus", "at least 0"),
        ("call_s", "positive seconds"),
        ("shards", "a whole number"),
        ("page_port", "a whole number"),
    ],
)
def test_a_setting_that_is_no_number_is_refused(name: str, words: str):
    with pytest.raises(ServiceConfigError, match=f"{name} must be {words}, got nan"):
        ServiceConfig(**{name: float("nan")})


@pytest.mark.parametrize("name", ["seed", "sketch_dim", "num_clusters", "max_lead", "candidates", "epochs"])
def test_a_run_has_whole_numbers(name: str):
    with pytest.raises(ServiceConfigError, match=f"{name} must be a whole number, got 1.5"):
        make_config(N, **{name: 1.5})
    with pytest.raises(ServiceConfigError, match="fresh_epochs must be at least 0, got nan"):
        make_config(N, fresh_epochs=float("nan"))


@pytest.mark.parametrize(("value", "words"), [(0, "positive, got 0"), ("20", "a number, got '20'")])
def test_a_deadline_is_a_positive_number(value, words: str):
    with pytest.raises(ConfigError, match=f"Timeouts.call_s, in seconds, must be {words}"):
        Timeouts(call_s=value)
    assert Timeouts(call_s=float("inf")).call_s == float("inf")


def test_a_client_newer_than_the_service_is_told_so(client: SamplerClient, monkeypatch: pytest.MonkeyPatch):
    newer = SimpleNamespace(**(vars(wire) | {"PROTOCOL": wire.PROTOCOL + 1}))
    monkeypatch.setattr(client_module, "wire", newer)
    with pytest.raises(VersionMismatch, match=r"client speaks protocol 2, this service \(.*\) up to 1; upgrade"):
        client.register_dataset("data", N)


def test_a_service_that_is_not_there_is_named_within_the_deadline():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ServiceUnavailable, match=f"no service at {address}.*sampler-service up"):
            open_session(address, timeouts=Timeouts(call_s=2.0))
        assert time.monotonic() - start < 3.0


def test_a_service_that_does_not_answer_is_named_when_the_deadline_is_over():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with (
            SamplerClient(address, timeouts=Timeouts(call_s=0.5)) as client,
            pytest.raises((ReplyTimeout, ServiceUnavailable), match=address),
        ):
            client.runs()
        assert time.monotonic() - start < 2.0


# --- rates: what a policy must not say ---


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (WeightedDraw(probability_n=np.array([-0.5, 0.5, 0.5, 0.5])), "weight -0.5 of example 0"),
        (WeightedDraw(probability_n=np.zeros(4)), "all 4 weights are 0"),
        (WeightedDraw(probability_n=np.full(4, np.nan)), "weight nan of example 0"),
        (WeightedDraw(probability_n=np.full(4, 0.5)), "must sum to 1"),
        (StratifiedDraw(stratum_n=np.zeros(4, np.int32), rate_k=np.zeros(1)), "rate 0.0 of stratum 0"),
        (StratifiedDraw(stratum_n=np.arange(4, dtype=np.int32), rate_k=np.array([1.5, -0.5, 0, 0])), "rate -0.5"),
    ],
)
def test_rates_that_are_negative_or_all_zero_are_refused_in_words(rates, words):
    planner = Planner(4, seed=0, drop_last=False)
    planner.start_epoch(0, rates, batch_size=2, world=1)
    with pytest.raises(ServiceConfigError, match=words):
        planner.plan(0, 1, rates)
