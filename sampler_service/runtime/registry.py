"""The registry: remembers datasets, runs and gateways of one service, and starts and ends runs."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import Conflict, SamplerError, Stale, Unavailable
from sampler_service.reports import policy_of
from sampler_service.runtime import names, placement
from sampler_service.runtime.calls import answer
from sampler_service.runtime.ray_scorers import ONE_THREAD, Staff
from sampler_service.runtime.run_actors import end_run, openings, quiet_logging, start_run
from sampler_service.scorers import MakeScorer
from sampler_service.service import Catalog
from sampler_service.weights import NO_SCORERS

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
"""pause before a run that does not answer is asked again for its configuration"""

_ALIKE = (
    *("shards", "gpus_per_shard", "threads_per_shard"),
    *("scorers", "scoring", "scorer_gpus", "threads_per_scorer"),
)
"""what all gateways of a service must ask for alike: the registry starts it for all of them"""


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
        self._gateways: set[str] = set(names.existing(self._namespace, "gateway"))
        self._started: dict[str, threading.Event] = {}
        self._hosts: dict[str, ActorHandle] = {}
        self._openings: dict[str, str] = {}
        self._staff: dict[str, Staff] = {}
        self._coming_back: set[str] = set()
        try:
            self._find_again()
        except Exception:  # Ray never makes an actor again whose constructor failed
            log.exception("runs of an earlier life could not be looked for")

    def enter(self, gateway: str, config: ServiceConfig) -> None:
        """A gateway, by the name of its actor, opens; all of a service must ask for the same shards and scorers.

        Raises:
            Conflict: they differ.
        """
        for name in _ALIKE:
            here, asked = getattr(self._config, name), getattr(config, name)
            if here != asked:
                raise Conflict(
                    f"service {config.name!r} on this cluster runs with {name}={here}, asked for {asked}; use the "
                    "same, or give this one another --name, or end the other first: sampler-service down"
                )
        with self._lock:
            self._gateways.add(gateway)

    def leave(self, gateway: str) -> bool:
        """A gateway closes; True when it was the last one, and all runs have been ended."""
        with self._lock:
            self._gateways.discard(gateway)
            self._gateways &= set(names.existing(self._namespace, "gateway"))  # one that was killed took no leave
            last = not self._gateways
            left = list(self._openings)
        if last:
            for run in left:
                self.close_run(run)
        return last

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        with self._lock:
            self._catalog.register_dataset(dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        return self._catalog.dataset_size(dataset)

    def open_run(self, config: RunConfig) -> bool:
        policy_of(config)  # its errors, before any actor
        self._check_room(config)
        with self._lock:
            self._settled(config.run)
            created = self._catalog.open_run(config)
            if created:
                self._started[config.run] = threading.Event()
                self._openings[config.run] = names.join(config.run, names.token())
            started, opening = self._started[config.run], self._openings[config.run]
        if not created:
            self._wait(started, config.run)
            return False
        try:
            host = start_run(config, self._config, opening)
            with self._lock:
                self._hosts[config.run] = host
        except Exception:
            self.close_run(config.run)
            raise
        finally:
            started.set()
        return True

    def close_run(self, run: str) -> None:
        with self._lock:
            self._catalog.close_run(run)
            self._started.pop(run, None)
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
            started = self._started[run]
        self._wait(started, run)
        if run not in self._hosts:
            raise Unavailable(f"run {run!r} could not be started; open it again")
        return self._hosts[run]

    def runs(self) -> list[str]:
        return sorted(self._hosts)

    def publishing(self, run: str) -> tuple[ActorHandle, int, int]:
        """The actor that takes a run's weights, the version of the next ones, and how many scorers there are; the first
        call starts them.

        Raises:
            Stale: this service has none.
            ConfigError: the cluster has no GPUs for them.
        """
        if self._make_scorer is None:
            raise Stale(NO_SCORERS)
        host, known = self.host(run), 0
        if run not in self._staff:
            gpus = placement.gpus(self._config.scorer_gpus)
            placement.check_room(f"the scorers of run {run!r}", gpus, self._config.scorers)
            statistics = host.look.remote("statistics")  # weights may have come before this registry was made anew
            known = answer(statistics, self._config.call_s, f"the actor of run {run!r}").weights_version
        with self._lock:  # making actors waits for none of them, and a run that is closed meanwhile must get none
            config = self._catalog.run(run)
            if run not in self._staff:
                make = partial(self._make_scorer, config.dataset, config.num_examples, config.sketch_dim)
                self._staff[run] = Staff(self._config, opening=self._openings[run], make=make, version=known)
            return self._staff[run].weights, self._staff[run].next_version(), self._config.scorers

    def _check_room(self, config: RunConfig) -> None:
        """Raise ConfigError when the shards of a run that is not open can't be placed at all."""
        with self._lock:
            if config.run in self._openings:
                return
        if placement.needs_group(self._config):
            bundle = placement.bundle_of(config, self._config)
            placement.check_room(f"the shards of run {config.run!r}", bundle, self._config.shards)

    def _wait(self, started: threading.Event, run: str) -> None:
        if not started.wait(self._config.call_s):
            raise Unavailable(f"run {run!r} is still being started; is the cluster short of GPUs or memory?")

    def _settled(self, run: str) -> None:
        if run in self._coming_back:
            raise Unavailable(
                f"run {run!r} is being taken back: the registry was made anew, and has yet to hear from it"
            )

    def _find_again(self) -> None:
        """Take back the runs of an earlier life of this actor, and end what it left half started or half ended."""
        runs = {names.opening_of(name) for name in names.existing(self._namespace, "run")}
        for opening in openings(self._namespace):
            run = names.run_of(opening)
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
                self.close_run(run)
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
            self._catalog.open_run(config)
            self._started[run] = threading.Event()
            self._started[run].set()
            self._hosts[run] = host
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
