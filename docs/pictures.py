"""The pictures of the page in this folder, taken anew: a real service, real training, a real browser.

    make pictures            # some minutes; needs Chromium on PATH

Six runs train at once on scikit-learn's digits, at a person's pace, while Chromium looks.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.embedded import RunningService, running_service
from trainer_examples.data import ImageData, load, with_duplicates
from trainer_examples.models import make_model

IMAGES = Path(__file__).with_name("images")

WIDTH = 1200
SHARPNESS = 1.5
"""pixels of a picture for one of the page"""

PREVIEWS = ("--previews", "trainer_examples.previews:digits")

SEEN_S = 75.0
"""of training before the first picture: so long are the curves"""

MARGIN = 24

PATIENT_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job that can be seen."""

    run: str
    policy: str
    copies: bool = False
    """most of its images are copies of a few"""
    pause_s: float = 0.03
    """between two steps: what a larger model would compute"""
    steps: int = 10**9


SHOWN = "digits/clusters"
JOBS = (
    Job(run=SHOWN, policy="gradient_clustering"),
    Job(run="digits/importance", policy="importance", pause_s=0.06),
    Job(run="digits/shuffle", policy="shuffle", pause_s=0.1),
    Job(run="copies/clusters", policy="gradient_clustering", copies=True, pause_s=0.06),
    Job(run="copies/infobatch", policy="infobatch", copies=True, pause_s=0.08),
    Job(run="copies/finished", policy="selective_backprop", copies=True, steps=120),
)


def train(job: Job, address: str, ended: threading.Event) -> None:
    """Train until told to end, or for as many steps as the job has."""
    data: ImageData = with_duplicates(load()) if job.copies else load()
    torch.manual_seed(0)
    model = make_model(data.image_shape, data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    sketcher = sampler.GradientSketcher(model, dim=64)
    plain = DataLoader(data.train, batch_size=32, shuffle=True)
    step = 0
    with sampler.attach(plain, address, run=job.run, dataset=data.slug, policy=job.policy, epochs=400) as loader:
        while not ended.is_set() and step < job.steps:
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
                step += 1
                if step >= job.steps or ended.wait(job.pause_s):
                    break
    sketcher.close()


@contextmanager
def training(service: RunningService) -> Iterator[None]:
    """All jobs, each in a thread of its own."""
    torch.set_num_threads(1)
    ended = threading.Event()
    threads = [threading.Thread(target=train, args=(job, str(service), ended)) for job in JOBS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def tab(browser: Browser, url: str, **options: Any) -> Page:
    """The page in a tab, with its fonts and its answers."""
    settings = {"viewport": {"width": WIDTH, "height": 900}, "device_scale_factor": SHARPNESS} | options
    page = browser.new_context(**settings).new_page()
    page.goto(url)
    page.wait_for_load_state("networkidle")
    return page


def pictured(page: Page) -> None:
    """Wait until every preview that is on the page is drawn."""
    page.locator(".example img").first.wait_for()
    expect(page.locator(".example:not(:has(img))")).to_have_count(0, timeout=PATIENT_MS)


def bottom(part: Locator) -> float:
    """Pixels from the head of the page."""
    return part.evaluate("part => part.getBoundingClientRect().bottom + scrollY")


def save(page: Page, name: str, *, top: float = 0.0, height: float) -> None:
    """A part of the page as wide as the window, in true colour."""
    width = page.viewport_size["width"] if page.viewport_size else WIDTH
    page.screenshot(
        path=IMAGES / f"{name}.png",
        full_page=True,
        clip={"x": 0, "y": top, "width": width, "height": height},
    )


def take(browser: Browser, url: str) -> None:
    """All pictures."""
    run = f"{url}/#/runs/{SHOWN.replace('/', '%2F')}"

    page = tab(browser, url)
    page.locator(".run").nth(len(JOBS) - 1).wait_for()
    save(page, "overview", height=bottom(page.locator(".runs")) + MARGIN)

    for name, scheme in (("run", "light"), ("run-dark", "dark")):
        page = tab(browser, run, color_scheme=scheme)
        pictured(page)
        save(page, name, height=bottom(page.locator("section", has=page.locator("#live"))) + MARGIN)

    page = tab(browser, run)
    pictured(page)
    page.locator("tbody .link").nth(2).click()
    page.evaluate("document.activeElement.blur(); document.getElementById('header').style.position = 'static'")
    parts = {part: page.locator("section", has=page.locator(f"#{part}")) for part in ("draws", "clusters", "storage")}
    top = bottom(parts["draws"])
    save(page, "clusters", top=top + MARGIN / 2, height=bottom(parts["clusters"]) + MARGIN - top)
    save(page, "whole", height=bottom(parts["storage"]) + MARGIN)

    page.get_by_role("button", name="Most drawn").click()
    pictured(page)
    page.locator(".example").last.click()
    dialog = page.get_by_role("dialog")
    dialog.locator(".figures").wait_for()
    pictured(page)
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / "why.png")

    phone = {"width": 390, "height": 844}
    page = tab(browser, run, viewport=phone, device_scale_factor=2, is_mobile=True, has_touch=True)
    page.locator("[data-chart=map] canvas").wait_for()
    page.screenshot(path=IMAGES / "phone.png")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on PATH to take pictures with: install Debian's `chromium`")
    IMAGES.mkdir(exist_ok=True)
    with running_service(page=True, arguments=PREVIEWS) as service, training(service), sync_playwright() as playwright:
        print(f"training for {SEEN_S:g} s; {service.page} shows it")
        time.sleep(SEEN_S)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, service.page)
        browser.close()


if __name__ == "__main__":
    main()
