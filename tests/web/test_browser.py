"""The page in a real Chromium, over a real server and a service in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from sampler_client.client import SamplerClient
from tests.served import ServedService
from tests.web.conftest import N, Trainer, Web

pytestmark = pytest.mark.browser

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


def test_without_a_run_the_page_says_how_to_make_one(look):
    page = look().page
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    expect(page.get_by_text("sampler.attach")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_text("Loading …")).to_have_count(0)


def test_a_run_without_reports_is_shown_as_that(look, served: ServedService):
    trainer = Trainer(served.address, run="fresh")
    page = look("/#/runs/fresh").page
    expect(page.get_by_role("heading", name="fresh")).to_be_visible()
    expect(page.get_by_text("No batch was asked for yet")).to_be_visible()
    expect(page.get_by_text("No trainer sends sketches")).to_be_visible()
    expect(page.get_by_text("No loss was reported yet")).to_be_visible()
    trainer.session.close()


def test_figures_move_without_a_reload_and_agree_with_the_service(look, trainer: Trainer, client: SamplerClient):
    seen = look()
    page = seen.page
    page.get_by_role("link", name="seen").click()
    expect(page.get_by_text("Sampling by gradient_clustering")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    for number in range(3, 6):
        trainer.epoch(number)
        expect(page.locator(".tile", has_text="epoch")).to_contain_text(str(number))
    said = client.statistics("seen")
    expect(page.locator("table", has_text="holds")).to_contain_text(f"{said.ranks[0].examples:,}")
    assert page.evaluate("window.sameDocument") is True
    charts = page.locator("[data-chart] canvas")
    expect(charts).to_have_count(11)
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert all(charts.nth(i).evaluate(drawn) > 8 for i in range(11)), "each chart has something drawn on it"


def test_clusters_are_mapped_and_listed_and_can_be_coloured_otherwise(look, trainer: Trainer):
    page = look("/#/runs/seen").page
    rows = page.locator("section", has=page.get_by_role("heading", name="Clusters")).locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("25.0 %")
    canvas = page.locator("[data-chart=map] canvas")
    before = canvas.evaluate("c => c.toDataURL()")
    page.get_by_label("colour").select_option("loss")
    page.wait_for_function(
        "before => document.querySelector('[data-chart=map] canvas').toDataURL() !== before", arg=before
    )


def test_an_example_is_explained_with_its_picture_and_its_neighbours(look, trainer: Trainer):
    seen = look("/#/runs/seen")
    page, seen.allow_errors = seen.page, True  # the preview of example 2 fails
    expect(page.locator(".example")).to_have_count(24)
    page.get_by_role("button", name="Most redundant").click()
    expect(page.locator(".example")).to_have_count(4)
    page.locator(".example").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("The policy in use is gradient_clustering")).to_be_visible()
    expect(dialog.locator(".example")).to_have_count(8)
    assert dialog.locator(".large img").evaluate("i => i.decode().then(() => i.naturalWidth)") in (28, 128)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_label("example", exact=True).fill("1")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("heading", name="Example 1")).to_be_visible()
    expect(dialog.locator(".large")).to_have_text("a text")


def test_an_example_that_is_not_there_is_said_to_be_none(look, trainer: Trainer):
    seen = look("/#/runs/seen")
    expect(seen.page.locator(".example")).to_have_count(24)
    seen.allow_errors = True
    seen.page.get_by_label("example", exact=True).fill("999")
    seen.page.keyboard.press("Enter")
    expect(seen.page.get_by_role("dialog")).to_contain_text(f"its ids are 0 to {N - 1}")


def test_all_of_it_is_reached_by_the_keyboard(look, trainer: Trainer):
    page = look().page
    expect(page.get_by_role("link", name="seen")).to_be_visible()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('run')"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="seen")).to_be_visible()
    expect(page.locator(".example")).to_have_count(24)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.tagName + ' ' + document.activeElement.textContent.trim().slice(0, 8)"
            )
        )
    for name in ("A All runs", "BUTTON Hardest", "BUTTON Never dr", "BUTTON Why?", "INPUT "):
        assert name in reached
    assert any(name.startswith("SELECT") for name in reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(look, trainer: Trainer, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    page = look("/#/runs/seen", **phone).page
    expect(page.locator(".example")).to_have_count(24)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (scheme == "dark")


def test_text_stands_out_from_its_ground(look, trainer: Trainer):
    for scheme in ("light", "dark"):
        page = look("/#/runs/seen", color_scheme=scheme).page
        expect(page.locator(".tile")).to_have_count(6)
        # WCAG's contrast of the two greys and of a link on a card
        contrast = """() => {
          const light = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const style = getComputedStyle(document.documentElement);
          const of = (name) => light(style.getPropertyValue("--" + name).trim());
          const [card, ...inks] = ["card", "text", "dim", "accent", "bad"].map(of);
          return Math.min(...inks.map((ink) => (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05)));
        }"""
        assert page.evaluate(contrast) >= 4.5


def test_a_service_that_restarts_is_said_to_be_away_and_comes_back(look, trainer: Trainer, served: ServedService):
    seen = look("/#/runs/seen")
    page = seen.page
    expect(page.locator(".tile")).to_have_count(6)
    seen.allow_errors = True
    served.stop()
    expect(page.get_by_role("status")).to_contain_text("lost")
    expect(page.locator(".tile")).to_have_count(6)  # what was seen last stays
    served.start()
    expect(page.get_by_role("status")).to_have_text("live")
    served.restart()
    expect(page.get_by_text("ended")).to_be_visible()
    page.get_by_role("link", name="All runs").first.click()
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()


def test_a_run_that_is_closed_while_somebody_looks_ends_in_words(look, trainer: Trainer, client: SamplerClient):
    seen = look("/#/runs/seen")
    expect(seen.page.locator(".tile")).to_have_count(6)
    seen.allow_errors = True
    client.close_run("seen")
    expect(seen.page.get_by_text("run 'seen' was closed")).to_be_visible()
    expect(seen.page.locator(".badge", has_text="ended")).to_be_visible()


def test_a_run_that_never_was_is_said_to_be_unknown(look):
    seen = look("/")
    seen.allow_errors = True
    seen.page.goto(seen.page.url + "#/runs/nobody")
    expect(seen.page.get_by_text("unknown run 'nobody'")).to_be_visible()
