"""A stand-in for the service, for tests of training code: no server, no network, no ray.

`FakeSession` hands out shuffled epochs and keeps every report; `fake_attach` puts one under a DataLoader, in the
place of `attach`, so that a training loop runs unchanged:

    from sampler_client.testing import fake_attach

    def test_the_loop_reports_every_example_once_an_epoch():
        loader = fake_attach(DataLoader(dataset, batch_size=32), weights=weights)
        train(loader, epochs=2)
        assert len(loader.sampler.source.rows()) == 2 * len(dataset)

Example:
    >>> session = FakeSession(5, batch_size=2)
    >>> session.start_epoch(0, skip_examples=0).num_steps
    3
    >>> sorted(example for batch in iter(session.next, None) for example in Batch(batch).example_ids.tolist())
    [0, 1, 2, 3, 4]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch
from sampler_client.config import check_whole
from sampler_client.errors import ConfigError
from sampler_client.publisher import PublishCounts, Weights
from sampler_client.reporter import PendingReport, ReportCounts, ReportRows
from sampler_client.session import check_unit

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from sampler_client.pytorch.loader import SampledLoader

__all__ = ["Batch", "FakeSession", "fake_attach"]


class FakeSession:
    """A `session.Source` of shuffled epochs for one trainer.

    Args:
        num_examples: ids are 0 … num_examples-1.
        batch_size: examples of a batch; the last one of an epoch may be smaller.
        drop_last: leave that last, smaller one out.
        seed: epoch e is a permutation by (seed, e).
        weights: (num_examples,) factor on each example's loss, 1 for those that it grows by; None: ones.

    Attributes:
        reports: every report that was made, in order.
        published: safetensors files of all published weights with their steps, in order.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        drop_last: bool = False,
        seed: int = 0,
        weights: ArrayLike | None = None,
    ) -> None:
        check_whole("num_examples", num_examples, 1)
        check_whole("batch_size", batch_size, 1)
        self._weight_n = np.ones(num_examples, np.float32) if weights is None else np.asarray(weights, np.float32)
        if self._weight_n.shape != (num_examples,):
            raise ConfigError(f"weights must have the shape ({num_examples},), got {self._weight_n.shape}")
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seed = seed
        self._deleted: NDArray[np.int64] = np.empty(0, np.int64)
        self._waiting: deque[tuple[int, int, NDArray[np.int64]]] = deque()  # epoch, step and ids
        self._last_batch_id = 0
        self.steps_per_epoch = len(self._starts(num_examples))
        self.reports: list[ReportRows] = []
        self.published: list[tuple[bytes, int]] = []
        self.targets: list[NDArray[Any]] = []
        self.closed = False

    def rows(self) -> NDArray[np.int64]:
        """Ids of all reported rows, in order."""
        return np.concatenate([np.empty(0, np.int64), *(report.example_ids for report in self.reports)])

    def start_epoch(
        self,
        epoch: int,
        skip_examples: int,
        population: str = "",  # noqa: ARG002
        received: int = 0,
    ) -> pb.EpochStart:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._weight_n))
        order = order[~np.isin(order, self._deleted)]
        rest = order[skip_examples:].astype(np.int64)
        parts = [rest[start : start + self._batch_size] for start in self._starts(len(rest))]
        self._waiting = deque((epoch, step, part) for step, part in enumerate(parts) if step >= received)
        steps = len(self._starts(len(order)))
        return pb.EpochStart(
            epoch=epoch,
            num_steps=len(self._waiting),
            policy="shuffle",
            num_examples=len(order),
            epoch_steps=steps,
        )

    def next(self) -> pb.Batch | None:
        while self._waiting:
            epoch, step, ids = self._waiting.popleft()
            ids = ids[~np.isin(ids, self._deleted)]
            if len(ids):
                return self._batch(epoch, step, ids)
        return None

    def done(self, batch_id: int) -> None: ...

    def finish_epoch(self) -> None: ...

    def publish(self, snapshot: Callable[[], Weights], step: int) -> None:
        self.published.append((snapshot().safetensors(), step))

    def publish_counts(self) -> PublishCounts:
        return PublishCounts(published=len(self.published), version=len(self.published))

    def put(self, rows: ReportRows | PendingReport) -> None:
        if self.published:
            check_unit(rows)
        self.reports.append(rows.resolve())

    def report_counts(self) -> ReportCounts:
        unusable = sum(report.unusable for report in self.reports)
        return ReportCounts(accepted=len(self.rows()), unusable=unusable)

    def flush(self, timeout_s: float | None = None) -> None: ...

    def fence(self) -> int:
        return len(self.reports)

    def set_target(self, sketches: NDArray[Any]) -> int:
        self.targets.append(sketches)
        return len(self.reports)

    def grow(self, num_examples: int) -> None:
        new = num_examples - len(self._weight_n)
        if new < 0:
            raise ConfigError(f"num_examples must be at least {len(self._weight_n)}, got {num_examples}")
        self._weight_n = np.append(self._weight_n, np.ones(new, np.float32))

    def delete(self, example_ids: ArrayLike) -> None:
        self._deleted = np.union1d(self._deleted, example_ids).astype(np.int64)

    def statistics(self) -> pb.GetStatisticsResponse:
        said = pb.GetStatisticsResponse(policy="shuffle", active_policy="shuffle", trainers=1)
        for field in said.DESCRIPTOR.fields:
            if field.type == field.TYPE_DOUBLE and field.name != "waited_seconds":
                setattr(said, field.name, np.nan)  # measured by services only
        said.num_examples, said.batches = len(self._weight_n), self._last_batch_id
        said.deleted = len(self._deleted)
        return said

    def close(self) -> None:
        self.closed = True

    def _starts(self, examples: int) -> range:
        whole = examples // self._batch_size * self._batch_size
        return range(0, whole if self._drop_last else examples, self._batch_size)

    def _batch(self, epoch: int, step: int, ids: NDArray[np.int64]) -> pb.Batch:
        self._last_batch_id += 1
        return pb.Batch(
            batch_id=self._last_batch_id,
            epoch=epoch,
            step=step,
            policy="shuffle",
            example_ids=ids.tobytes(),
            weights=self._weight_n[ids].tobytes(),
            probabilities=np.full(len(ids), 1 / len(self._weight_n), np.float32).tobytes(),
            cluster_ids=np.full(len(ids), -1, np.int32).tobytes(),
            global_batch_size=len(ids),
            world_size=1,
        )


def fake_attach(loader: DataLoader[Any], *, seed: int = 0, weights: ArrayLike | None = None) -> SampledLoader:
    """What `attach` gives, over a FakeSession, which is its `sampler.source`. Needs torch."""
    # By name, as in `sampler_client/__init__`: this module is importable without torch.
    loaders = import_module("sampler_client.pytorch.loader")
    size, batch_size = loaders.geometry(loader)
    session = FakeSession(size, batch_size, drop_last=loader.drop_last, seed=seed, weights=weights)
    sampler = loaders.RemoteBatchSampler(session, run="fake", num_examples=size, lead=loaders.lead_of(loader))
    return loaders.over(loader, sampler)
