"""The port between the wire and what serves it, and its in-process form.

`rpc/` knows only this; `runtime/` has the form that runs on Ray actors.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from sampler_service.config import RunConfig, check_name, check_size
from sampler_service.datasets import Dataset
from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from sampler_service.leases import Group, run_of
from sampler_service.replies import EpochStarted, Joined, Published, ReportSummary, Taken
from sampler_service.sampler import Sampler
from sampler_service.scorers import MakeScorer, ScorerLoop, Weights
from sampler_service.shards import LocalShards
from sampler_service.types import Float32, Int64, Report, ScoreReport, Work
from sampler_service.views import ExampleView, Explanation, RunStatistics
from sampler_service.weights import NO_SCORERS


class Service(Protocol):
    """All that a gateway can ask for. Every method may raise SamplerError."""

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        """Name a set of examples; a repeat must say the same, or, of one that has grown, what it may have had."""
        ...

    def dataset_size(self, dataset: str) -> int:
        """Examples of a registered dataset, deleted ones among them."""
        ...

    def grow_dataset(self, dataset: str, num_examples: int) -> Dataset:
        """A registered dataset has so many examples now; its runs take the new ones in with their next epochs."""
        ...

    def delete_examples(self, dataset: str, example_ids: Int64) -> Dataset:
        """These examples (r,) are no more; when this returns, no run lends a batch with one of them."""
        ...

    def follow_records(self, dataset: str, uid: str, num_examples: int, deleted: Int64) -> Dataset:
        """A dataset, registered or not, is by now what its records are; its runs are told as of the two above.

        Args:
            dataset: its name.
            uid: of the records' registration; another than at first is refused.
            num_examples: deleted ones among them.
            deleted: ids (r,), those that were deleted before among them.
        """
        ...

    def datasets(self) -> list[str]:
        """Datasets that open runs are over."""
        ...

    def open_run(self, config: RunConfig) -> bool:
        """Create a run, True, or find it opened alike, False."""
        ...

    def config_of(self, run: str) -> RunConfig:
        """What a run that is open was opened with."""
        ...

    def close_run(self, run: str) -> None: ...

    def runs(self) -> list[str]: ...

    def join(
        self, run: str, group: Group, rank: int, lead: int, name: str, token: str = "", num_examples: int = 0
    ) -> Joined: ...

    def connect(self, session: str, last_batch_id: int, held: Sequence[int]) -> None: ...

    def renew(self, session: str) -> None:
        """A sign of life from a stream over which nothing goes; without one for long, its trainer counts as lost."""
        ...

    def disconnect(self, session: str, paused: bool = False) -> None: ...

    def leave(self, session: str, done: bool = False) -> None: ...

    def start_epoch(
        self,
        session: str,
        epoch: int,
        skip_examples: int,
        first_step: int,
        progress: float = 0.0,
        population: str = "",
    ) -> EpochStarted: ...

    def take(self, session: str, count: int, acked: Sequence[int], waited_s: float = 0.0) -> Taken: ...

    def report(self, session: str, reports: Sequence[Report]) -> ReportSummary: ...

    def fence(self, run: str) -> int: ...

    def set_reference(self, run: str, losses: Float32) -> int: ...

    def set_groups(self, run: str, groups: Int64) -> int: ...

    def set_target(self, run: str, sketches: Float32) -> int:
        """Take sketches of held-out examples; batches planned from now on know how all others compare with them."""
        ...

    def announce_drop(self, run: str) -> None: ...

    def publish(self, session: str, step: int, chunks: Iterable[bytes]) -> Published:
        """Take weights for the scorers of a run: chunks of a safetensors file, which are not asked for in vain. What
        they raise ends the call, and the weights before stay."""
        ...

    def statistics(self, run: str, *, detail: bool = False) -> RunStatistics: ...

    def explain(self, run: str, example_id: int, neighbours: int) -> Explanation: ...

    def examples(self, run: str, order: str, count: int) -> list[ExampleView]: ...

    def stop(self) -> None:
        """Ask the process that started the service to drain and end it."""
        ...


class Catalog:
    """Names of datasets and the configurations of runs: what a registry remembers. Not thread-safe.

    Args:
        datasets: the state of each,
        closed: runs that have ended, and
        uids: of the records of datasets that have some, as an earlier one knew them.
    """

    def __init__(
        self,
        datasets: Mapping[str, Sequence[int | str]] | None = None,
        closed: Iterable[str] = (),
        uids: Mapping[str, str] | None = None,
    ) -> None:
        self._uids = dict(uids or {})
        self._datasets = {name: Dataset.of(state) for name, state in (datasets or {}).items()}
        self.runs: dict[str, RunConfig] = {}
        self._closed: deque[str] = deque(closed, maxlen=4096)

    def state(self) -> dict[str, Any]:
        """What another is made of that knows the same, but for open runs."""
        datasets = {name: dataset.state() for name, dataset in self._datasets.items()}
        return {"datasets": datasets, "closed": list(self._closed), "uids": dict(self._uids)}

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        check_name("dataset", dataset)
        check_size(dataset, num_examples)
        known = self._datasets.setdefault(dataset, Dataset((num_examples,)))
        if num_examples not in known.sizes:  # a trainer may have the data set as it was before it grew
            raise Conflict(
                f"dataset {dataset!r} is registered with {known.size} examples, asked for {num_examples}; "
                "use another name for other data, or grow_dataset where examples were appended"
            )

    def dataset_size(self, dataset: str) -> int:
        return self.dataset(dataset).size

    def dataset(self, dataset: str) -> Dataset:
        if dataset not in self._datasets:
            raise NotFound(f"unknown dataset {dataset!r}; registered are {sorted(self._datasets)}")
        return self._datasets[dataset]

    def grow_dataset(self, dataset: str, num_examples: int) -> Dataset:
        check_size(dataset, num_examples)
        self._datasets[dataset] = self.dataset(dataset).grown(dataset, num_examples)
        return self._datasets[dataset]

    def delete_examples(self, dataset: str, example_ids: Int64) -> Dataset:
        self._datasets[dataset] = self.dataset(dataset).without(dataset, example_ids)
        return self._datasets[dataset]

    def follow_records(self, dataset: str, uid: str, num_examples: int, deleted: Int64) -> Dataset:
        check_name("dataset", dataset)
        check_size(dataset, num_examples)
        if (known := self._uids.get(dataset, uid)) != uid:
            raise Conflict(
                f"dataset {dataset!r} stands for the records that were registered as {known[:8]}, and there are others "
                f"under its name now, {uid[:8]}: ingest other data under another name, or restart the service"
            )
        now = self._datasets.get(dataset, Dataset((num_examples,)))
        if num_examples not in now.sizes:  # a node's copy may be as it was before the dataset grew
            now = now.grown(dataset, num_examples)
        self._datasets[dataset] = now.without(dataset, deleted) if len(deleted) else now
        self._uids[dataset] = uid
        return self._datasets[dataset]

    def runs_over(self, dataset: str) -> list[str]:
        """Open runs of a dataset."""
        return [run for run, config in self.runs.items() if config.dataset == dataset]

    def datasets(self) -> list[str]:
        """Those that open runs are over."""
        return sorted({config.dataset for config in self.runs.values()})

    def open_run(self, config: RunConfig, *, there: bool = False) -> bool:
        """Enter a run, True, or find it opened alike, False; one that is `there` was opened before."""
        if not there and config.num_examples not in (sizes := self.dataset(config.dataset).sizes):
            raise ConfigError(
                f"run {config.run!r} is to begin with {config.num_examples} examples, dataset {config.dataset!r} had "
                f"{sizes[0]} and has {sizes[-1]}; grow it first"
            )
        known = self.runs.setdefault(config.run, config)
        if known is config:
            if config.run in self._closed:
                self._closed.remove(config.run)
            return True
        known.check_same(config)
        return False

    def close_run(self, run: str, *, there: bool = False) -> None:
        """Forget a run. Its trainers are told that it ended, so that they don't take it for lost and open it again.

        Args:
            run: one that is not open is passed over, unless it is `there` and has yet to be found again.
        """
        if self.runs.pop(run, None) is not None or there:
            self._closed.append(run)

    def forget_run(self, run: str) -> None:
        """Forget a run that never started: nobody trained in it."""
        self.runs.pop(run, None)

    def run(self, run: str) -> RunConfig:
        if run in self._closed:
            raise Stale(f"run {run!r} was closed; attach again to start it anew")
        if run not in self.runs:
            raise NotFound(f"unknown run {run!r}; open are {sorted(self.runs)}; open it first")
        return self.runs[run]


class InProcessService:
    """Everything in this process, on plain objects; `sampler_service.local` puts a trainer's face on it.

    Clusters are made anew inside `report`, when they are due, and all examples scored inside `publish`, so that the
    same calls give the same batches.

    Args:
        shards: per run.
        on_stop: what a Stop request does.
        make_scorer: what scores a dataset; None: there are no scorers.
    """

    def __init__(
        self,
        *,
        shards: int = 1,
        on_stop: Callable[[], None] = lambda: None,
        make_scorer: MakeScorer | None = None,
    ) -> None:
        self._shards = shards
        self._on_stop = on_stop
        self._make_scorer = make_scorer
        self._desks: dict[str, _LocalDesk] = {}
        self._catalog = Catalog()
        self._samplers: dict[str, Sampler] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        with self._lock:
            self._catalog.register_dataset(dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        with self._lock:
            return self._catalog.dataset_size(dataset)

    def grow_dataset(self, dataset: str, num_examples: int) -> Dataset:
        return self._change(dataset, lambda: self._catalog.grow_dataset(dataset, num_examples))

    def delete_examples(self, dataset: str, example_ids: Int64) -> Dataset:
        return self._change(dataset, lambda: self._catalog.delete_examples(dataset, example_ids))

    def follow_records(self, dataset: str, uid: str, num_examples: int, deleted: Int64) -> Dataset:
        return self._change(dataset, lambda: self._catalog.follow_records(dataset, uid, num_examples, deleted))

    def datasets(self) -> list[str]:
        with self._lock:
            return self._catalog.datasets()

    def open_run(self, config: RunConfig) -> bool:
        with self._lock:
            if config.run in self._samplers:
                return self._catalog.open_run(config)
            shards = LocalShards(config.num_examples, config.sketch_dim, self._shards, config.sketch_dtype)
            sampler = Sampler(config, shards, dataset=self._catalog.dataset(config.dataset))
            self._samplers[config.run] = sampler
            if self._make_scorer is not None:
                self._desks[config.run] = _LocalDesk(sampler, self._make_scorer)
            self._turns[config.run] = threading.Lock()
            return self._catalog.open_run(config)

    def config_of(self, run: str) -> RunConfig:
        return self._sampler(run).config

    def close_run(self, run: str) -> None:
        with self._lock:
            self._catalog.close_run(run)
            self._samplers.pop(run, None)
            self._desks.pop(run, None)
            self._turns.pop(run, None)

    def runs(self) -> list[str]:
        with self._lock:
            return sorted(self._samplers)

    def join(
        self, run: str, group: Group, rank: int, lead: int, name: str, token: str = "", num_examples: int = 0
    ) -> Joined:
        return self._sampler(run).join(group, rank, lead, name, token, num_examples)

    def connect(self, session: str, last_batch_id: int, held: Sequence[int]) -> None:
        self._of(session).connect(session, last_batch_id, held)

    def renew(self, session: str) -> None:
        self._of(session).renew(session)

    def disconnect(self, session: str, paused: bool = False) -> None:
        self._of(session).disconnect(session, paused)

    def leave(self, session: str, done: bool = False) -> None:
        self._of(session).leave(session, done)

    def start_epoch(
        self,
        session: str,
        epoch: int,
        skip_examples: int,
        first_step: int,
        progress: float = 0.0,
        population: str = "",
    ) -> EpochStarted:
        return self._of(session).start_epoch(session, epoch, skip_examples, first_step, progress, population)

    def take(self, session: str, count: int, acked: Sequence[int], waited_s: float = 0.0) -> Taken:
        return self._of(session).take(session, count, acked, waited_s)

    def report(self, session: str, reports: Sequence[Report]) -> ReportSummary:
        sampler = self._of(session)
        turn = self._turns.get(sampler.config.run, self._lock)
        with turn:  # shards in process are not safe to call from two threads
            try:
                return sampler.report(session, reports)
            finally:
                if sampler.refresh_due():
                    sampler.refresh()

    def fence(self, run: str) -> int:
        return self._sampler(run).fence()

    def set_reference(self, run: str, losses: Float32) -> int:
        return self._sampler(run).set_reference(losses)

    def set_groups(self, run: str, groups: Int64) -> int:
        return self._sampler(run).set_groups(groups)

    def set_target(self, run: str, sketches: Float32) -> int:
        with self._turns.get(run, self._lock):
            return self._sampler(run).set_target(sketches)

    def announce_drop(self, run: str) -> None:
        self._sampler(run).announce_drop()

    def publish(self, session: str, step: int, chunks: Iterable[bytes]) -> Published:
        sampler = self._of(session)
        sampler.check_publish(session, step)
        desk = self._desks.get(sampler.config.run)
        if desk is None:
            raise Stale(NO_SCORERS)
        data = b"".join(chunks)
        with self._turns.get(sampler.config.run, self._lock):
            published = desk.score_all(step, data)
            if sampler.refresh_due():
                sampler.refresh()
        return published

    def statistics(self, run: str, *, detail: bool = False) -> RunStatistics:
        return self._sampler(run).statistics(detail=detail)

    def explain(self, run: str, example_id: int, neighbours: int) -> Explanation:
        return self._sampler(run).explain(example_id, neighbours)

    def examples(self, run: str, order: str, count: int) -> list[ExampleView]:
        return self._sampler(run).examples(order, count)

    def stop(self) -> None:
        self._on_stop()

    def _change(self, dataset: str, change: Callable[[], Dataset]) -> Dataset:
        with self._lock:
            changed = change()
            followers = [(self._turns[run], self._samplers[run]) for run in self._catalog.runs_over(dataset)]
        for turn, sampler in followers:
            with turn:
                sampler.follow(changed)
        return changed

    def _sampler(self, run: str) -> Sampler:
        with self._lock:
            self._catalog.run(run)
            return self._samplers[run]

    def _of(self, session: str) -> Sampler:
        return self._sampler(run_of(session))


class _LocalDesk:
    """A `scorers.Desk` in this process, with its one scorer, which works when it is told to."""

    def __init__(self, sampler: Sampler, make_scorer: MakeScorer) -> None:
        config = sampler.config
        self._sampler = sampler
        self._newest: Weights = (0, 0, b"")
        self._loop = ScorerLoop(
            "scorer 0", partial(make_scorer, config.dataset, config.num_examples, config.sketch_dim), self
        )

    def score_all(self, step: int, data: bytes) -> Published:
        """Take weights, and score by them until nothing is due or something fails."""
        self._newest = self._newest[0] + 1, step, data
        self._sampler.published(self._newest[0], step)
        while self._loop.turn() == 0:
            pass
        return self._sampler.published(self._newest[0], step)

    def weights(self, after: int) -> Weights | None:
        return self._newest if self._newest[0] > after else None

    def to_score(self, scorer: str, version: int, step: int, count: int) -> Work:
        return self._sampler.to_score(scorer, version, step, count)

    def take_scores(self, report: ScoreReport) -> None:
        self._sampler.take_scores(report)
