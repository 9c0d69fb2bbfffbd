"""The running service, seen from the process that started a gateway of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.config import ServiceConfig
from sampler_service.errors import ConfigError, SamplerError, Unavailable
from sampler_service.runtime import names, placement
from sampler_service.runtime.calls import Ended, answer, finished
from sampler_service.runtime.ending import DRAINED_S, GRACE_S, LEAVE_S, end_service
from sampler_service.runtime.gateway import Gateway, Serve, ServePage
from sampler_service.runtime.joining import connect
from sampler_service.runtime.page import KeptPage
from sampler_service.runtime.registry import find_registry
from sampler_service.scorers import MakeScorer

log = logging.getLogger(__name__)

SLOW_S = 20.0
"""beyond what a gateway was asked to wait, after which it is slow"""

NODE_CHECK_S = 5.0
"""between two looks at whether a gateway that is awaited still has a node"""

ENTER_PAUSE_S = 0.5
"""between two tries to enter"""

NEW_GATEWAYS, WITHIN_S = 5, 60.0
"""gateways that are made in the place of ones that died, at most, within this time"""

ANY_HOST = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1"}
"""where to reach, from its own node, a gateway that listens on all interfaces"""


class Cluster:
    """Args:
        serve: makes the server; given by the composition root, since this side knows no gRPC.
        serve_page: makes the page's server, if the configuration has one.
        config: of the service.
        address: of a Ray cluster to join ("auto", "host:6379"); None starts one in this process's care.
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
        self._serve, self._config, self._make_scorer = serve, config, make_scorer
        self._gateway: Any = None
        self._page: KeptPage | None = None
        self._serves = False
        self._died: deque[float] = deque()
        connect(address, config.name)
        try:
            # Before it enters: while its actor is there, no other gateway is the last.
            self._make_gateway()
            self._enter()
            _check_gpus(config, own=address is None)
            self.port = self._start_gateway(config.port)
            if config.page_port is not None:
                reached = f"{ANY_HOST.get(config.host, config.host)}:{self.port}"
                self._page = KeptPage(_here(config), serve_page, reached, config)
        except BaseException:
            self._serves = False
            self._end()
            raise

    @property
    def page_port(self) -> int | None:
        """Where the page is, if there is one."""
        return self._page.port if self._page else None

    def _make_gateway(self) -> None:
        self._name = names.join("gateway", names.token())
        gateway: Any = ray.remote(Gateway).options(**_here(self._config), name=self._name)
        self._gateway = gateway.remote()

    def _start_gateway(self, port: int) -> int:
        """Have the gateway listen; its port."""
        config = replace(self._config, port=port)
        started = self._gateway.start.remote(self._serve, config, self._make_scorer)
        until = time.monotonic() + 6 * config.call_s
        while not finished(started, NODE_CHECK_S) and time.monotonic() < until:
            _check_node()
        listens_on = answer(started, max(0.0, until - time.monotonic()), "the gateway to start")
        self._serves = True
        return listens_on

    def _enter(self) -> None:
        """Be one of the service's gateways. A registry that is just ending with the last of them is waited for: the
        next try makes a new one."""
        until = time.monotonic() + 6 * self._config.call_s
        while True:
            registry: Any = find_registry(self._config, self._make_scorer)
            try:
                limit_s = max(0.0, until - time.monotonic())
                return answer(registry.enter.remote(self._config), limit_s, "the registry to start")
            except Unavailable as error:
                if time.monotonic() + ENTER_PAUSE_S > until:
                    raise
                log.info("trying again: %s", error)
                time.sleep(ENTER_PAUSE_S)

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether a stop was asked for, by `sampler-service stop` or `down`; waits for it. A gateway or a page that has
        died is made anew, on the same port.

        Raises:
            Ended: it dies again and again, or its node is lost. Runs stay for the next gateway, or for `down`.
        """
        reference = self._gateway.wait_for_stop.remote(timeout_s)
        if self._page is not None:
            self._page.keep()
        try:
            return answer(reference, timeout_s + SLOW_S, "the gateway")
        except Ended as error:
            self._replace_gateway(error)
        except Unavailable as error:
            log.warning("the gateway is slow: %s", error)
        return False

    def _replace_gateway(self, why: Ended) -> None:
        now = time.monotonic()
        self._died.append(now)
        while self._died[0] < now - WITHIN_S:
            self._died.popleft()
        self._serves = False
        _check_node()
        if len(self._died) > NEW_GATEWAYS:
            raise Ended(f"the gateway has died {len(self._died)} times within {WITHIN_S:g} s; the last time: {why}")
        log.warning("%s; another is started on port %d", why, self.port)
        self._make_gateway()
        self._start_gateway(self.port)

    def stop(self) -> None:
        """Drain the gateway and leave the cluster; the last gateway ends all runs.

        A gateway that died takes no leave: its runs wait for the one that is started in its place, or for `down`.
        """
        leaves = True
        try:
            if self._page is not None:
                self._page.stop(GRACE_S)
            answer(self._gateway.drain.remote(GRACE_S), DRAINED_S, "the gateway to drain")
        except Ended as error:
            log.warning("runs are left as they are: %s", error)
            leaves = False
        except SamplerError as error:
            log.warning("stopping anyway: %s", error)
        finally:
            self._end(leaves=leaves)

    def _end(self, *, leaves: bool = True) -> None:
        """Take leave of the others, and end what is this process's own."""
        try:
            # Registry and runs are detached: on a cluster that goes on they would outlive the last of us.
            if leaves:
                self._leave()
        except SamplerError as error:
            log.warning("stopping anyway: %s", error)
        finally:
            if self._page is not None:
                self._page.kill()
            if self._gateway is not None:
                ray.kill(self._gateway)
            ray.shutdown()

    def _leave(self) -> None:
        try:
            registry: Any = ray.get_actor(names.REGISTRY, self._config.name)
        except ValueError:  # the service has been ended
            return
        left = registry.leave.remote(self._name, ends_runs=self._serves)
        if answer(left, LEAVE_S, "the registry to close its runs"):
            end_service(self._config.name)


def _check_node() -> None:
    """Raise Ended when the cluster has given up this machine's node: no actor starts there any more."""
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
        raise Ended(
            "this machine's Ray node is no longer part of the cluster: start Ray here again, and then the service"
        )


def _here(config: ServiceConfig) -> dict[str, Any]:
    """Options of an actor of this node, which ends with this process."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "max_concurrency": 8, "scheduling_strategy": node, "namespace": config.name}


def _check_gpus(config: ServiceConfig, *, own: bool) -> None:
    """Say now what every run would hear: a cluster of one's own gets no GPUs later, another may."""
    try:
        placement.check_room([placement.shards(config), placement.scorers(config)])
    except ConfigError as error:
        if own:
            raise
        log.warning("no run can be opened yet: %s", error)
