"""A page over a service in this process, a trainer that makes something to see, and a browser to see it in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.web.server import WebServer
from tests.raw_wire import ids_of, open_session
from tests.served import ServedService
from tests.support import gradients

N = 200


class Trainer:
    """Takes epochs and reports every batch, with sketches in four groups."""

    def __init__(self, address: str, run: str = "seen", **changes: Any) -> None:
        options = {"policy": "gradient_clustering", "sketch_dim": 4, "num_clusters": 4} | changes.pop("options", {})
        settings = {"dataset": "pictures", "num_examples": N, "batch_size": 8} | changes
        self.session: Session = open_session(address, run=run, options=options, **settings)
        self.step = 0

    def epoch(self, number: int, steps: int | None = None) -> None:
        self.session.start_epoch(number, 0)
        taken = 0
        while (steps is None or taken < steps) and (batch := self.session.next()) is not None:
            ids = np.array(ids_of(batch))
            sketches = gradients(ids)
            self.session.put(
                ReportRows(
                    batch_id=batch.batch_id,
                    step=self.step,
                    example_ids=ids,
                    losses=(ids % 7).astype(np.float32),
                    norms=np.linalg.norm(sketches, axis=1).astype(np.float32),
                    sketches=sketches,
                )
            )
            self.session.done(batch.batch_id)
            self.step += 1
            taken += 1
        if steps is None:
            self.session.finish_epoch()
        self.session.flush()


class Web:
    """A browser without a window: what the page's server answers."""

    def __init__(self, server: WebServer) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.port}"

    def get(self, path: str, **query: Any) -> requests.Response:
        return requests.get(self.url + path, params=query, timeout=10)

    def json(self, path: str, **query: Any) -> Any:
        response = self.get(path, **query)
        assert response.status_code == 200, response.text
        return response.json()

    def look(self) -> None:
        """Let the page see the service now, whatever the clock says."""
        self.server.recorder.look()


def images(dataset: str) -> Callable[[int], Any] | None:
    """A factory of previews: arrays for most, a text, an encoded image and a failure for some."""
    if dataset != "pictures":
        return None

    def preview(example_id: int) -> Any:
        if example_id == 1:
            return "a text"
        if example_id == 2:
            raise OSError("no such file: 2.png")
        if example_id == 3:
            return Image.new("CMYK", (400, 200))
        return np.full((28, 28), example_id % 256, np.uint8)

    return preview


@pytest.fixture
def web(served: ServedService) -> Iterator[Web]:
    server = WebServer(served.address, host="127.0.0.1", port=0, previews="tests.web.conftest:images")
    yield Web(server)
    server.stop()


@pytest.fixture
def trainer(served: ServedService) -> Iterator[Trainer]:
    """A trainer after three epochs, the last one drawn from clusters."""
    trainer = Trainer(served.address)
    for number in range(3):
        trainer.epoch(number)
    yield trainer
    trainer.session.close()


@pytest.fixture
def client(served: ServedService) -> Iterator[SamplerClient]:
    with SamplerClient(served.address, timeouts=Timeouts(call_s=10)) as client:
        yield client


PATIENT_MS = 15_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        why = "no Chromium to look at the page with: install Debian's `chromium`, or put one on PATH"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Seen:
    """A tab, and what went wrong in it."""

    page: Page
    faults: list[str] = field(default_factory=list)
    allow_errors: bool = False
    """while the service is away, requests fail, and the console says so"""

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not self.allow_errors:
            self.faults.append(f"console: {message.text}")


@pytest.fixture
def look(browser: Browser, web: Web) -> Iterator[Callable[..., Seen]]:
    """Open the page at a path; nothing may fail in it, and no request may leave the host."""
    tabs: list[Seen] = []

    def at(path: str = "/", **options) -> Seen:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(PATIENT_MS)
        seen = Seen(context.new_page())
        tabs.append(seen)

        def requested(request: Request) -> None:
            if not request.url.startswith((web.url, "data:", "blob:")):
                seen.faults.append(f"left the host: {request.url}")

        seen.page.on("console", seen.heard)
        seen.page.on("pageerror", lambda error: seen.faults.append(f"script: {error}"))
        seen.page.on("request", requested)
        seen.page.goto(web.url + path)
        return seen

    expect.set_options(timeout=PATIENT_MS)
    yield at
    for seen in tabs:
        seen.page.context.close()
        assert seen.faults == []
