"""The batch stream over a real connection: credit, order, reconnection, and what becomes of a trainer that is gone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.errors import Busy
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.errors import Unavailable
from sampler_service.rpc.batches import SPARE_STREAMS
from sampler_service.rpc.blocks import encode_batch, encode_batches
from sampler_service.rpc.server import CONTROL_THREADS
from sampler_service.service import InProcessService
from sampler_service.types import Batch, Rows
from tests.raw_wire import N, RawStream, drain, hello, ids_of, open_session, raw_channel, raw_join
from tests.served import ServedService

START = pb.BatchRequest(epoch=pb.StartEpoch(epoch=0))


@pytest.fixture
def channel(service_address: str) -> Iterator[grpc.Channel]:
    with raw_channel(service_address) as channel:
        yield channel


def credit(count: int, *acked: int) -> pb.BatchRequest:
    return pb.BatchRequest(credit=pb.Credit(count=count, acked=acked))


def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_no_more_batches_come_than_there_is_credit_for(channel: grpc.Channel):
    stream = RawStream(channel, hello(raw_join(channel)), START)
    started = stream.reply()
    assert (started.epoch_start.epoch, started.epoch_start.num_steps) == (0, 10)
    assert started.epoch_start.policy == "shuffle"
    assert stream.quiet()
    stream.send(credit=pb.Credit(count=3))
    first = stream.batches(3)
    assert len(first) == 3 and stream.quiet()
    assert [b.step for b in first] == [0, 1, 2] and [b.lead for b in first] == [0, 1, 2]
    stream.cancel()


def test_credit_beyond_the_lead_waits_until_batches_are_done(channel: grpc.Channel):
    stream = RawStream(channel, hello(raw_join(channel, lead=2)), START, credit(10))
    stream.reply()
    first = stream.batches(2)
    assert len(first) == 2 and stream.quiet()
    stream.send(credit=pb.Credit(acked=[first[0].batch_id]))
    assert len(stream.batches(1)) == 1 and stream.quiet()
    stream.cancel()


def test_an_epoch_ends_once_and_the_next_begins_on_the_same_stream(channel: grpc.Channel):
    stream = RawStream(channel, hello(raw_join(channel, lead=20)))
    last = 0
    for epoch in range(2):
        stream.send(epoch=pb.StartEpoch(epoch=epoch))
        stream.send(credit=pb.Credit(count=20))
        assert stream.reply().epoch_start.epoch == epoch
        batches = stream.batches(10)
        assert sorted(i for b in batches for i in ids_of(b)) == list(range(N))
        assert batches[0].batch_id > last
        last = batches[-1].batch_id
        assert stream.reply().epoch_end.epoch == epoch and stream.quiet(0.2)
        stream.send(credit=pb.Credit(acked=[b.batch_id for b in batches]))
    stream.half_close()
    assert stream.reply() is None


def test_a_stream_opened_again_goes_on_with_the_epoch_from_what_was_received(channel: grpc.Channel):
    token = raw_join(channel)
    stream = RawStream(channel, hello(token), START, credit(4))
    stream.reply()
    sent = stream.batches(4)
    stream.cancel()
    # Two were received, and the first of them is done; the others were lost on the way.
    again = RawStream(channel, hello(token, last_batch_id=sent[1].batch_id, held=[sent[1].batch_id]), credit(3))
    more = again.batches(3)
    assert [b.batch_id for b in more[:2]] == [b.batch_id for b in sent[2:]]
    ids = [i for b in sent[:2] + more for i in ids_of(b)]
    held = [b.batch_id for b in [sent[1], *more]]
    while True:
        again.send(credit=pb.Credit(count=len(held), acked=held))
        reply = again.reply()
        if reply.WhichOneof("reply") == "epoch_end":
            break
        ids += [i for b in reply.block.batch for i in ids_of(b)]
        held = [b.batch_id for b in reply.block.batch]
    assert sorted(ids) == list(range(N))
    again.cancel()


def test_a_second_stream_of_a_session_displaces_the_first(channel: grpc.Channel, served: ServedService):
    token = raw_join(channel)
    first = RawStream(channel, hello(token), START, credit(2))
    first.reply()
    got = first.batches(2)
    second = RawStream(channel, hello(token, last_batch_id=got[-1].batch_id, held=[b.batch_id for b in got]))
    until(lambda: served.service.statistics("run").trainers == 1)
    first.send(credit=pb.Credit(count=2))
    second.send(credit=pb.Credit(count=2))
    assert [b.step for b in second.batches(2)] == [2, 3]
    first.cancel()
    time.sleep(0.2)
    assert served.service.statistics("run").trainers == 1, "the end of the first must not mark the trainer as gone"
    second.cancel()
    until(lambda: served.service.statistics("run").trainers == 0)


def test_the_last_word_of_a_trainer_that_closes_is_heard(channel: grpc.Channel, served: ServedService):
    stream = RawStream(channel, hello(raw_join(channel)), START, credit(2))
    stream.reply()
    batches = stream.batches(2)
    stream.send(credit=pb.Credit(acked=[b.batch_id for b in batches]))
    stream.half_close()
    assert stream.reply() is None
    assert served.service.statistics("run").lead == 0


def test_a_trainer_that_pauses_keeps_what_it_has_and_is_done_with_it_when_it_leaves_so(
    channel: grpc.Channel, served: ServedService
):
    stays = open_session(served.address, world_size=2)
    token = raw_join(channel, rank=1, world_size=2, lead=8, seed=0, sketch_dtype="float16")
    stays.start_epoch(0, 0)
    pauses = RawStream(channel, hello(token), START, credit(6))
    pauses.reply()
    ids = [i for b in pauses.batches(5) for i in ids_of(b)]
    assert pauses.reply().WhichOneof("reply") == "epoch_end"
    pauses.send(pause=pb.Pause())
    pauses.half_close()
    assert pauses.reply() is None
    assert [rank.held for rank in served.service.statistics("run").ranks if rank.rank == 1] == [5]
    leave = pb_grpc.RunsStub(channel).Leave
    leave(pb.LeaveRequest(session=token, done=True), timeout=5)
    assert sorted(ids + drain(stays)) == list(range(N))
    stays.close()


def test_what_a_trainer_held_that_is_gone_comes_to_the_other_one(service_address: str):
    options = {"lease_s": 0.4}
    stays = open_session(service_address, world_size=2, options=options)
    ids: list[int] = []
    with raw_channel(service_address) as channel:
        token = raw_join(channel, rank=1, world_size=2, lease_seconds=0.4, seed=0, sketch_dtype="float16")
        stays.start_epoch(0, 0)
        gone = RawStream(channel, hello(token), START, credit(3))
        gone.reply()
        done, *_held = gone.batches(3)
        gone.send(credit=pb.Credit(acked=[done.batch_id]))
        ids += ids_of(done)
        time.sleep(0.1)
        gone.cancel()
    until(lambda: stays.client.statistics("run").trainers == 1)
    ids += drain(stays)
    assert sorted(ids) == list(range(N))
    assert stays.client.statistics("run").leases_expired == 2
    stays.close()


@pytest.mark.parametrize("remembers", [True, False], ids=["gateway only", "the whole service"])
def test_trainers_reconnect_by_themselves_after_a_restart_and_get_each_example_once(served: ServedService, remembers):
    sessions = [open_session(served.address, rank=rank, world_size=2) for rank in range(2)]
    ids: list[int] = []
    for session, received in zip(sessions, (1, 3), strict=True):
        session.start_epoch(0, 0)
        for _ in range(received):
            batch = session.next()
            assert batch is not None
            ids += ids_of(batch)
            session.done(batch.batch_id)
    time.sleep(0.2)  # what is done is told in the background
    served.stop()
    threading.Timer(0.3, served.start, [served.service if remembers else InProcessService()]).start()
    epochs: list[list[int]] = [[*ids], []]

    def go_on(session: Session) -> None:
        epochs[0].extend(drain(session))
        session.start_epoch(1, 0)
        epochs[1].extend(drain(session))

    readers = [threading.Thread(target=go_on, args=(session,)) for session in sessions]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(10)
    assert [sorted(epoch) for epoch in epochs] == [list(range(N))] * 2
    for session in sessions:
        session.close()


@pytest.fixture
def narrow() -> Iterator[ServedService]:
    """A service with places for two trainers."""
    narrow = ServedService(max_trainers=2)
    yield narrow
    narrow.stop()


def test_a_trainer_too_many_is_told_the_limit_and_gets_in_when_another_leaves(narrow: ServedService):
    inside = [open_session(narrow.address, run=f"run{i}") for i in range(2)]
    for session in inside:
        session.start_epoch(0, 0)
    late = open_session(narrow.address, run="late")
    with pytest.raises(Busy, match=f"{narrow.address} .*all 2 places for trainers are taken.*--max-trainers"):
        late.start_epoch(0, 0)
    assert [sorted(drain(session)) for session in inside] == [list(range(N))] * 2
    inside.pop().close()
    late.start_epoch(0, 0)
    assert sorted(drain(late)) == list(range(N))
    for session in (*inside, late):
        session.close()


def test_a_trainer_inside_opens_its_stream_again_although_all_places_are_taken(narrow: ServedService):
    with raw_channel(narrow.address) as one, raw_channel(narrow.address) as another:
        token = raw_join(one)
        start = pb.BatchRequest(epoch=pb.StartEpoch(epoch=0))
        others = RawStream(one, hello(raw_join(one, run="other")), start)
        unnoticed = RawStream(one, hello(token), start)
        assert others.reply() and unnoticed.reply()
        again = RawStream(another, hello(token), start)
        reply = again.reply()
        assert reply is not None and reply.WhichOneof("reply") == "epoch_start"


def test_a_report_sent_while_the_service_restarts_arrives(served: ServedService):
    session = open_session(served.address)
    session.start_epoch(0, 0)
    served.stop()
    session.put(ReportRows(batch_id=0, step=0, example_ids=np.arange(3), losses=np.ones(3, np.float32)))
    served.start()
    session.flush()
    assert session.client.statistics("run").reported_rows == 3
    assert sorted(drain(session)) == list(range(N))
    session.close()


def test_many_batches_are_packed_into_messages_in_order():
    rows = Rows(example_ids=np.arange(2000), weights=np.ones(2000, np.float32), probabilities=np.full(2000, 1 / 2000))
    batches = [
        Batch(
            batch_id=i,
            epoch=0,
            step=i,
            table_version=0,
            policy="shuffle",
            rows=rows,
            cluster_ids=np.zeros(2000, np.int32),
            lease_deadline=0.0,
            lead=0,
            global_batch_size=2000,
            world_size=1,
        )
        for i in range(20)
    ]
    messages = [pb.BatchReply.FromString(message) for message in encode_batches(batches, 128 * 1024)]
    assert 1 < len(messages) < 20
    assert [b.batch_id for message in messages for b in message.block.batch] == list(range(20))
    assert all(block.ByteSize() >= 128 * 1024 for block in messages[:-1])
    assert list(encode_batches([], 128 * 1024)) == []


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
def test_batches_with_records_are_the_bytes_that_protobuf_makes(size: int):
    rows = Rows(example_ids=np.arange(3), weights=np.ones(3, np.float32), probabilities=np.full(3, 1 / 3))
    batch = Batch(
        batch_id=1 << 50,
        epoch=0,
        step=1,
        table_version=0,
        policy="shuffle",
        rows=rows,
        cluster_ids=np.zeros(3, np.int32),
        lease_deadline=0.0,
        lead=0,
        global_batch_size=3,
        world_size=1,
    )
    records = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = pb.Batch(records=records)
    encode_batch(batch, message)
    expected = pb.BatchReply(block=pb.BatchBlock(batch=[message, message]))
    (encoded,) = encode_batches([batch, batch], 8_000_000, lambda _: memoryview(records))
    assert pb.BatchReply.FromString(encoded) == expected
    assert size == 0 or encoded == expected.SerializeToString()


def test_leaving_twice_is_no_error_and_a_session_never_heard_of_is(channel: grpc.Channel):
    token = raw_join(channel)
    leave = pb_grpc.RunsStub(channel).Leave
    leave(pb.LeaveRequest(session=token), timeout=5)
    leave(pb.LeaveRequest(session=token), timeout=5)
    with pytest.raises(grpc.RpcError) as caught:
        leave(pb.LeaveRequest(session="run:nobody"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_streams_without_hello_leave_threads_for_control_calls_and_end(monkeypatch):
    monkeypatch.setattr("sampler_service.rpc.batches.HELLO_S", 1.0)
    narrow = ServedService(max_trainers=1)
    try:
        with raw_channel(narrow.address) as channel:
            streams = [RawStream(channel) for _ in range(1 + CONTROL_THREADS)]
            codes = Counter[grpc.StatusCode]()
            pb_grpc.RunsStub(channel).List(pb.ListRunsRequest(), timeout=5)
            for stream in streams:
                with pytest.raises(grpc.RpcError) as caught:
                    stream.reply()
                codes[caught.value.code()] += 1
                stream.half_close()
            assert codes == {
                grpc.StatusCode.UNAVAILABLE: 1 + SPARE_STREAMS,  # no hello came in time
                grpc.StatusCode.RESOURCE_EXHAUSTED: CONTROL_THREADS - SPARE_STREAMS,
            }
            stream = RawStream(channel, hello(raw_join(channel)), START)  # their places are free again
            assert stream.reply() is not None
            stream.cancel()
    finally:
        narrow.stop()


def test_a_displaced_stream_ends_by_itself_and_holds_no_place(channel: grpc.Channel, served: ServedService):
    token = raw_join(channel)
    latest = RawStream(channel, hello(token), START)
    latest.reply()
    for _ in range(3):
        displaced, latest = latest, RawStream(channel, hello(token), START)
        latest.reply()
        with pytest.raises(grpc.RpcError) as caught:
            displaced.reply()
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    until(lambda: served._server._batches._open == 1)
    latest.cancel()


def test_a_silent_stream_gives_signs_of_life_as_long_as_it_is_open(monkeypatch):
    monkeypatch.setattr("sampler_service.rpc.batches.RENEW_S", 0.0)
    signs: list[str] = []

    class Watched(InProcessService):
        def renew(self, session: str) -> None:
            signs.append(session)
            raise Unavailable("the run is away")  # which is no reason to end the stream

    watched = ServedService(Watched())
    try:
        with raw_channel(watched.address) as channel:
            token = raw_join(channel)
            stream = RawStream(channel, hello(token))
            until(lambda: signs[:2] == [token] * 2)
            stream.send(epoch=pb.StartEpoch(epoch=0))
            assert stream.reply() is not None
            stream.half_close()
            assert stream.reply() is None
    finally:
        watched.stop()
