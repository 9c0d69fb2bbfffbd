"""The actors of one run: its Sampler, its shards, and how they are started and ended.

CPUs are not reserved: on a small machine a third run must not wait for ever for a core that two others hold.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import SamplerError, Unavailable
from sampler_service.runtime import kept, names, placement
from sampler_service.runtime.calls import LOOKS, REPORTS, answer
from sampler_service.runtime.ray_scorers import ONE_THREAD
from sampler_service.runtime.ray_shards import RayShards
from sampler_service.sampler import Sampler
from sampler_service.service import Catalog
from sampler_service.shard import Shard

log = logging.getLogger(__name__)

REFRESH_CHECK_S = 0.25
"""pause between two looks at whether the clusters are due"""

RETRIES = 3
"""calls to a shard that died are made again to the one that takes its place: each overwrites, none adds up"""

CALLS = 16
"""threads of a run's actor for batches, and all that waits for nobody"""

CONCURRENCY = {REPORTS: 16, LOOKS: 4}
"""those that are kept apart, by what they are for"""

INNER_SHARE = 0.45
"""of a call's deadline, for a call to the shards within it: two in turn end first, and name the shard that was away"""

RECOVER_S = 20.0
"""within which all shards should be back, when a run is; then it goes on without those that are not"""


def quiet_logging() -> None:
    """Our own progress, and of others what is a warning."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("sampler_service").setLevel(logging.INFO)


class RunHost:
    """A Sampler, its shards, and the thread that makes its clusters anew.

    Shards come by name: Ray can't be sure to make an actor again whose constructor was given a handle
    (ray-project/ray#53727).
    """

    def __init__(self, config: RunConfig, service: ServiceConfig, shards: list[str], group: str) -> None:
        quiet_logging()
        self._config = config
        self._namespace = service.name
        self._group = group
        inner_s = INNER_SHARE * service.call_s
        actors = [ray.get_actor(name, service.name) for name in shards]
        self._sampler = Sampler(
            config,
            RayShards(actors, config.num_examples, config.sketch_dim, inner_s),
            timeout_s=inner_s,
            # Above every id of an earlier life of this run, so that ids rise over restarts as well.
            first_batch_id=int(time.time()) << 20,
        )
        self._inner_s = inner_s
        self._recovered = threading.Event()
        self._missing = "its shards"
        threading.Thread(target=self._refresh_forever, name="refresh", daemon=True).start()

    def config(self) -> RunConfig:
        """What the run was opened with, for a registry that was made anew."""
        return self._config

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the sampler; one entry, so that the actor needs no copy of its face."""
        if not self._recovered.wait(self._inner_s):
            raise Unavailable(f"the run is taking back what its shards hold, and waits for {self._missing}")
        return getattr(self._sampler, method)(*args, **options)

    def _refresh_forever(self) -> None:
        # Not in the constructor: Ray never makes an actor again whose constructor failed, and after the loss of a
        # node the shards may be later than this actor.
        until = time.monotonic() + RECOVER_S
        while not self._recovered.is_set():
            try:
                late = time.monotonic() > until
                # The data set as it is by now, whatever this actor was made with.
                dataset = Catalog(**kept.kept(self._namespace)).dataset(self._config.dataset)
                self._sampler.recover(dataset, partial=late)  # of shards that are new, nothing
                self._recovered.set()
                if late:
                    log.warning("the run goes on without shards that are away: %s", self._missing)
            except SamplerError as error:
                self._missing = f"{error}{self._without_room()}"
                log.warning("not recovered yet: %s", self._missing)
                time.sleep(REFRESH_CHECK_S)
        while True:
            time.sleep(REFRESH_CHECK_S)
            try:
                reason = self._sampler.refresh_due()
                if reason:
                    self._sampler.refresh()
            except SamplerError as error:  # a shard is away: the old clusters serve on until it is back
                log.warning("clusters, orders or near pairs could not be made anew: %s", error)
            except Exception:
                log.exception("clusters, orders or near pairs could not be made anew")

    def _without_room(self) -> str:
        """Of what the run has lost, what fits on no node that is left."""
        try:
            lost = placement.unplaced(self._group)
        except Exception:
            log.exception("Ray does not say what has a place")
            return ""
        return f"; no node has room for {', '.join(lost)}" if lost else ""


def _no_word_of_groups(record: logging.LogRecord) -> bool:
    """Drop Ray's warning that an actor ends with its placement group: both end with the run."""
    return "detached actor with a placement group is not recommended" not in record.getMessage()


def start_run(config: RunConfig, service: ServiceConfig, opening: str) -> ActorHandle:
    """Start the actors of a run, and return that of the run itself once it answers.

    Raises:
        Busy: others use what its shards need.
        Unavailable: it does not answer in time. What was started is there until `end_run`.
    """
    # Spinning OpenMP threads cost up to 15 times on a busy core.
    env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(service.threads_per_shard), **ONE_THREAD}
    lasting = {"namespace": service.name, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1}
    options = {**lasting, "runtime_env": {"env_vars": env}}
    group, own = None, None
    if placement.needs_group(service):
        logging.getLogger("ray.actor").addFilter(_no_word_of_groups)
        group = placement.reserve(_group(service.name, opening), placement.shards(service, config))
        # Apart from its shards, which so are spread evenly.
        own = placement.reserve(_group(service.name, opening, "its actor"), placement.run_actor(config))
    shards = [names.join("shard", opening, number) for number in range(service.shards)]
    for number, name in enumerate(shards):
        shard: Any = ray.remote(Shard).options(
            **options,
            name=name,
            num_gpus=service.gpus_per_shard,
            max_task_retries=RETRIES,
            scheduling_strategy=placement.in_group(group, number),
        )
        shard.remote(number, service.shards, config.num_examples, config.sketch_dim, config.sketch_dtype)
    run_host: Any = ray.remote(concurrency_groups=CONCURRENCY)(RunHost)  # pyright: ignore[reportCallIssue]
    host = run_host.options(
        **options,
        name=names.join("run", opening),
        max_concurrency=CALLS,
        scheduling_strategy=placement.in_group(own, 0),
    )
    started = host.remote(config, service, shards, _group(service.name, opening))
    answer(started.call.remote("refresh_due"), 3 * service.call_s, f"the actor of run {config.run!r} to start")
    return started


