"""Targets and groups over the wire: what a trainer gives beside its reports."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions
from sampler_client.errors import ConfigError, NotFound
from tests.raw_wire import N, raw_channel

DIM = 4


@pytest.fixture
def run(client: SamplerClient) -> SamplerClient:
    client.open_run("run", "data", RunOptions(policy="poa", sketch_dim=DIM))
    return client


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_target_and_groups_are_taken(run: SamplerClient, dtype):
    version = run.set_target("run", np.ones((3, DIM), dtype))
    assert run.set_target("run", np.ones((1, DIM), dtype)) > version
    run.set_groups("run", np.arange(N) // 2)


@pytest.mark.parametrize(
    ("sketches", "words"),
    [
        (np.ones((3, DIM)), "dtype 'float64'; allowed are float16, float32"),
        (np.ones((3, 5), np.float32), r"\(m, 4\) for run 'run'; got shape \(3, 5\)"),
        (np.full((2, DIM), np.inf, np.float32), "held-out example 0 is not finite; leave it out"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_in_words(run: SamplerClient, sketches, words):
    with pytest.raises(ConfigError, match=words):
        run.set_target("run", sketches)


def test_groups_that_do_not_fit_are_refused_in_words(run: SamplerClient, service_address: str):
    with pytest.raises(ConfigError, match=f"groups: got 3, run 'run' has {N} examples"):
        run.set_groups("run", np.arange(3))
    for groups, words in (
        (np.arange(N) / 2, rf"whole numbers, .* got float64 of shape \({N},\)"),
        (np.arange(N).reshape(-1, 1), rf"a vector .* got int64 of shape \({N}, 1\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.set_groups("run", groups)
    with raw_channel(service_address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.RunsStub(channel).SetGroups(pb.SetGroupsRequest(run="run", groups=b"123"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(NotFound, match="unknown run 'nope'"):
        run.set_groups("nope", np.arange(N))
