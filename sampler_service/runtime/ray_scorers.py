"""The scorers of a run on actors: what one of them is, how it reaches its run, and how weights reach it.

Weights travel in parts past the run's actor, which batches wait for: gateway ─▶ weights actor ─▶ scorers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup

from sampler_service.config import ServiceConfig
from sampler_service.errors import Unavailable
from sampler_service.runtime import names, placement
from sampler_service.runtime.calls import answer, call_run
from sampler_service.scorers import RowScorer, ScorerLoop, Weights
from sampler_service.types import ScoreReport, Work
from sampler_service.weights import WeightsStore, in_parts

log = logging.getLogger(__name__)

PARTS_IN_FLIGHT = 4
"""of weights on their way between two processes: a bound on the memory of either"""

LOW_PRIORITY = 10
"""of a scorer on the CPU (nice): what trainers and the service leave over is enough for it"""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RayDesk:
    """A `scorers.Desk` on actors, which are looked up by name: each may be made again at any time."""

    def __init__(self, namespace: str, run_actor: str, weights_actor: str, call_s: float) -> None:
        self._namespace = namespace
        self._names = {"the run": run_actor, "the weights": weights_actor}
        self._actors: dict[str, ActorHandle] = {}
        self._call_s = call_s

    def weights(self, after: int) -> Weights | None:
        store: Any = self._actor("the weights")
        found = answer(store.newest.remote(after), self._call_s, "the weights that this scorer is for")
        if found is None:
            return None
        version, step, count = found
        parts: list[bytes] = []
        waiting = deque(store.part.remote(version, number) for number in range(min(count, PARTS_IN_FLIGHT)))
        while waiting:
            part = answer(waiting.popleft(), self._call_s, "the weights of the run")
            if part is None:  # newer ones took their place; the next turn fetches those
                return None
            parts.append(part)
            if (number := len(parts) + len(waiting)) < count:
                waiting.append(store.part.remote(version, number))
        return version, step, b"".join(parts)

    def to_score(self, scorer: str, version: int, step: int, count: int) -> Work:
        return self._ask_run("to_score", scorer, version, step, count)

    def take_scores(self, report: ScoreReport) -> None:
        self._ask_run("take_scores", report)

    def _ask_run(self, method: str, *args: Any) -> Any:
        return answer(call_run(self._actor("the run"), method, *args), self._call_s, "the run that this scorer is for")

    def _actor(self, whom: str) -> ActorHandle:
        if whom not in self._actors:
            try:
                self._actors[whom] = ray.get_actor(self._names[whom], self._namespace)
            except ValueError as error:
                raise Unavailable(f"{whom} that this scorer is for can't be found yet: {error}") from error
        return self._actors[whom]


class ScorerHost:
    """A scorer in a process of its own, which works from its start to its end.

    Nothing here can fail but in the loop, since Ray never makes an actor again whose constructor failed.

    Args:
        name: of the scorer.
        make: makes the model and its records.
        desk: the run.
        polite: whether it leaves the CPU to others.
    """

    def __init__(self, name: str, make: Callable[[], RowScorer], desk: RayDesk, polite: bool) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        if polite:
            os.nice(LOW_PRIORITY)
        self._loop = ScorerLoop(name, make, desk)
        threading.Thread(target=self._work_forever, name="scorer", daemon=True).start()

    def _work_forever(self) -> None:
        try:
            while True:  # the registry ends this process with the run
                time.sleep(self._loop.turn())
        except BaseException:
            # Such as SystemExit from the operator's code. Without this thread the process would idle for ever; when it
            # ends, Ray makes it anew.
            log.exception("this scorer ends, and is started again")
            os._exit(1)


class Staff:
    """The scorers of one run and the actor of their weights, made now or found again by their names. Making one waits
    for none of them to start.

    Args:
        service: how many scorers, and where.
        opening: of the run, by which its actors are named.
        make: makes the model and its records, in the scorer's process.
        version: of the newest weights that the run knows.
        group: room for them, if they have GPUs.
    """

    def __init__(
        self,
        service: ServiceConfig,
        *,
        opening: str,
        make: Callable[[], RowScorer],
        version: int = 0,
        group: PlacementGroup | None = None,
    ) -> None:
        self._version = version
        weights_name = names.join("weights", opening)
        lasting = {"namespace": service.name, "lifetime": "detached", "get_if_exists": True, "max_restarts": -1}
        store: Any = ray.remote(WeightsStore).options(**lasting, name=weights_name, num_cpus=0)
        self.weights: ActorHandle = store.remote()
        threads = str(service.threads_per_scorer)
        env = {**ONE_THREAD, "MKL_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        desk = RayDesk(service.name, names.join("run", opening), weights_name, service.call_s)
        for number in range(service.scorers):
            host: Any = ray.remote(ScorerHost).options(
                **lasting,
                name=names.join("scorer", opening, number),
                num_cpus=0,
                num_gpus=service.scorer_gpus,
                scheduling_strategy=placement.in_group(group, number),
                runtime_env={"env_vars": env},
            )
            host.remote(f"scorer {number}", make, desk, not service.scorer_gpus)

    def next_version(self) -> int:
        """Of the weights that come next; counted here, so that it rises though the weights' actor was restarted."""
        self._version += 1
        return self._version


def send_weights(store: Any, version: int, step: int, chunks: Iterable[bytes], timeout_s: float) -> None:
    """Hand weights on to their actor while they come.

    Raises:
        Unavailable: the actor does not answer.
        Exception: what `chunks` raises; the weights before stay.
    """
    whom = "the actor that keeps the weights"
    waiting: deque[Any] = deque([store.begin.remote(version, step)])
    try:
        for part in in_parts(chunks):
            waiting.append(store.append.remote(version, part))
            while len(waiting) > PARTS_IN_FLIGHT:
                answer(waiting.popleft(), timeout_s, whom)
        waiting.append(store.finish.remote(version))
        while waiting:
            answer(waiting.popleft(), timeout_s, whom)
    except BaseException:
        store.abandon.remote(version)
        raise
