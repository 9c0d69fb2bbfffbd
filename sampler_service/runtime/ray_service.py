"""The port `Service` on Ray: asks the registry for names, and a run's actor for everything else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ray.actor import ActorHandle

from sampler_service.config import RunConfig
from sampler_service.datasets import Dataset
from sampler_service.errors import NotFound, Stale, Unavailable
from sampler_service.leases import Group, run_of
from sampler_service.replies import EpochStarted, Joined, Published, ReportSummary, Taken
from sampler_service.runtime.calls import answer, call_run
from sampler_service.runtime.ray_scorers import send_weights
from sampler_service.types import Float32, Int64, Report
from sampler_service.views import ExampleView, Explanation, RunStatistics


class RayService:
    """See `service.Service` for what each call does.

    Args:
        find_registry: finds the cluster's registry actor, or starts another when it has died.
        call_s: deadline of each call to an actor.
        on_stop: what a Stop request does.
    """

    def __init__(self, find_registry: Callable[[], ActorHandle], call_s: float, on_stop: Callable[[], None]) -> None:
        self._find_registry = find_registry
        self._registry = find_registry()
        self._call_s = call_s
        self._on_stop = on_stop
        self._hosts: dict[str, ActorHandle] = {}
        self._lock = threading.Lock()

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        self._ask("register_dataset", dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        return self._ask("dataset_size", dataset)

    def grow_dataset(self, dataset: str, num_examples: int) -> Dataset:
        return self._tell(*self._ask("grow_dataset", dataset, num_examples))

    def delete_examples(self, dataset: str, example_ids: Int64) -> Dataset:
        return self._tell(*self._ask("delete_examples", dataset, example_ids))

    def follow_records(self, dataset: str, uid: str, num_examples: int, deleted: Int64) -> Dataset:
        return self._tell(*self._ask("follow_records", dataset, uid, num_examples, deleted))

    def datasets(self) -> list[str]:
        return self._ask("datasets")

    def open_run(self, config: RunConfig) -> bool:
        # Starting a run's actors takes longer than a call to one.
        return self._ask("open_run", config, timeout_s=4 * self._call_s)

    def config_of(self, run: str) -> RunConfig:
        return answer(self._host(run).config.remote(), self._call_s, f"the actor of run {run!r}")

    def close_run(self, run: str) -> None:
        with self._lock:
            self._hosts.pop(run, None)
        self._ask("close_run", run)

    def runs(self) -> list[str]:
        return self._ask("runs")

    def join(
        self, run: str, group: Group, rank: int, lead: int, name: str, token: str = "", num_examples: int = 0
    ) -> Joined:
        return self._call(run, "join", group, rank, lead, name, token, num_examples)

    def connect(self, session: str, last_batch_id: int, held: Sequence[int]) -> None:
        self._call(run_of(session), "connect", session, last_batch_id, held)

    def renew(self, session: str) -> None:
        self._call(run_of(session), "renew", session)

    def disconnect(self, session: str, paused: bool = False) -> None:
        self._call(run_of(session), "disconnect", session, paused)

    def leave(self, session: str, done: bool = False) -> None:
        self._call(run_of(session), "leave", session, done)

    def start_epoch(
        self,
        session: str,
        epoch: int,
        skip_examples: int,
        first_step: int,
        progress: float = 0.0,
        population: str = "",
    ) -> EpochStarted:
        return self._call(
            run_of(session), "start_epoch", session, epoch, skip_examples, first_step, progress, population
        )

    def take(self, session: str, count: int, acked: Sequence[int], waited_s: float = 0.0) -> Taken:
        return self._call(run_of(session), "take", session, count, acked, waited_s)

    def report(self, session: str, reports: Sequence[Report]) -> ReportSummary:
        return self._call(run_of(session), "report", session, reports)

    def fence(self, run: str) -> int:
        return self._call(run, "fence")

    def set_reference(self, run: str, losses: Float32) -> int:
        return self._call(run, "set_reference", losses)

    def set_groups(self, run: str, groups: Int64) -> int:
        return self._call(run, "set_groups", groups)

    def set_target(self, run: str, sketches: Float32) -> int:
        return self._call(run, "set_target", sketches)

    def announce_drop(self, run: str) -> None:
        self._call(run, "announce_drop")

    def publish(self, session: str, step: int, chunks: Iterable[bytes]) -> Published:
        run = run_of(session)
        self._call(run, "check_publish", session, step)
        store, version, scorers = self._ask("publishing", run)
        send_weights(store, version, step, chunks, self._call_s)
        return self._call(run, "published", version, step, scorers)

    def statistics(self, run: str, *, detail: bool = False) -> RunStatistics:
        return self._call(run, "statistics", detail=detail)

    def explain(self, run: str, example_id: int, neighbours: int) -> Explanation:
        return self._call(run, "explain", example_id, neighbours)

    def examples(self, run: str, order: str, count: int) -> list[ExampleView]:
        return self._call(run, "examples", order, count)

    def stop(self) -> None:
        self._on_stop()

    def _tell(self, dataset: Dataset, runs: Sequence[str]) -> Dataset:
        """Have runs follow a change of their dataset. One that can't be reached raises: it may lend old batches, and
        the caller's next try tells it again."""
        for run in runs:
            with suppress(NotFound, Stale):  # closed meanwhile
                self._call(run, "follow", dataset)
        return dataset

    def _ask(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        reference = getattr(self._registry, method).remote(*args)
        try:
            return answer(reference, timeout_s or self._call_s, "the registry")
        except Unavailable:
            # When it has died its name is free again, and the caller's next try meets a new one.
            self._registry = self._find_registry()
            raise

    def _call(self, run: str, method: str, *args: Any, **options: Any) -> Any:
        host = self._host(run)
        try:
            return answer(call_run(host, method, *args, **options), self._call_s, f"the actor of run {run!r}")
        except Unavailable:
            # It may have been closed and opened again by another gateway: look it up next time.
            with self._lock:
                self._hosts.pop(run, None)
            raise

    def _host(self, run: str) -> Any:
        with self._lock:
            host = self._hosts.get(run)
        if host is None:
            host = self._ask("host", run)
            with self._lock:
                self._hosts[run] = host
        return host
