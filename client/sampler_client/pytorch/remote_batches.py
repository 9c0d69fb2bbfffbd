"""Batches with their records in a DataLoader: `RemoteBatches`, whose workers each have a stream of their own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from sampler_client import forwarding
from sampler_client.batch import Batch
from sampler_client.client import SamplerClient
from sampler_client.config import DecodeImage, Timeouts, check_whole
from sampler_client.epochs import STATE_VERSION
from sampler_client.errors import ConfigError, RecordError, Stale
from sampler_client.joining import DEFAULT_POLICY, place_of
from sampler_client.pytorch import frameworks, worker_process
from sampler_client.pytorch.passes import Passes
from sampler_client.pytorch.tensors import columns_of
from sampler_client.record_stream import AHEAD, RecordStream
from sampler_client.reporter import ReportCounts

Last = Literal["partial", "drop", "fill"]


class RemoteBatches(IterableDataset[tuple[Any, Batch]]):
    """Streams ready batches of a dataset whose records the service holds; yields (data, the batch's handle).

    For `DataLoader(…, batch_size=None)`. Each worker of each rank has its own stream and gets every W-th batch of its
    rank, so that the loop sees the batches, the epochs and their ends that it would see with one: no example twice, as
    many batches on every rank, whatever the number of workers.

    With workers, give the DataLoader `multiprocessing_context="forkserver"` (or "spawn"), since gRPC does not survive
    a fork, and its prefetch_factor here as well. `batch.report` works in the loop; `batch.position` says where training
    would go on behind it, for `load_state_dict`.

    Args:
        address: "host:port" of the service.
        run: name of the training job; trainers of one job share it.
        dataset: name that it was ingested under.
        batch_size: examples of a batch of this trainer.
        policy: which examples to prefer.
        columns: of the records; none: all.
        decode: columns of image files that the service is to decode.
        transform: makes an item of one record, a mapping of its columns (tensors, texts, bytes); runs in the workers.
            None: the data of a batch are its columns, a dictionary of tensors (b, …) and lists.
        collate_fn: makes a batch's data of its items; default: torch's own. None without `transform`.
        last: what becomes of examples that do not fill a last batch: "partial", a smaller one; "drop"; "fill", repeats
            with weight 0 up to its size.
        prefetch_factor: that of the DataLoader, where it has workers.
        rank, world_size: default: torch.distributed, then RANK and WORLD_SIZE, then 0 of 1.
        ahead: batches that each stream may hold beside those.
        options: of `attach`.

    Raises:
        ConfigError: an argument that is wrong.

    Example:
        records = RemoteBatches("localhost:50051", run="mnist-mlp", dataset="mnist", batch_size=64)
        loader = DataLoader(records, batch_size=None, num_workers=2, multiprocessing_context="forkserver")
        for columns, batch in loader:
            losses = loss_fn(model(columns["image"]), columns["label"])
            ...
            batch.report(losses)
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings, each with a default
        self,
        address: str,
        *,
        run: str,
        dataset: str,
        batch_size: int,
        policy: str = DEFAULT_POLICY,
        columns: Sequence[str] = (),
        decode: Sequence[DecodeImage] = (),
        transform: Callable[[Mapping[str, Any]], Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        last: Last = "partial",
        prefetch_factor: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
        ahead: int = AHEAD,
        timeouts: Timeouts | None = None,
        queue: int = 256,
        **options: Any,
    ) -> None:
        if not isinstance(address, str):
            raise ConfigError(
                f'RemoteBatches needs the "host:port" of a service that holds records, got a {type(address).__name__}; '
                "a service in this process holds none: attach a DataLoader over your own data set"
            )
        check_whole("batch_size", batch_size, 1)
        check_whole("prefetch_factor", prefetch_factor, 0)
        check_whole("ahead", ahead, 1)
        if last not in ("partial", "drop", "fill"):
            raise ConfigError(f'last must be "partial", "drop" or "fill", got {last!r}')
        if collate_fn is not None and transform is None:
            raise ConfigError("collate_fn puts together what transform makes: give both, or neither")
        if "drop_last" in options:
            raise ConfigError('drop_last is called last="drop" here')
        rank, world_size = place_of(rank, world_size)
        self.address = str(address)  # plain, whatever comes with it: it goes to other processes
        self.run = run
        self._batch_size = batch_size
        self._global_batch = batch_size * world_size
        self._transform = transform
        self._collate = collate_fn or default_collate
        self._last = last
        self._prefetch_factor = prefetch_factor
        self._timeouts = timeouts or Timeouts()
        self._queue = queue
        self._options: dict[str, Any] = {
            **options,
            "run": run,
            "dataset": dataset,
            "batch_size": batch_size,
            "policy": policy,
            "columns": tuple(columns),
            "decode": tuple(decode),
            "drop_last": last == "drop",
            "rank": rank,
            "world_size": world_size,
            "ahead": ahead,
            "timeouts": timeouts,
            "queue": queue,
        }
        self._passes = Passes()
        self._token = uuid.uuid4().hex
        self._stream: RecordStream | None = None
        self._stream_pid = 0
        self._yielded = 0

    def __iter__(self) -> Iterator[tuple[Any, Batch]]:
        frameworks.refuse_rewriting("a RemoteBatches")
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # Now, and not with the first batch: each worker counts the passes that the DataLoader begins.
        return self._pass(worker, workers, self._passes.begin(worker, workers), forwards=info is not None)

    def _pass(self, worker: int, workers: int, start: dict[str, Any], *, forwards: bool) -> Iterator[tuple[Any, Batch]]:
        stream = self._connected(worker, workers, forwards=forwards)
        stream.load_state_dict({"version": STATE_VERSION, "run": self.run, **start})
        self._yielded = start["received"]
        furthest: dict[str, Any] = {}
        forward = self._forward(worker, stream) if forwards else None
        for batch in stream:
            if self._yielded == start["received"]:
                self._passes.began(worker, *stream.reader.population)
            full = batch.padded(self._batch_size) if self._last == "fill" and len(batch) < self._batch_size else batch
            data = self._data(full, repeated=full is not batch)
            # What a lost rank has left comes at the end, and is no step back.
            furthest = max(furthest, self._behind(batch, start, stream), key=_place)
            if forward is not None:
                if forward.session != stream.session.token:  # another one, after the service was restarted
                    forward = self._forward(worker, stream)
                full = full.forwarded(forward, furthest)
            else:
                full.position = furthest
            self._yielded += 1
            yield data, full
        self._passes.end(worker)
        self._yielded = 0

    def _forward(self, worker: int, stream: RecordStream) -> forwarding.Forward:
        self._passes.joined(worker, stream.session.token)
        return forwarding.Forward(self.address, self._timeouts, self._token, stream.session.token, self._queue)

    def _connected(self, worker: int, workers: int, *, forwards: bool) -> RecordStream:
        """The stream of this process."""
        if self._stream is None or self._stream_pid != os.getpid():
            self._stream = RecordStream.connect(
                self.address,
                worker=worker,
                workers=workers,
                behind=self._prefetch_factor if forwards else 0,
                # The worker of the next pass is the same trainer in another process, and displaces one that lingers.
                token=f"{self._token}-{worker}" if forwards else "",
                **self._options,
            )
            self._stream_pid = os.getpid()
            if forwards:
                worker_process.keep(self._stream)
        return self._stream

    def _data(self, batch: Batch, *, repeated: bool) -> Any:
        records = batch.records
        if repeated:
            records = records.take(pa.array(np.arange(len(batch)) % len(records)))
        columns = columns_of(records)
        if self._transform is None:
            return columns
        items = []
        for row, example_id in enumerate(batch.example_ids):
            try:
                items.append(self._transform({name: values[row] for name, values in columns.items()}))
            except Exception as error:
                raise RecordError(
                    f"transform failed on the record of example {example_id}: {type(error).__name__}: {error}"
                ) from error
        return self._collate(items)

    def _behind(self, batch: Batch, start: Mapping[str, Any], stream: RecordStream) -> dict[str, Any]:
        """The position behind a batch of the pass that began at `start`."""
        population, of = stream.reader.population
        whole = {"version": STATE_VERSION, "run": self.run, "epoch": start["epoch"]}
        # A batch of an earlier epoch counts for nothing: another trainer was lost with it.
        steps = batch.step + 1 if batch.epoch == start["epoch"] else 0
        examples = start["examples"] + steps * self._global_batch
        # What does not fill a last batch is left out, or, fewer examples than ranks, was part of the one before.
        if of - examples < (self._global_batch if self._last == "drop" else self._options["world_size"]):
            return {**whole, "epoch": start["epoch"] + 1, "examples": 0}
        return {**whole, "examples": examples, "population": population, "num_examples": of}

    @property
    def reports(self) -> ReportCounts:
        """What became of the reports that this process has made."""
        if self._is_open:
            assert self._stream is not None
            return self._stream.reports
        return forwarding.counts(self._token)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every report that this process has made is in the service's table."""
        if self._is_open:
            assert self._stream is not None
            self._stream.flush(timeout_s)
        else:
            forwarding.flush(self._token, timeout_s)

    def fence(self) -> int:
        """Like flush, and the next batch to be planned is planned from it; returns the table's version."""
        self.flush()
        with SamplerClient(self.address, timeouts=self._timeouts) as client:
            return client.fence(self.run)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; without it each iteration is the next one."""
        check_whole("epoch", epoch, 0)
        self._passes.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What this process has yielded, for torchdata's StatefulDataLoader, which asks every worker and gives each one
        its own back; restored with as many workers and ranks. Elsewhere use the `position` of the last batch."""
        info = get_worker_info()
        return self._passes.state(0 if info is None else info.id, self._yielded) | {"run": self.run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind a batch, of which this is the `position`, with the next iteration; or in a worker where it
        was.

        Raises:
            Stale: the state is of another run or of a newer client.
        """
        if state.get("version") != STATE_VERSION or state.get("run") != self.run:
            raise Stale(
                f"the saved position is of run {state.get('run')!r} in version {state.get('version')!r}, this is run "
                f"{self.run!r} in version {STATE_VERSION}"
            )
        info = get_worker_info()
        if info is None:
            self._passes.set(state)
        else:
            self._passes.restore(info.id, state)

    def close(self) -> None:
        """Send what is queued and give the rank back. A pass that workers have sent to its end counts as done, unless
        an error leaves the `with` block; what is left of one that was broken off goes to others."""
        self._close(done=True)

    def _close(self, *, done: bool) -> None:
        if self._is_open:
            assert self._stream is not None
            self._stream.close()
        self._stream = None
        forwarding.close(self._token)
        for session, through in self._passes.leave():
            forwarding.leave(self.address, self._timeouts, session, done=done and through)

    def __enter__(self) -> RemoteBatches:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._close(done=failure is None)

    def __getstate__(self) -> dict[str, Any]:
        # Workers do not see who iterates over their DataLoader. This is where it starts them, in the trainer's process.
        frameworks.refuse_rewriting("a RemoteBatches")
        return {**self.__dict__, "_stream": None}

    @property
    def _is_open(self) -> bool:
        return self._stream is not None and self._stream_pid == os.getpid()


def _place(position: Mapping[str, Any]) -> tuple[int, int]:
    return position.get("epoch", -1), position.get("examples", -1)
