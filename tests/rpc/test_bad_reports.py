"""What is wrong with what a trainer reports: refused or counted, in words, and what was sent beside it is applied."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions
from sampler_client.errors import ConfigError, MessageTooLarge, from_rpc
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from tests.raw_wire import N, raw_channel, report_message

pytestmark = pytest.mark.usefixtures("bystander")


def rows(**changes) -> ReportRows:
    values = {"batch_id": 0, "step": 0, "example_ids": np.arange(4), "losses": np.ones(4, np.float32)}
    return ReportRows(**(values | changes))


def test_sketches_of_another_width_are_refused_in_words_and_other_reports_are_applied(session: Session):
    wrong = rows(sketches=np.zeros((4, 5), np.float32))
    with pytest.raises(ConfigError, match="sketches have width 5, run 'run' was opened with sketch_dim 4"):
        for report in (rows(), wrong, rows(example_ids=np.arange(8, 12))):
            session.put(report)
        session.flush()
    session.flush()  # the error may have come from a put
    assert session.client.statistics("run").reported_rows == 8
    session.put(rows())
    session.flush()
    assert session.client.statistics("run").reported_rows == 12
    assert session.reporter.refused == 1


def test_rows_that_are_not_finite_or_unknown_are_counted_and_the_others_are_applied(session: Session):
    losses = np.array([1, np.nan, np.inf, 2, 3], np.float32)
    session.put(rows(example_ids=np.array([0, 1, 2, 3, N]), losses=losses))
    session.flush()
    assert session.reporter.accepted == 2
    assert dict(session.reporter.rejected) == {"nan": 2, "unknown_id": 1}
    assert dict(session.client.statistics("run").rejected_rows) == {"nan": 2, "unknown_id": 1}


MALFORMED = [
    ({"example_ids": b"123"}, "example_ids has 3 bytes, which is no whole number of int64"),
    ({"losses": b"12345"}, "losses has 5 bytes, which is no whole number of float32"),
    ({"losses": bytes(12)}, "losses has 3 values where 4 are needed"),
    ({"norms": bytes(20)}, "norms has 5 values where 4 are needed"),
    ({"sketches": pb.Array(dtype="float64", shape=[4, 4], data=bytes(128))}, "dtype 'float64'; allowed are float16"),
    ({"sketches": pb.Array(dtype="float32", shape=[4, 4], data=bytes(60))}, "15 values where 16 are needed"),
    ({"sketches": pb.Array(dtype="float32", shape=[4, 4], data=bytes(63))}, "63 bytes, which is no whole number"),
    ({"sketches": pb.Array(dtype="float32", shape=[3, 4], data=bytes(48))}, r"shape \(3, 4\) where \(4, d\)"),
    ({"sketches": pb.Array(dtype="float32", shape=[16], data=bytes(64))}, r"shape \(16,\) where \(4, d\)"),
    ({"sketches": pb.Array(dtype="float32", shape=[-4, -4], data=bytes(64))}, "sizes can't be negative"),
    ({"sketches": pb.Array(dtype="float32", shape=[], data=bytes(4))}, r"shape \(\) where"),
    ({"step": 2**63}, "count optimiser steps from 0"),
    ({"example_ids": bytes(8 * (wire.MAX_REPORT_ROWS + 1))}, "65537 rows are more than 65536; send several"),
]


@pytest.mark.parametrize(("changes", "words"), MALFORMED, ids=[words for _, words in MALFORMED])
def test_a_malformed_report_is_refused_in_words_and_those_around_it_are_applied(
    session: Session, service_address: str, changes, words
):
    token = session._stream.session
    bad = report_message(token, [0, 1, 2, 3])
    for name, value in changes.items():
        if name == "sketches":
            bad.sketches.CopyFrom(value)
        else:
            setattr(bad, name, value)
    around = [report_message(token, [i]) for i in range(40)]
    with raw_channel(service_address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.ReportsStub(channel).Send(iter([pb.ReportBundle(reports=[*around[:20], bad, *around[20:]])]), timeout=5)
    error = from_rpc(caught.value, "send", service_address)
    assert isinstance(error, ConfigError)
    with pytest.raises(ConfigError, match=words):
        raise error
    assert session.client.statistics("run").reported_rows == 40


def test_reference_losses_that_do_not_fit_are_refused(client: SamplerClient, service_address: str):
    client.open_run("run", "data", RunOptions(policy="rho_loss"))
    with pytest.raises(ConfigError, match="got 39, run 'run' has 40 examples"):
        client.set_reference("run", np.zeros(N - 1, np.float32))
    with pytest.raises(ConfigError, match="reference loss of example 3 is nan; it must be finite"):
        client.set_reference("run", np.where(np.arange(N) == 3, np.nan, 0).astype(np.float32))
    with raw_channel(service_address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.RunsStub(channel).SetReference(pb.SetReferenceRequest(run="run", losses=b"123"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_refused_before_it_is_sent(session: Session):
    limit = wire.MAX_MESSAGE_BYTES
    with pytest.raises(MessageTooLarge, match=f"has 68000010 bytes, one message may have {limit}"):
        session.client.set_reference("run", np.zeros(17_000_000, np.float32))
    wide = np.zeros((1000, 20_000), np.float32)
    session.put(rows())
    with pytest.raises(MessageTooLarge, match=f"report of batch 7 has 80008000 bytes, one message may have {limit}"):
        session.put(rows(batch_id=7, example_ids=np.arange(1000), losses=None, sketches=wide))
    session.flush()
    assert session.reporter.accepted == 4 and session.reporter.dropped == 0
    big = report_message("s", list(range(1000)), losses=None, sketches=wide)
    with pytest.raises(MessageTooLarge, match="batch 0 has 8000"):
        session.client.send_reports([report_message("s", [1]), big])
