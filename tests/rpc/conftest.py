"""A client, a trainer inside an epoch, and a run beside them that nothing may disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sampler_client.client import SamplerClient
from sampler_client.session import Session
from tests.raw_wire import QUICK, N, drain, ids_of, open_session


@pytest.fixture
def bystander(service_address: str) -> Iterator[None]:
    """Another run, in the middle of an epoch when the test begins; it must get each of its examples once."""
    session = open_session(service_address, run="bystander", dataset="calm")
    session.start_epoch(0, 0)
    ids = []
    for _ in range(3):
        batch = session.next()
        assert batch is not None
        ids += ids_of(batch)
        session.done(batch.batch_id)
    yield
    ids += drain(session)
    session.close()
    assert sorted(ids) == list(range(N))


@pytest.fixture
def client(service_address: str) -> Iterator[SamplerClient]:
    with SamplerClient(service_address, timeouts=QUICK) as client:
        client.register_dataset("data", N)
        yield client


@pytest.fixture
def session(service_address: str) -> Iterator[Session]:
    """A trainer inside an epoch; it gets the whole of it whatever the test sends."""
    session = open_session(service_address)
    session.start_epoch(0, 0)
    yield session
    assert sorted(drain(session)) == list(range(N))
    session.close()
