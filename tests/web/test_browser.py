"""The page in a real Chromium, over a real server and a service in this process."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from sampler_client.client import SamplerClient
from tests.served import ServedService
from tests.web.conftest import N, Trainer, Web

pytestmark = pytest.mark.browser

CURVES = ("ratio", "coverage", "speed", "wait", "age", "lead")
HISTOGRAMS = ("rates", "weights", "ages", "leads")


def series(page: Page, chart: str) -> dict[str, list[Any]]:
    """What a chart draws, by the name of the series, as ECharts holds it."""
    return page.evaluate(
        """chart => {
          const element = document.querySelector(`[data-chart=${chart}]`);
          const { series } = echarts.getInstanceByDom(element).getOption();
          return Object.fromEntries(series.map(({ name, data }) => [name, data]));
        }""",
        chart,
    )


def test_without_a_run_the_page_says_how_to_make_one(look):
    page = look().page
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    expect(page.get_by_text("sampler.attach")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_text("Loading …")).to_have_count(0)


def test_the_hint_has_the_address_of_this_service(look, served: ServedService):
    page = look().page
    expect(page.locator("pre")).to_have_text(f'loader = sampler.attach(loader, "{served.address}", run="my-run")')


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


def test_charts_draw_what_the_service_says(look, web: Web, trainer: Trainer, client: SamplerClient):
    for _ in range(3):
        web.look()
    page = look("/#/runs/seen").page
    expect(page.locator(".example")).to_have_count(24)
    said = client.statistics("seen", detail=True)
    last = {name: {curve: points[-1][1] for curve, points in series(page, name).items()} for name in CURVES}
    assert last["coverage"] == {
        "this epoch": said.epoch_coverage,
        "last n draws": said.window_coverage,
        "with a sketch": said.sketch_coverage,
    }
    assert last["age"] == {"median": said.median_age_steps, "99 % at most": said.p99_age_steps}
    assert last["lead"] == {"most now": said.lead, "median": said.median_lead, "99 % at most": said.p99_lead}
    assert set(last["speed"]) == {"examples/s", "reported rows/s"}
    assert last["wait"]["waiting"] is not None
    assert last["ratio"]["effective sample size"] == said.effective_sample_ratio
    for name in HISTOGRAMS:
        counts = getattr(said.detail, name).counts
        (shares,) = series(page, name).values()
        assert [share for share in shares if share] == pytest.approx([c / sum(counts) for c in counts if c])
    (drawn,) = series(page, "map").values()
    assert len(drawn) == 4
    coverage = page.locator("[data-chart=coverage]").get_attribute("aria-label")
    assert coverage == "Coverage: this epoch 100 %, last n draws 100 %, with a sketch 100 %"
    assert page.locator("[data-chart=map]").get_attribute("aria-label").startswith("Map of the clusters: 4 clusters")


def test_a_run_without_reports_has_empty_charts(look, served: ServedService):
    trainer = Trainer(served.address, run="fresh")
    page = look("/#/runs/fresh").page
    expect(page.get_by_text("No loss was reported yet")).to_be_visible()
    for name in HISTOGRAMS:
        assert list(series(page, name).values()) == [[]]
    assert page.locator("[data-chart=rates]").get_attribute("aria-label") == "Draw rates: nothing is known yet"
    trainer.session.close()


def test_clusters_are_mapped_and_listed_and_can_be_coloured_otherwise(look, trainer: Trainer):
    page = look("/#/runs/seen").page
    rows = page.locator("section", has=page.get_by_role("heading", name="Clusters")).locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("25.0 %")
    expect(page.locator(".legend")).to_contain_text("share of a cluster's gradients that their mean explains")
    before = colors(page)
    page.get_by_label("colour").select_option("loss")
    expect(page.locator(".legend")).to_contain_text("mean loss last reported")
    assert colors(page) != before
    page.get_by_label("colour").select_option("scatter")
    expect(page.locator(".legend")).to_contain_text("mean squared distance")


def colors(page: Page) -> list[str]:
    (drawn,) = series(page, "map").values()
    return [each["itemStyle"]["color"] for each in drawn]


def test_the_table_of_clusters_is_sorted_and_marks_the_map_by_keyboard(look, trainer: Trainer, client: SamplerClient):
    page = look("/#/runs/seen").page
    table = page.get_by_role("group", name="table of the clusters")
    expect(table.locator("tbody tr")).to_have_count(4)
    said = {c.cluster: c.loss for c in client.statistics("seen", detail=True).detail.clusters}
    for order, rising in (("descending", False), ("ascending", True)):
        table.get_by_role("button", name="loss").press("Enter")
        expect(table.get_by_role("columnheader", name="loss")).to_have_attribute("aria-sort", order)
        shown = [int(text) for text in table.locator("tbody td:first-child").all_inner_texts()]
        losses = [said[cluster] for cluster in shown]
        assert losses == sorted(losses, reverse=not rising)
    table.get_by_role("button", name="cluster 2, show on the map").press("Enter")
    expect(table.locator("tr.picked")).to_have_count(1)
    (drawn,) = series(page, "map").values()
    assert [each["cluster"] for each in drawn if each["itemStyle"]["borderWidth"] == 3] == [2]


def test_trainers_have_rates_of_their_own(look, web: Web, trainer: Trainer):
    trainer.epoch(3)
    page = look("/#/runs/seen").page
    cells = page.locator("table", has_text="holds").locator("tbody td")
    expect(cells.nth(6)).to_have_text("0")  # examples/s: it rests
    expect(cells.nth(7)).to_contain_text("%")


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
