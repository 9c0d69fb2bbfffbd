"""A live service with its page and runs that have something to say, and a real Prometheus that scrapes it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.web.server import WebServer
from tests.deploy.conftest import path_of
from tests.raw_wire import ids_of, open_session
from tests.served import ServedService
from tests.web.conftest import Trainer, Web

PROMETHEUS = Path(__file__).parents[2] / "deploy/prometheus"

SCRAPE_S = 2
"""also its deadline: a page whose service is away says so after some retries"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Runs "seen", which draws from clusters and has rejected rows, and "chosen", of two stages."""

    service: ServedService
    web: Web
    client: SamplerClient
    trainer: Trainer

    def metrics(self) -> str:
        """What Prometheus scrapes."""
        return self.web.get("/metrics").text


@contextmanager
def live() -> Iterator[Live]:
    """A service whose trainers rest, so that its figures stand still."""
    service = ServedService()
    server = WebServer(service.address, host="127.0.0.1", port=0)
    trainer = Trainer(service.address, num_examples=1000, options={"epochs": 4})
    trainer.epoch(0)
    trainer.epoch(1)
    trainer.epoch(2, steps=62)  # the variance ratio is measured anew since the clusters of the second epoch's end
    trainer.session.put(report(0, [0, 1], step=trainer.step, losses=np.array([1.0, np.nan], np.float32)))
    trainer.session.flush()
    chooser = open_session(service.address, run="chosen", options={"policy": "two_stage", "candidates": 3})
    choose(chooser)
    with SamplerClient(service.address, timeouts=Timeouts(call_s=10)) as client:
        yield Live(service=service, web=Web(server), client=client, trainer=trainer)
    for session in (trainer.session, chooser):
        session.close()
    server.stop()
    service.stop()


def choose(session: Session) -> None:
    """An epoch in two stages, without a model: what the choice saves and costs is said, not measured."""
    session.start_epoch(0, 0)
    measured = pb.Stage(scoring=0.01, training=0.02, waiting=0.001, uniform=2.0, proposed=1.5, chosen=1.0)
    witnessed = pb.Evidence(rows=64, uniform=2.0, chosen=1.2, scored_uniform=2.0, scored_chosen=1.0)
    while (batch := session.next()) is not None:
        ids = ids_of(batch)
        session.put(
            report(
                batch.batch_id, ids, step=batch.step, norms=np.ones(len(ids), np.float32), scores=True, stage=measured
            )
        )
        losses = np.ones(batch.keep or len(ids), np.float32)
        session.put(report(batch.batch_id, ids[: len(losses)], step=batch.step, losses=losses, evidence=witnessed))
        session.done(batch.batch_id)
    session.finish_epoch()
    session.flush()


def report(batch_id: int, ids: list[int], **values: Any) -> ReportRows:
    return ReportRows(batch_id=batch_id, example_ids=np.array(ids), **values)


class Prometheus:
    """A running Prometheus that scrapes one page."""

    def __init__(self, page_port: int, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: {SCRAPE_S}s, scrape_timeout: {SCRAPE_S}s, evaluation_interval: {SCRAPE_S}s}}\n"
            f"rule_files: [{PROMETHEUS / 'alerts.yml'}]\n"
            "scrape_configs:\n"
            f"  - {{job_name: sampler, static_configs: [{{targets: ['127.0.0.1:{page_port}']}}]}}\n"
        )
        self.log = folder / "prometheus.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    path_of("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer of its API.

        Raises:
            ValueError: it is no success; says why.
        """
        answer = requests.get(f"{self.url}/api/v1/{path}", params=query, timeout=10).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer['error']}")
        return answer["data"]

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """Values of an instant query by their labels, without those of the target."""
        found = self.get("query", query=expression)["result"]
        of_target = {"__name__", "instance", "job"}
        return {
            frozenset((k, v) for k, v in one["metric"].items() if k not in of_target): float(one["value"][1])
            for one in found
        }

    def until(self, true: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
        """Wait for something to be true, and return it."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            try:
                if found := true():
                    return found
            except (requests.ConnectionError, ValueError, KeyError):
                pass  # it is starting
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {limit_s:g} s\n{self.log.read_text()[-2000:]}")


@contextmanager
def prometheus(page_port: int, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the page."""
    started = Prometheus(page_port, folder)
    try:
        started.until(lambda: started.query("sampler_up == 1"), "a first scrape")
        yield started
    finally:
        started.stop()
