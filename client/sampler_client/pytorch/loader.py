"""The DataLoader a person already has, fed by the service: `attach`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from sampler_client.batch import Batch
from sampler_client.config import check_whole
from sampler_client.errors import ConfigError, Stale
from sampler_client.joining import DEFAULT_POLICY, Joinable, join
from sampler_client.publisher import PublishCounts
from sampler_client.pytorch import frameworks
from sampler_client.pytorch.batch_sampler import AHEAD, RemoteBatchSampler, found_place_of, refusing
from sampler_client.pytorch.two_stage.scorer import Scorer
from sampler_client.pytorch.two_stage.stage import SecondStage, TwoStage
from sampler_client.pytorch.weights import Snapshot
from sampler_client.reporter import ReportCounts


class _Beneath(DataLoader[Any]):
    """The DataLoader of an attached one, which begins iterations for that one alone."""

    def __iter__(self) -> Any:
        try:
            cast(RemoteBatchSampler, self.batch_sampler).check_open()  # before there are workers
        except ConfigError as error:
            return refusing(error)
        return super().__iter__()


class SampledLoader:
    """What `attach` returns: yields (what the loader yielded, the batch's handle).

    Attributes:
        reports: what became of the reports so far: rows `accepted`, `rejected` by reason, or `unusable` (their
            gradient could not be told); reports `dropped` or `waiting` to be sent; calls with `refused` reports.
    """

    def __init__(
        self, loader: DataLoader[Any], sampler: RemoteBatchSampler, second_stage: SecondStage | None = None
    ) -> None:
        self.loader = loader
        """the DataLoader beneath: dataset, workers, collate_fn and the rest as they were"""
        self.sampler = sampler
        self.second_stage = second_stage
        """chooses each batch out of candidates; None in runs of one stage"""
        sampler.open = False

    def __iter__(self) -> Iterator[tuple[Any, Batch]]:
        frameworks.refuse_rewriting("what attach returned")
        self.sampler.reader.num_steps = None  # the length is a whole epoch's until this one has started
        return self._batches()

    def _batches(self) -> Iterator[tuple[Any, Batch]]:
        reader, second_stage = self.sampler.reader, self.second_stage
        with self._open():
            data = iter(self.loader)
        while True:
            reader.finished()
            asked = time.perf_counter()
            try:
                item = next(data)
            except StopIteration:
                break
            batch = reader.received()
            if second_stage is not None:
                item, batch = second_stage.select(item, batch, time.perf_counter() - asked)
            yield item, batch
        reader.end_epoch()

    def __len__(self) -> int:
        return len(self.sampler)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"what attach returned has no {name!r}: it yields (data, batch) and is no DataLoader. Frameworks that "
                "build DataLoaders anew must leave it alone: no prepare_data_loader (Ray Train), no skip_first_batches "
                "(Accelerate, the Trainer without ignore_data_skip=True)"
            )

    @property
    def dataset(self) -> Any:
        return self.loader.dataset

    @property
    def reason(self) -> str:
        """Why another policy than the run's planned the present epoch; empty when none did."""
        return self.sampler.reader.reason

    @property
    def reports(self) -> ReportCounts:
        return self.sampler.source.report_counts()

    def publish(self, model: torch.nn.Module, step: int | None = None) -> None:
        """Give the model's weights to the service's scorers, which keep norms and sketches fresh by them.

        Copies the weights and returns; a background thread sends them. Weights that still wait when newer ones come
        are skipped. With several ranks all may call it, and rank 0 sends. From the first weights that the service takes
        on reports are without a sketcher: `batch.report(losses)`.

        Args:
            model: in training; also wrapped in DDP or `torch.compile`.
            step: optimiser steps that made the weights; default: those up to the batch in the loop's hands, or before
                the first one up to a restored position.

        Raises:
            ConfigError: a model whose state is not all whole tensors.
            Stale: the service was started without scorers.
            ScoringError: its scorers could not use the weights published before.
            SamplerError: what else became of the weights published before.
        """
        self.sampler.source.publish(lambda: Snapshot(model), self.sampler.reader.next_step if step is None else step)

    @property
    def publishes(self) -> PublishCounts:
        """What became of the published weights so far."""
        return self.sampler.source.publish_counts()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; without it each iteration is the next one."""
        self.sampler.set_epoch(epoch)

    def end_epoch(self) -> None:
        """The loop is done with the epoch, which it left with the last batch and not by asking for one more.

        For frameworks that count batches; their callbacks call it. It does nothing while batches are still to come.
        """
        self.sampler.reader.end_if_complete()

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe position, counting what the loop received and not what was prefetched.

        With the last batch of an epoch it is the start of the next. Over a StatefulDataLoader it has that one's state
        too, as "loader".
        """
        state = self.sampler.reader.state_dict()
        if frameworks.is_stateful(self.loader):
            with self._open():  # it may begin an iteration for it
                inner = cast(Any, self.loader).state_dict()
            state |= {"loader": inner, "num_workers": self.loader.num_workers}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position with the next iteration, whatever the world size or number of workers.

        Raises:
            Stale: the position is of another run or of a newer client, or has the state of a StatefulDataLoader with
                another number of workers; without its "loader" it fits.
        """
        inner = state.get("loader")
        if inner is not None and frameworks.is_stateful(self.loader):
            if state["num_workers"] != self.loader.num_workers:
                raise Stale(
                    f"the saved StatefulDataLoader has num_workers={state['num_workers']}, this one "
                    f"{self.loader.num_workers}: what its workers' datasets kept does not fit. To go on without that, "
                    'take "loader" out of the state'
                )
            cast(Any, self.loader).load_state_dict(inner)
        self.sampler.load_state_dict(state)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every report made so far is in the service's table, and the newest weights with it."""
        self.sampler.source.flush(timeout_s)

    def fence(self) -> int:
        """Like flush, and the next batch to be planned is planned from it; returns the table's version."""
        return self.sampler.source.fence()

    def set_target(self, sketches: Any) -> int:
        """Compare all examples with held-out ones, for the policies `poa` and `validation_alignment`.

        Give it anew now and then, such as after each epoch: the target moves as the model does. Waits until the reports
        made so far are in the service's table and all was compared; the next batch or order to be planned knows of it.

        The backward pass over held-out examples leaves its gradient in `.grad`: call `optimizer.zero_grad()` after it.
        A loop of backward, step and zero_grad would else make its next step on the held-out examples, too.

        Args:
            sketches: (m, sketch_dim) of held-out examples, an array or a sketcher's `take()` after a backward pass
                over them, by the sketcher that makes the reports. Examples are compared with their mean; how
                far they agree says how much that is worth, so give them all and not their mean.

        Returns:
            The table's version.

        Raises:
            ConfigError: none, another width than the run's, or one that is not finite.
        """
        return self.sampler.source.set_target(np.asarray(getattr(sketches, "sketches", sketches)))

    def grow(self, num_examples: int | None = None) -> None:
        """Train on what was appended to the dataset, too, from the next epoch on that begins when all ranks said so.

        Args:
            num_examples: that there are now in all, at least as many as before; default: the length of the dataset.

        Raises:
            ConfigError: fewer than before; or workers that stay have a copy of the dataset as it was.
        """
        if self.loader.persistent_workers:
            raise ConfigError(
                "the DataLoader has persistent_workers=True, and they keep the dataset as it was when they started; "
                "attach one without, whose workers start anew with each epoch"
            )
        size = len(cast(Sized, self.loader.dataset)) if num_examples is None else num_examples
        self.sampler.source.grow(size)

    def delete(self, example_ids: ArrayLike) -> None:
        """Never train on these examples again, in this run or another one over the same data set.

        Batches that the service sends from now on have none of them; those that have arrived, up to `ahead` and what
        the DataLoader's workers prefetch, may. Their reports count as rejected for the reason "deleted".

        Args:
            example_ids: (r,) whole numbers, the places of records in the dataset; they are not used again.

        Raises:
            ConfigError: an id that there is not, or all that are left; nothing was deleted.
        """
        self.sampler.source.delete(example_ids)

    @contextmanager
    def _open(self) -> Iterator[None]:
        self.sampler.open = True
        try:
            yield
        finally:
            self.sampler.open = False

    def close(self) -> None:
        """Send what is queued and give the rank back."""
        self.sampler.source.close()

    def __enter__(self) -> SampledLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(
    loader: DataLoader[Any],
    address: str | Joinable,
    *,
    run: str,
    policy: str = DEFAULT_POLICY,
    two_stage: torch.nn.Module | Scorer | TwoStage | None = None,
    replace_sampler: bool = False,
    ahead: int = AHEAD,
    **options: Any,
) -> SampledLoader:
    """Let the service decide what an existing DataLoader yields.

    The dataset, workers, collate_fn, pin_memory and persistent_workers stay as they are; only the order of the
    examples comes from the service. Batches keep the loader's batch_size and drop_last.

    Args:
        loader: over a map-style dataset; its batch_size is that of this trainer.
        address: "host:port" of the service, or a service in this process (`sampler_service.local.LocalService`).
        run: name of the training job; trainers of one job share it.
        policy: which examples to prefer; "shuffle" is the plain baseline, "auto" picks by what the run measures.
        two_stage: the model in training, a `Scorer`, or `TwoStage` with options: the service proposes up to three
            times as many examples, a forward pass over these candidates scores them, and the best are kept. What
            comes out is as large as before and on the scorer's device; its weights are final.
        ahead: batches that this trainer may hold beside those that the DataLoader's workers prefetch. 2 suits steps
            of ten milliseconds and more; 16 keeps one-millisecond steps from waiting, planned that much earlier.
        replace_sampler: allow the loader to have a sampler of its own, which is then not used.
        options: policy_options (mapping), phases (of `Phase`s, another policy for each part of a run), budget (a
            `TimeBudget`, by which the run goes instead of by epochs), seed, rank, world_size (default:
            torch.distributed, then RANK and WORLD_SIZE, then 0 of 1), dataset (name, default the run's), sketch_dim
            (64), sketch_dtype, num_clusters, max_lead, lease_s, on_lost, epochs, timeouts, queue.

    Raises:
        ConfigError: a loader that can't be attached, or an argument that the service refuses.
        ServiceUnavailable: nobody answers at `address`.

    Example:
        loader = attach(loader, "localhost:50051", run="resnet-cifar10")
        for (images, labels), batch in loader: ...
    """
    size, batch_size = geometry(loader, replace_sampler)
    lead = lead_of(loader, ahead)
    second_stage = None
    if "candidates" in options:
        raise ConfigError("candidates is an option of TwoStage: two_stage=TwoStage(model, candidates=…)")
    if two_stage is not None:
        settings = two_stage if isinstance(two_stage, TwoStage) else TwoStage(two_stage)
        second_stage, options["candidates"] = SecondStage(settings), settings.candidates
    session = join(address, run, size, batch_size, policy, lead, ahead, drop_last=loader.drop_last, **options)
    batches = RemoteBatchSampler(session, run=run, num_examples=size, lead=lead, found_place=found_place_of(options))
    return over(loader, batches, second_stage)


def over(
    loader: DataLoader[Any], sampler: RemoteBatchSampler, second_stage: SecondStage | None = None
) -> SampledLoader:
    """The same DataLoader with another batch sampler."""
    kind = type(loader) if frameworks.is_stateful(loader) else _Beneath
    rebuilt = kind(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
    )
    return SampledLoader(rebuilt, sampler, second_stage)


def lead_of(loader: DataLoader[Any], ahead: int = AHEAD) -> int:
    """Batches that a loop over this DataLoader can have unfinished at once."""
    check_whole("ahead", ahead, 1)
    return loader.num_workers * (loader.prefetch_factor or 0) + ahead


def geometry(loader: DataLoader[Any], replace_sampler: bool = False) -> tuple[int, int]:
    """Examples of a DataLoader's dataset and of its batches.

    Raises:
        ConfigError: its batches can't come from a service.
    """
    frameworks.refuse_wrapper(loader)
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError("attach needs a map-style dataset (with __getitem__ and __len__), got an IterableDataset")
    if loader.batch_size is None:
        raise ConfigError(
            "attach needs a DataLoader with a batch_size, got one with batch_size=None or a batch_sampler"
        )
    if not getattr(loader, "in_order", True):
        raise ConfigError("attach needs in_order=True: batches are matched to their handles by order")
    if (interval := getattr(loader, "snapshot_every_n_steps", 1)) != 1:
        raise ConfigError(
            f"attach needs snapshot_every_n_steps=1, got {interval}: a StatefulDataLoader would go on at its last "
            "snapshot, and load the batches since then a second time"
        )
    plain = (SequentialSampler, RandomSampler, DistributedSampler)
    if not isinstance(loader.sampler, plain) and not replace_sampler:
        raise ConfigError(
            f"the loader has a {type(loader.sampler).__name__}, whose order the service would replace; "
            "pass replace_sampler=True if that is meant"
        )
    return len(cast(Sized, loader.dataset)), loader.batch_size
