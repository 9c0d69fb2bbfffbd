"""What runs where: plain classes made into actors, and only here.

A registry for all, a run actor per run, its shards beside it. CPUs are not reserved: on a small machine a third
run must not wait for ever for a core that two others hold.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import Conflict, SamplerError, Stale, Unavailable
from sampler_service.reports import policy_of
from sampler_service.runtime.calls import answer
from sampler_service.runtime.ray_scorers import ONE_THREAD, Staff
from sampler_service.runtime.ray_shards import RayShards
from sampler_service.sampler import Sampler
from sampler_service.scorers import MakeScorer
from sampler_service.service import Catalog
from sampler_service.shard import Shard
from sampler_service.weights import NO_SCORERS

log = logging.getLogger(__name__)

NAMESPACE = "sampler-service"
REGISTRY = "registry"

REFRESH_CHECK_S = 0.25
"""pause between two looks at whether the clusters are due"""

RETRIES = 3
"""calls to a shard that died are made again to the one that takes its place: each overwrites, none adds up"""


def quiet_logging() -> None:
    """Our own progress, and of others what is a warning."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("sampler_service").setLevel(logging.INFO)


class RunHost:
    """A Sampler, its shards, and the thread that makes its clusters anew.

    Shards come by name: Ray can't be sure to make an actor again whose constructor was given a handle
    (ray-project/ray#53727).
    """

    def __init__(self, config: RunConfig, shards: list[str], call_s: float) -> None:
        quiet_logging()
        actors = [ray.get_actor(name, NAMESPACE) for name in shards]
        self._sampler = Sampler(
            config,
            RayShards(actors, config.num_examples, config.sketch_dim, call_s),
            timeout_s=call_s,
            # Above every id of an earlier life of this run, so that ids rise over restarts as well.
            first_batch_id=int(time.time()) << 20,
        )
        self._call_s = call_s
        self._recovered = threading.Event()
        threading.Thread(target=self._refresh_forever, name="refresh", daemon=True).start()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the sampler; one entry, so that the actor needs no copy of its face."""
        if not self._recovered.wait(self._call_s):
            raise Unavailable("the run is taking back what its shards hold, and they do not answer yet")
        return getattr(self._sampler, method)(*args, **options)

    def _refresh_forever(self) -> None:
        # Not in the constructor: Ray never makes an actor again whose constructor failed, and after the loss of a
        # node the shards may be later than this actor.
        while not self._recovered.is_set():
            try:
                self._sampler.recover()  # of shards that are new, nothing
                self._recovered.set()
            except SamplerError as error:
                log.warning("not recovered yet: %s", error)
                time.sleep(REFRESH_CHECK_S)
        while True:
            time.sleep(REFRESH_CHECK_S)
            try:
                reason = self._sampler.refresh_due()
                if reason:
                    self._sampler.refresh()
            except SamplerError as error:  # a shard is away: the old clusters serve on until it is back
                log.warning("clusters could not be made anew: %s", error)
            except Exception:
                log.exception("clusters could not be made anew")


class Registry:
    """Remembers datasets and runs, and starts the actors of a run.

    Calls overlap: nobody waits for a run to start but those who opened that run. When the registry dies its actors
    die with it, which is for trainers as if the service had been restarted.

    Args:
        config: of the service.
        make_scorer: makes what scores a dataset, in a scorer's process.
    """

    def __init__(self, config: ServiceConfig, make_scorer: MakeScorer | None) -> None:
        quiet_logging()
        self._config = config
        self._make_scorer = make_scorer
        self._lock = threading.Lock()
        self._catalog = Catalog()
        self._gateways: set[str] = set()
        self._started: dict[str, threading.Event] = {}
        self._hosts: dict[str, ActorHandle] = {}
        self._shards: dict[str, list[ActorHandle]] = {}
        self._names: dict[str, str] = {}
        self._staff: dict[str, Staff] = {}

    def enter(self, gateway: str, config: ServiceConfig) -> None:
        """A gateway opens; all of a cluster must ask for the same shards and scorers.

        Raises:
            Conflict: they differ.
        """
        of_shards, of_scorers = ("shards", "gpus_per_shard", "threads_per_shard"), ("scorers", "scoring", "scorer_gpus")
        for name in (*of_shards, *of_scorers, "threads_per_scorer"):
            here, asked = getattr(self._config, name), getattr(config, name)
            if here != asked:
                raise Conflict(
                    f"the service on this cluster runs with {name}={here}, asked for {asked}; use the same, or stop "
                    "the other gateways first"
                )
        with self._lock:
            self._gateways.add(gateway)

    def leave(self, gateway: str) -> bool:
        """A gateway closes; True when it was the last one, and all runs have been ended."""
        with self._lock:
            self._gateways.discard(gateway)
            last = not self._gateways
        if last:
            for run in self.runs():
                self.close_run(run)
        return last

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        with self._lock:
            self._catalog.register_dataset(dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        return self._catalog.dataset_size(dataset)

    def open_run(self, config: RunConfig) -> bool:
        policy_of(config)  # its errors, before any actor
        with self._lock:
            created = self._catalog.open_run(config)
            if created:
                self._started[config.run] = threading.Event()
            started = self._started[config.run]
        if not created:
            self._wait(started, config.run)
            return False
        try:
            self._start(config)
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
            self._names.pop(run, None)
            actors = [*filter(None, [self._hosts.pop(run, None)]), *self._shards.pop(run, [])]
            staff = self._staff.pop(run, None)
            actors = [*(staff.actors() if staff else ()), *actors]
        for actor in actors:
            ray.kill(actor)

    def host(self, run: str) -> ActorHandle:
        """The actor of a run."""
        with self._lock:
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
        """
        if self._make_scorer is None:
            raise Stale(NO_SCORERS)
        self.host(run)
        with self._lock:  # making actors waits for none of them, and a run that is closed meanwhile must get none
            config = self._catalog.run(run)
            if run not in self._staff:
                make = partial(self._make_scorer, config.dataset, config.num_examples, config.sketch_dim)
                self._staff[run] = Staff(
                    config, self._config, namespace=NAMESPACE, run_actor=self._names[run], make=make
                )
            return self._staff[run].weights, self._staff[run].next_version(), self._config.scorers

    def _wait(self, started: threading.Event, run: str) -> None:
        if not started.wait(self._config.call_s):
            raise Unavailable(f"run {run!r} is still being started; is the cluster short of GPUs or memory?")

    def _start(self, config: RunConfig) -> None:
        service = self._config
        # Spinning OpenMP threads cost up to 15 times on a busy core.
        env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(service.threads_per_shard), **ONE_THREAD}
        names = [f"{config.run}/{uuid.uuid4().hex}/{number}" for number in range(service.shards)]
        shard: Any = ray.remote(Shard)
        self._shards[config.run] = [
            shard.options(
                name=name,
                namespace=NAMESPACE,
                num_cpus=0,
                num_gpus=service.gpus_per_shard,
                max_restarts=-1,
                max_task_retries=RETRIES,
                runtime_env={"env_vars": env},
            ).remote(number, service.shards, config.num_examples, config.sketch_dim, config.sketch_dtype)
            for number, name in enumerate(names)
        ]
        self._names[config.run] = f"{config.run}/{uuid.uuid4().hex}/run"
        host: Any = ray.remote(RunHost).options(
            name=self._names[config.run],
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=16,
            max_restarts=-1,
            runtime_env={"env_vars": env},
        )
        started = host.remote(config, names, service.call_s)
        self._hosts[config.run] = started
        answer(started.call.remote("refresh_due"), 3 * service.call_s, f"the actor of run {config.run!r} to start")


def find_registry(config: ServiceConfig, make_scorer: MakeScorer | None) -> ActorHandle:
    """The cluster's registry, started when there is none."""
    options = {
        "name": REGISTRY,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_concurrency": 64,
        "runtime_env": {"env_vars": ONE_THREAD},
    }
    registry: Any = ray.remote(Registry).options(**options)
    return registry.remote(config, make_scorer)