def end_run(namespace: str, opening: str) -> None:
    """End all actors of a run. The run itself goes first: without it the others are known to be left over."""
    for name in sorted(names.existing(namespace), key=lambda name: not name.startswith("run:")):
        if names.opening_of(name) == opening:
            names.kill(namespace, name)
    release(namespace, opening)


def reserve_scorers(service: ServiceConfig, opening: str) -> PlacementGroup | None:
    """Room for the scorers of a run, if they have GPUs.

    Raises:
        ConfigError: the cluster has none.
        Busy: others use them.
    """
    if not service.scorer_gpus:
        return None
    logging.getLogger("ray.actor").addFilter(_no_word_of_groups)
    need = placement.scorers(service, f"run {names.run_of(opening)!r}")
    placement.check_room([need])
    return placement.reserve(_group(service.name, opening, "its scorers"), need)


def release(namespace: str, opening: str) -> None:
    """Give back all room that was reserved for a run."""
    for name in placement.reserved(_group(namespace, opening)):
        placement.release(name)


def openings(namespace: str) -> set[str]:
    """Openings of which anything is there: an actor, or room that was reserved."""
    found = {names.opening_of(name) for name in names.existing(namespace)} - {""}
    prefix = _group(namespace, "")
    return found | {":".join(name.split(":")[1:3]) for name in placement.reserved(prefix)}


def _group(namespace: str, opening: str, *what: str) -> str:
    return names.join(namespace, opening, *what)
