"""What runs where: plain classes made into actors, and only here.

A registry for all, a run actor per run, its shards beside it. CPUs are not reserved: on a small machine a third
run must not wait for ever for a core that two others hold.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import SamplerError
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

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RunHost:
    """A Sampler, its shards, and the thread that makes its clusters anew."""

    def __init__(self, config: RunConfig, shards: list[ActorHandle], call_s: float) -> None:
        logging.basicConfig(level=logging.INFO)
        self._sampler = Sampler(
            config,
            RayShards(shards, config.num_examples, config.sketch_dim, call_s),
            timeout_s=call_s,
            # Above every id of an earlier life of this run, so that ids rise over restarts as well.
            first_batch_id=int(time.time()) << 20,
        )
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._sampler.recover()
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
    """Remembers datasets and runs, and starts the actors of a run."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._catalog = Catalog()
        self._hosts: dict[str, ActorHandle] = {}
        self._shards: dict[str, list[ActorHandle]] = {}

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        self._catalog.register_dataset(dataset, num_examples)

    def dataset_size(self, dataset: str) -> int:
        return self._catalog.dataset_size(dataset)

    def open_run(self, config: RunConfig) -> bool:
        make_policy(config.policy, option_values(config.policy_options))  # its errors, before any actor
        if not self._catalog.open_run(config):
            return False
        try:
            self._start(config)
        except Exception:
            self.close_run(config.run)
            raise
        return True

    def close_run(self, run: str) -> None:
        self._catalog.runs.pop(run, None)
        for actor in [*filter(None, [self._hosts.pop(run, None)]), *self._shards.pop(run, [])]:
            ray.kill(actor)

    def host(self, run: str) -> ActorHandle:
        """The actor of a run."""
        self._catalog.run(run)
        return self._hosts[run]

    def runs(self) -> list[str]:
        return sorted(self._hosts)

    def close(self) -> None:
        for run in self.runs():
            self.close_run(run)

    def _start(self, config: RunConfig) -> None:
        service = self._config
        # Spinning OpenMP threads cost up to 15 times on a busy core.
        env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(service.threads_per_shard), **_ONE_THREAD}
        shard = ray.remote(Shard).options(
            num_cpus=0, num_gpus=service.gpus_per_shard, max_restarts=-1, runtime_env={"env_vars": env}
        )
        self._shards[config.run] = [
            shard.remote(number, service.shards, config.num_examples, config.sketch_dim, config.sketch_dtype)
            for number in range(service.shards)
        ]
        host = ray.remote(RunHost).options(
            num_cpus=0, max_concurrency=16, max_restarts=-1, runtime_env={"env_vars": env}
        )
        self._hosts[config.run] = host.remote(config, self._shards[config.run], service.call_s)
        ready = self._hosts[config.run].call.remote("refresh_due")
        answer(ready, 3 * service.call_s, f"the actor of run {config.run!r} to start")


def find_registry(config: ServiceConfig) -> ActorHandle:
    """The cluster's registry, started when there is none."""
    options = {
        "name": REGISTRY,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        # Looking up a run must not wait while another one starts.
        "max_concurrency": 8,
        "runtime_env": {"env_vars": _ONE_THREAD},
    }
    return ray.remote(Registry).options(**options).remote(config)
