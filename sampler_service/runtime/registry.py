"""The registry: remembers datasets, runs and gateways of one service, and starts and ends runs."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.datasets import Dataset
from sampler_service.errors import Conflict, SamplerError, Stale, Unavailable
from sampler_service.reports import policy_of
from sampler_service.runtime import kept, names, placement
from sampler_service.runtime.calls import answer, call_run
from sampler_service.runtime.ray_scorers import ONE_THREAD, Staff
from sampler_service.runtime.run_actors import (
    end_run,
    openings,
    quiet_logging,
    release,
    reserve_scorers,
    start_run,
)
from sampler_service.scorers import MakeScorer
from sampler_service.service import Catalog
from sampler_service.types import Int64
from sampler_service.weights import NO_SCORERS

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
"""pause before a run that does not answer is asked again for its configuration"""

ENDING_S = 10.0
"""within which a gateway that was told to be the last one ends this actor"""


class Registry:
    """Calls overlap: nobody waits for a run to start but those who opened that run.

    Nothing is lost with this actor. It is made again by Ray, and finds gateways and runs by their names; until a run
    has answered, calls that need it are Unavailable, which is tried again.

    Args:
        config: of the service.
        make_scorer: makes what scores a dataset, in a scorer's process.
    """

    def __init__(self, config: ServiceConfig, make_scorer: MakeScorer | None) -> None:
        quiet_logging()
        self._config = config
        self._namespace = config.name
        self._make_scorer = make_scorer
        self._lock = threading.Lock()
        self._catalog = Catalog()
        self._kept: dict[str, Any] = {}
        self._left: set[str] = set()
        self._ending = float("-inf")
        self._hosts: dict[str, Future[ActorHandle]] = {}
        self._openings: dict[str, str] = {}
        self._staff: dict[str, Staff] = {}
        self._coming_back: set[str] = set()
        self._looked = threading.Event()
        if not self._find_again():  # no error: Ray never makes an actor again whose constructor failed
            threading.Thread(target=self._look_again, name="look-again", daemon=True).start()

    def enter(self, config: ServiceConfig) -> None:
        """A gateway opens; all of a service must ask for the same shards and scorers.

        Raises:
            Conflict: they differ.
            Unavailable: the last gateway has just left, and ends this registry.
        """
        if time.monotonic() < self._ending + ENDING_S:
            raise Unavailable(f"service {self._namespace!r} is ending with its last gateway; try again")
        self._config.check_same(config)

    def leave(self, gateway: str, ends_runs: bool) -> bool:
        """A gateway, by the name of its actor, closes; True when it was the last one, and all runs have been ended.

        Args:
            gateway: its actor is still there, as are those of others that have not entered yet.
            ends_runs: if it is the last. One that never served ends none that it found.
        """
        if not self._looked.wait(ENDING_S):
            self._settled()
        with self._lock:
            self._left.add(gateway)
            others = set(names.existing(self._namespace, "gateway")) - self._left
            runs = list(self._openings)
            if others or (runs and not ends_runs):
                return False
            self._ending = time.monotonic()
        for run in runs:
            self._close(run)
        return True

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        self._settled()
        with self._lock:
            self._catalog.register_dataset(dataset, num_examples)
            self._keep()

    def dataset_size(self, dataset: str) -> int:
        self._settled()
        return self._catalog.dataset_size(dataset)

    def grow_dataset(self, dataset: str, num_examples: int) -> tuple[Dataset, list[str]]:
        """A dataset as it is now, and the runs that are to be told."""
        return self._change(dataset, lambda: self._catalog.grow_dataset(dataset, num_examples))

    def delete_examples(self, dataset: str, example_ids: Int64) -> tuple[Dataset, list[str]]:
        """The same without some of its examples."""
        return self._change(dataset, lambda: self._catalog.delete_examples(dataset, example_ids))

    def follow_records(self, dataset: str, uid: str, num_examples: int, deleted: Int64) -> tuple[Dataset, list[str]]:
        """The same as its records are."""
        return self._change(dataset, lambda: self._catalog.follow_records(dataset, uid, num_examples, deleted))

    def datasets(self) -> list[str]:
        self._settled()
        with self._lock:
            return self._catalog.datasets()

    def _change(self, dataset: str, change: Callable[[], Dataset]) -> tuple[Dataset, list[str]]:
        with self._lock:
            self._settled()
            for run in self._coming_back:  # it may be of this dataset
                self._settled(run)
            # A run that is told of is looked up by who tells it, and that waits until it has started. One that begins
            # or comes back from now on reads what is kept.
            changed = change()
            self._keep()
            return changed, self._catalog.runs_over(dataset)

    def open_run(self, config: RunConfig) -> bool:
        policy_of(config)  # its errors, before any actor
        self._check_room(config)
        with self._lock:
            self._settled(config.run)
            created = self._catalog.open_run(config)
            if created:
                self._hosts[config.run] = Future()
                self._openings[config.run] = names.join(config.run, names.token())
                self._keep()
            starting, opening = self._hosts[config.run], self._openings[config.run]
        if created:
            starting.set_running_or_notify_cancel()
            try:
                starting.set_result(self._start(config, opening))
            except Exception as error:  # for those too that wait for the same run
                starting.set_exception(error)
        self._started(starting, config.run)
        return created

    def _start(self, config: RunConfig, opening: str) -> ActorHandle:
        """Start a run; of one that did not start, nothing is left, and nobody is told that it was closed."""
        run = config.run
        try:
            host = start_run(config, self._config, opening)
        except Exception:
            if self._take_away(run, opening):
                raise
        else:
            with self._lock:
                if self._openings.get(run) == opening:
                    return host
            end_run(self._namespace, opening)
        raise Stale(f"run {run!r} was closed while it was being started; attach again to start it anew")

    def _take_away(self, run: str, opening: str) -> bool:
        """Leave nothing of a run that did not start; False when it was closed meanwhile."""
        end_run(self._namespace, opening)
        with self._lock:
            if self._openings.get(run) != opening:
                return False
            self._catalog.forget_run(run)
            del self._hosts[run], self._openings[run]
            return True

    def close_run(self, run: str) -> None:
        self._settled()
        self._close(run)

    def _close(self, run: str) -> None:
        with self._lock:
            self._catalog.close_run(run, there=run in self._openings)
            self._keep()
            self._hosts.pop(run, None)
            self._staff.pop(run, None)
            self._coming_back.discard(run)
            opening = self._openings.pop(run, "")
        if opening:
            end_run(self._namespace, opening)

    def host(self, run: str) -> ActorHandle:
        """The actor of a run."""
        with self._lock:
            self._settled(run)
            self._catalog.run(run)
            starting = self._hosts[run]
        return self._started(starting, run)

    def runs(self) -> list[str]:
        self._settled()
        with self._lock:
            return sorted(run for run, starting in self._hosts.items() if starting.done())

    def publishing(self, run: str) -> tuple[ActorHandle, int, int]:
        """The actor that takes a run's weights, the version of the next ones, and how many scorers there are; the first
        call starts them.

        Raises:
            Stale: this service has none.
            ConfigError: the cluster has no GPUs for them.
            Busy: others use those that it has.
        """
        if self._make_scorer is None:
            raise Stale(NO_SCORERS)
        host, known, group = self.host(run), 0, None
        opening = self._openings.get(run)
        if opening and run not in self._staff:
            statistics = call_run(host, "statistics")  # weights may have come before this registry was made anew
            known = answer(statistics, self._config.call_s, f"the actor of run {run!r}").weights_version
            group = reserve_scorers(self._config, opening)
        with self._lock:  # making actors waits for none of them, and a run that is closed meanwhile must get none
            if not opening or self._openings.get(run) != opening:
                if opening:
                    release(self._namespace, opening)
                raise Stale(f"run {run!r} was closed; attach again to start it anew")
            if run not in self._staff:
                config = self._catalog.run(run)
                make = partial(self._make_scorer, config.dataset, config.num_examples, config.sketch_dim)
                self._staff[run] = Staff(self._config, opening=opening, make=make, version=known, group=group)
            return self._staff[run].weights, self._staff[run].next_version(), self._config.scorers

    def _check_room(self, config: RunConfig) -> None:
        """Raise ConfigError when a run that is not open can't be placed at all."""
        with self._lock:
            if config.run in self._openings:
                return
        needs = [placement.scorers(self._config, f"run {config.run!r}")]
        if placement.needs_group(self._config):
            needs += [placement.shards(self._config, config), placement.run_actor(config)]
        placement.check_room(needs)

    def _started(self, starting: Future[ActorHandle], run: str) -> ActorHandle:
        """The actor of a run, or what kept it from starting."""
        try:
            return starting.result(self._config.call_s)
        except TimeoutError:
            raise Unavailable(f"run {run!r} is still being started; is the cluster short of GPUs or memory?") from None

    def _keep(self) -> None:
        state = self._catalog.state()
        if state != self._kept:
            kept.keep(self._namespace, state)
            self._kept = copy.deepcopy(state)

    def _settled(self, run: str = "") -> None:
        if not self._looked.is_set():
            raise Unavailable("the registry was made anew, and looks for the runs that there are")
        if run in self._coming_back:
            raise Unavailable(
                f"run {run!r} is being taken back: the registry was made anew, and has yet to hear from it"
            )

    def _look_again(self) -> None:
        while not self._find_again():
            time.sleep(LOOK_AGAIN_S)

    def _find_again(self) -> bool:
        """Take back the runs of an earlier life of this actor, and end what it left half started or half ended. Until
        it has succeeded nothing is answered: a run that is there would be opened a second time."""
        try:
            self._look_for_runs()
        except Exception:
            log.exception("runs of an earlier life could not be looked for; trying again")
            return False
        self._looked.set()
        return True

    def _look_for_runs(self) -> None:
        self._kept = kept.kept(self._namespace)
        self._catalog = Catalog(**self._kept)
        runs = {names.opening_of(name) for name in names.existing(self._namespace, "run")}
        for opening in openings(self._namespace):
            run = names.run_of(opening)
            if self._openings.get(run) == opening:  # an earlier try came as far
                continue
            if opening not in runs or run in self._openings:
                end_run(self._namespace, opening)
                continue
            self._openings[run] = opening
            self._coming_back.add(run)
            threading.Thread(target=self._take_back, args=(run, opening), name="take-back", daemon=True).start()

    def _take_back(self, run: str, opening: str) -> None:
        while self._openings.get(run) == opening:
            try:
                host: Any = ray.get_actor(names.join("run", opening), self._namespace)
                config = answer(host.config.remote(), self._config.call_s, f"the actor of run {run!r}")
            except ValueError:  # it has ended meanwhile
                self._close(run)
                return
            except SamplerError as error:
                log.warning("run %s is not back yet: %s", run, error)
                time.sleep(LOOK_AGAIN_S)
                continue
            self._enter_run(opening, host, config)
            return

    def _enter_run(self, opening: str, host: ActorHandle, config: RunConfig) -> None:
        run = config.run
        with self._lock:
            if self._openings.get(run) != opening:  # closed meanwhile
                return
            with suppress(Conflict):  # a trainer was quicker to register it, with another size: its run will not open
                self._catalog.register_dataset(config.dataset, config.num_examples)
            self._catalog.open_run(config, there=True)
            self._hosts[run] = Future()
            self._hosts[run].set_result(host)
            self._coming_back.discard(run)
        log.info("run %s is found again", run)


def find_registry(config: ServiceConfig, make_scorer: MakeScorer | None) -> ActorHandle:
    """The service's registry, started when there is none."""
    options = {
        "name": names.REGISTRY,
        "namespace": config.name,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
        "max_concurrency": 64,
        "resources": placement.on_head(),
        "runtime_env": {"env_vars": ONE_THREAD},
    }
    registry: Any = ray.remote(Registry).options(**options)
    return registry.remote(config, make_scorer)
