"""The running service, seen from the process that started a gateway of it."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.config import ServiceConfig
from sampler_service.errors import ConfigError, SamplerError
from sampler_service.runtime import names, placement
from sampler_service.runtime.calls import answer
from sampler_service.runtime.ending import end_service
from sampler_service.runtime.gateway import Gateway, Serve, ServePage
from sampler_service.runtime.joining import connect
from sampler_service.runtime.page import KeptPage
from sampler_service.runtime.registry import find_registry
from sampler_service.scorers import MakeScorer

log = logging.getLogger(__name__)

LEAVE_S = 30.0
"""within which the registry must have ended the runs of the last gateway"""

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}
"""where to reach, from its own node, a gateway that listens on all interfaces"""


class Cluster:
    """Args:
        serve: makes the server; given by the composition root, since this side knows no gRPC.
        serve_page: makes the page's server, if the configuration has one.
        config: of the service.
        address: of a Ray cluster to join ("auto", "host:6379", "ray://…"); None starts one in this process's care.
        make_scorer: makes what scores a dataset, in a scorer's process; given by the composition root, since this side
            knows no torch. None: there are no scorers.

    Raises:
        ConfigError: the port is in use, or a cluster of one's own has no GPUs for what was asked for.
        Conflict: a service of this name runs there with other shards or scorers.
        Unavailable: the cluster can't be reached, or its actors don't start.
    """

    def __init__(
        self,
        serve: Serve,
        serve_page: ServePage,
        config: ServiceConfig,
        address: str | None,
        make_scorer: MakeScorer | None = None,
    ) -> None:
        self._namespace = config.name
        self._name = names.join("gateway", names.token())
        self._gateway: Any = None
        self._registry: Any = None
        self._page: KeptPage | None = None
        connect(address, config.name)
        try:
            node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            here = {"num_cpus": 0, "max_concurrency": 8, "scheduling_strategy": node, "namespace": config.name}
            # Before it enters: the registry believes in those alone that are there.
            gateway: Any = ray.remote(Gateway).options(**here, name=self._name)
            self._gateway = gateway.remote()
            self._registry = find_registry(config, make_scorer)
            entered = self._registry.enter.remote(self._name, config)
            answer(entered, 6 * config.call_s, "the registry to start")
            _check_gpus(config, own=address is None)
            started = self._gateway.start.remote(serve, config, make_scorer)
            self.port: int = answer(started, 6 * config.call_s, "the gateway to start")
            if config.page_port is not None:
                reached = f"{ANY_HOST.get(config.host, config.host)}:{self.port}"
                self._page = KeptPage(here, serve_page, reached, config)
        except BaseException:
            self._end()
            raise

    @property
    def page_port(self) -> int | None:
        """Where the page is, if there is one."""
        return self._page.port if self._page else None

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether a stop was asked for, by `sampler-service stop` or `down`; waits for it, and keeps the page up."""
        reference = self._gateway.wait_for_stop.remote(timeout_s)
        if self._page is not None:
            self._page.keep()
        return answer(reference, timeout_s + 20.0, "the gateway")

    def stop(self, grace_s: float = 5.0) -> None:
        """Drain the gateway and leave the cluster; the last gateway ends all runs.

        A gateway that crashed takes no leave: its runs wait for the one that is started in its place, or for `down`.
        """
        leaves = False
        try:
            if self._page is not None:
                self._page.stop(grace_s)
            answer(self._gateway.drain.remote(grace_s), grace_s + 10.0, "the gateway to drain")
            leaves = True
        except SamplerError as error:
            log.warning("stopping anyway: %s", error)
        finally:
            self._end(leaves=leaves)

    def _end(self, *, leaves: bool = True) -> None:
        """Take leave of the others, and end what is this process's own."""
        try:
            # Registry and runs are detached: on a cluster that goes on they would outlive the last of us.
            if leaves and self._registry is not None:
                last = answer(self._registry.leave.remote(self._name), LEAVE_S, "the registry to close its runs")
                if last:
                    end_service(self._namespace)
        except SamplerError as error:
            log.warning("stopping anyway: %s", error)
        finally:
            if self._page is not None:
                self._page.kill()
            if self._gateway is not None:
                ray.kill(self._gateway)
            ray.shutdown()


def _check_gpus(config: ServiceConfig, *, own: bool) -> None:
    """Say now what every run would hear: a cluster of one's own gets no GPUs later, another may."""
    for what, gpus, count in (
        ("the shards of each run", config.gpus_per_shard, config.shards),
        ("the scorers of each run", config.scorer_gpus, config.scorers),
    ):
        try:
            placement.check_room(what, placement.gpus(gpus), count)
        except ConfigError as error:
            if own:
                raise
            log.warning("no run can be opened yet: %s", error)
