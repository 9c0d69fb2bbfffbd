"""What the page says when something does not answer, and answers that come in the wrong order; in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from sampler_client.client import SamplerClient
from sampler_service.errors import Unavailable
from tests.served import ServedService
from tests.web.conftest import Seen, Trainer

pytestmark = pytest.mark.browser

BELOW = "What was seen last is below."


@pytest.fixture
def troubled(look) -> Callable[..., Seen]:
    """A tab in which requests may fail: the console says so, and so must the page."""

    def at(path: str = "/") -> Seen:
        seen = look("/static/icon.svg")
        seen.allow_errors = True
        seen.page.goto(seen.page.url.replace("/static/icon.svg", path))
        return seen

    return at


def answering(status: int, **said) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, body=json.dumps(said), content_type="application/json")


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


def test_while_the_service_is_lost_a_run_says_so_and_why(troubled, trainer: Trainer, served: ServedService):
    page = troubled("/#/runs/seen").page
    expect(page.locator(".tile")).to_have_count(6)
    served.stop()
    expect(page.get_by_role("status")).to_have_text("service lost, trying on")
    expect(page.locator("main .notice").first).to_contain_text(f"The service does not answer. {BELOW}")
    expect(page.locator("main .notice").first).to_contain_text(f"no service at {served.address}")
    expect(page.locator(".tile")).to_have_count(6)
    page.evaluate("window.said = new MutationObserver(() => (window.told = true))")
    page.evaluate("said.observe(document.querySelector('[role=status]'), {subtree: true, characterData: true})")
    seconds = page.locator(".state span").nth(1)
    expect(seconds).not_to_have_text(seconds.inner_text())
    assert page.evaluate("window.told") is None, "a screen reader is not told each second"


def test_a_run_opened_while_the_service_is_lost_is_not_awaited_in_silence(
    troubled, trainer: Trainer, served: ServedService
):
    served.stop()
    page = troubled("/#/runs/seen").page
    expect(page.get_by_role("heading", name="The service does not answer")).to_be_visible()
    expect(page.locator("main")).to_contain_text(f"no service at {served.address}")
    expect(page.get_by_text("Loading …")).to_have_count(0)
    served.start()
    expect(page.locator(".tile")).to_have_count(6)
    expect(page.get_by_role("status")).to_have_text("live")


def test_an_overview_without_runs_of_a_lost_service_does_not_say_that_there_are_none(troubled, served: ServedService):
    page = troubled().page
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    served.stop()
    expect(page.get_by_role("heading", name="The service does not answer")).to_be_visible()
    expect(page.get_by_role("heading", name="No run yet")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("service lost, trying on")


def test_before_the_service_was_asked_nothing_is_said_of_its_runs(troubled):
    seen = troubled("/healthz")
    about = {"service": "elsewhere:7", "version": "1", "time": 0, "lost_since": 0}
    seen.page.route("**/api/runs", answering(200, **about, asked=False, lost="", runs=[]))
    seen.page.goto(seen.page.url.replace("/healthz", "/"))
    expect(seen.page.get_by_text("Asking the service for its runs …")).to_be_visible()
    expect(seen.page.get_by_role("status")).to_have_text("connecting")
    seen.page.route("**/api/runs", answering(200, **about, asked=True, lost="", runs=[]))
    expect(seen.page.locator("pre")).to_contain_text('"elsewhere:7"')


def test_the_server_of_the_page_and_the_service_are_told_apart(troubled, trainer: Trainer):
    page = troubled("/#/runs/seen").page
    expect(page.locator(".tile")).to_have_count(6)
    page.route("**/api/**", lambda route: route.abort())
    expect(page.get_by_role("status")).to_have_text("page lost, trying on")
    expect(page.locator("main .notice").first).to_contain_text(f"The server of this page does not answer. {BELOW}")
    page.unroute_all()
    expect(page.get_by_role("status")).to_have_text("live")
    page.route("**/api/**", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    expect(page.locator("main .notice").first).to_contain_text("502 Bad Gateway")
    page.goto(page.url.split("#")[0] + "#/")
    expect(page.get_by_role("heading", name="The server of this page does not answer")).to_be_visible()


def test_one_run_that_does_not_answer_is_said_to_be_the_one(troubled, trainer: Trainer, served: ServedService):
    page = troubled("/").page
    card = page.get_by_role("link", name="seen")
    expect(card).to_contain_text("gradient_clustering")  # the list has had word of it, which it keeps
    card.click()
    expect(page.locator(".tile")).to_have_count(6)
    answers = served.service.statistics

    def silent(*_: object, **__: object) -> None:
        raise Unavailable("waited 5 s for run 'seen'")

    served.service.statistics = silent
    expect(page.get_by_role("status")).to_have_text("run does not answer, trying on")
    expect(page.locator("main .notice").first).to_contain_text(f"This run does not answer. {BELOW}")
    expect(page.locator("main .notice").first).to_contain_text("waited 5 s for run 'seen'")
    page.get_by_role("link", name="All runs").click()
    expect(card).to_contain_text("does not answer")
    expect(card).to_contain_text("gradient_clustering")
    expect(page.get_by_role("status")).to_have_text("live")
    served.service.statistics = answers
    expect(card).not_to_contain_text("does not answer")
    card.click()
    expect(page.get_by_text("Sampling by gradient_clustering")).to_be_visible()


def test_a_broken_address_leads_somewhere(troubled):
    page = troubled("/#/runs/100%").page
    expect(page.get_by_role("heading", name="No such run")).to_be_visible()
    expect(page.get_by_text("unknown run '100%'")).to_be_visible()
    page.get_by_role("link", name="All runs").click()
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()


def test_failing_examples_leave_the_rest_of_the_page_alive(troubled, trainer: Trainer, client: SamplerClient):
    seen = troubled("/healthz")
    page = seen.page
    page.route("**/api/examples/**", answering(500, error="the index is being made anew"))
    page.goto(page.url.replace("/healthz", "/#/runs/seen"))
    section = page.locator("section", has=page.get_by_role("heading", name="Examples"))
    expect(section).to_contain_text("There is no new list of examples: the index is being made anew")
    expect(page.get_by_role("status")).to_have_text("live")
    trainer.epoch(3)
    expect(page.locator("table", has_text="holds")).to_contain_text(f"{client.statistics('seen').ranks[0].examples:,}")
    page.unroute_all()
    page.get_by_role("button", name="Most drawn").click()
    expect(section.locator(".example")).to_have_count(24)
    expect(section).not_to_contain_text("There is no new list")


def test_becoming_visible_asks_no_second_time_while_an_answer_is_awaited(look, trainer: Trainer):
    page = look("/#/runs/seen").page
    expect(page.locator(".tile")).to_have_count(6)
    held: list[Route] = []
    page.route("**/api/run/**", lambda route: held.append(route))
    while not held:
        page.wait_for_timeout(50)
    for _ in range(3):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange')); fetch('healthz').then((a) => a.text())")
    assert len(held) == 1
    held[0].continue_()
    page.unroute_all()
    trainer.epoch(3)
    expect(page.locator(".tile", has_text="epoch")).to_contain_text("3")


TAKE = """async (histories) => {
  const { RunView } = await import("/static/run.js");
  const view = new RunView("any", document.createElement("div"));
  for (const [generation, start, time] of histories) view.take({ generation, start, columns: time ? { time } : {} });
  return [view.generation, view.count, view.columns.time ?? null];
}"""


@pytest.mark.parametrize(
    ("histories", "left"),
    [
        ([(7, 0, [1, 2]), (7, 2, [3])], (7, 3, [1, 2, 3])),
        ([(7, 0, [1, 2]), (7, 2, None)], (7, 2, [1, 2])),
        ([(7, 0, [1, 2]), (7, 2, [3]), (7, 2, [3])], (7, 3, [1, 2, 3])),
        ([(7, 0, [1, 2, 3]), (7, 1, [2, 3, 4])], (7, 3, [1, 2, 3])),
        ([(7, 0, [1, 2]), (8, 2, [3])], (7, 2, [1, 2])),
        ([(7, 0, [1, 2]), (8, 0, [5])], (8, 1, [5])),
    ],
    ids=["the rest", "nothing new", "a tail twice", "a tail that overlaps", "of another generation", "anew"],
)
def test_curves_are_replaced_or_continued_and_time_never_runs_backwards(look, histories, left):
    assert tuple(look().page.evaluate(TAKE, histories)) == left


def test_a_slow_explanation_does_not_take_the_place_of_a_later_one(look, trainer: Trainer):
    page = look("/#/runs/seen").page
    expect(page.locator(".example")).to_have_count(24)
    held: list[Route] = []
    page.route("**/api/explain/seen?id=5", lambda route: held.append(route))
    page.evaluate(explain := "id => { document.forms[0].id.value = id; document.forms[0].requestSubmit() }", 5)
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Example 5")).to_be_visible()
    page.evaluate(explain, 6)
    expect(dialog.locator(".figures")).to_be_visible()
    with page.expect_response("**/api/explain/seen?id=5"):
        held[0].continue_()
    page.evaluate("fetch('healthz').then((answer) => answer.text())")
    expect(dialog.get_by_role("heading", name="Example 6")).to_be_visible()


def requested(page: Page, what: str) -> list[str]:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url) if what in request.url else None)
    return urls


def test_a_text_is_fetched_once_and_what_failed_is_tried_again(troubled, trainer: Trainer):
    page = troubled("/healthz").page
    page.clock.install()
    asked = requested(page, "/api/preview/seen")
    page.goto(page.url.replace("/healthz", "/#/runs/seen"))
    expect(page.locator(".example")).to_have_count(24)
    page.route("**/api/preview/seen?id=7", answering(500, error="the disk is away"))
    for example in ("1", "7"):
        page.get_by_label("example", exact=True).fill(example)
        page.keyboard.press("Enter")
        large = page.get_by_role("dialog").locator(".large")
        expect(large).to_have_text("a text" if example == "1" else "no preview")
        page.keyboard.press("Escape")
    assert len([url for url in asked if url.endswith("id=1")]) == 1
    page.unroute_all()
    page.get_by_label("example", exact=True).fill("7")
    page.keyboard.press("Enter")
    expect(large).to_have_text("no preview")
    page.clock.fast_forward(60_000)
    expect(large.locator("img")).to_be_visible()
    assert large.locator("img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 28
