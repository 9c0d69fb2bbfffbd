"""What runs where: plain classes made into actors, and only here.

A registry for all, a run actor per run, its shards beside it. CPUs are not reserved: on a small machine a third
run must not wait for ever for a core that two others hold.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

import ray
from ray.actor import ActorHandle

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import SamplerError, Unavailable
from sampler_service.policies import make_policy
from sampler_service.reports import option_values
from sampler_service.runtime.calls import answer
from sampler_service.runtime.ray_shards import RayShards
from sampler_service.sampler import Sampler
from sampler_service.service import Catalog
from sampler_service.shard import Shard

log = logging.getLogger(__name__)

NAMESPACE = "sampler-service"
REGISTRY = "registry"

REFRESH_CHECK_S = 0.25
"""pause between two looks at whether the clusters are due"""

RETRIES = 3
"""calls to a shard that died are made again to the one that takes its place: each overwrites, none adds up"""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
        self._sampler.recover()  # of shards that are new, nothing
        threading.Thread(target=self._refresh_forever, name="refresh", daemon=True).start()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the sampler; one entry, so that the actor needs no copy of its face."""
        return getattr(self._sampler, method)(*args)

    def _refresh_forever(self) -> None:
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

    Looking up a run must not wait while another one starts, so calls overlap: those that change it hold a lock.
    """

    def __init__(self, config: ServiceConfig) -> None:
        quiet_logging()
        self._config = config
        self._changing = threading.Lock()
        self._catalog = Catalog()
        self._hosts: dict[str, ActorHandle] = {}
        self._shards: dict[str, list[ActorHandle]] = {}

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        with self._changing:
            self._catalog.register_dataset(dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        return self._catalog.dataset_size(dataset)

    def open_run(self, config: RunConfig) -> bool:
        make_policy(config.policy, option_values(config.policy_options))  # its errors, before any actor
        with self._changing:
            if not self._catalog.open_run(config):
                return False
            try:
                self._start(config)
            except Exception:
                self._end(config.run)
                raise
            return True

    def close_run(self, run: str) -> None:
        with self._changing:
            self._end(run)

    def host(self, run: str) -> ActorHandle:
        """The actor of a run."""
        self._catalog.run(run)
        if run not in self._hosts:
            raise Unavailable(f"run {run!r} is being started")
        return self._hosts[run]

    def runs(self) -> list[str]:
        return sorted(self._hosts)

    def close(self) -> None:
        for run in self.runs():
            self.close_run(run)

    def _end(self, run: str) -> None:
        self._catalog.runs.pop(run, None)
        for actor in [*filter(None, [self._hosts.pop(run, None)]), *self._shards.pop(run, [])]:
            ray.kill(actor)

    def _start(self, config: RunConfig) -> None:
        service = self._config
        # Spinning OpenMP threads cost up to 15 times on a busy core.
        env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(service.threads_per_shard), **_ONE_THREAD}
        names = [f"{config.run}/{uuid.uuid4().hex}/{number}" for number in range(service.shards)]
        shard = ray.remote(Shard)
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
        host = ray.remote(RunHost).options(
            num_cpus=0, max_concurrency=16, max_restarts=-1, runtime_env={"env_vars": env}
        )
        started = host.remote(config, names, service.call_s)
        self._hosts[config.run] = started
        answer(started.call.remote("refresh_due"), 3 * service.call_s, f"the actor of run {config.run!r} to start")


def find_registry(config: ServiceConfig) -> ActorHandle:
    """The cluster's registry, started when there is none."""
    options = {
        "name": REGISTRY,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_concurrency": 8,
        "runtime_env": {"env_vars": _ONE_THREAD},
    }
    return ray.remote(Registry).options(**options).remote(config)
