"""What the page's server answers, over real HTTP and a real gRPC channel."""

from __future__ import annotations

import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import requests
from PIL import Image

from sampler_client.client import SamplerClient
from sampler_client.errors import ServiceUnavailable
from sampler_service.errors import ConfigError
from sampler_service.web.server import WebServer
from sampler_service.web.sharing import SharingClient
from tests.served import ServedService
from tests.web.conftest import N, Trainer, Web

POOL = 40
"""threads of the server, all of which may wait for the service"""


def test_the_page_and_its_files_are_there_and_may_load_nothing_from_elsewhere(web: Web):
    page = web.get("/")
    assert "static/main.js" in page.text
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text.replace("http-equiv", "")
    script = web.get("/static/main.js")
    assert (script.status_code, script.headers["Content-Type"].split(";")[0]) == (200, "text/javascript")
    assert web.get("/static/vendor/echarts.common.min.js").status_code == 200
    assert web.get("/static/../server.py").status_code == 404
    assert web.get("/healthz").text == "ok\n"


def test_a_service_without_runs_says_so(web: Web, served: ServedService):
    web.look()
    said = web.json("/api/runs")
    assert (said["runs"], said["asked"], said["lost"], said["service"]) == ([], True, "", served.address)


def test_the_overview_and_a_run_agree_with_the_service(web: Web, trainer: Trainer, client: SamplerClient):
    web.look()
    web.look()
    (glance,) = web.json("/api/runs")["runs"]
    run = web.json("/api/run/seen")
    said = client.statistics("seen", detail=True)
    for figure in ("run", "examples", "policy", "epoch", "num_clusters", "reported_rows"):
        assert glance[figure] == run["statistics"][figure] == getattr(said, figure)
    assert len(run["statistics"]["detail"]["clusters"]) == 4
    assert run["statistics"]["detail"]["weights"]["edges"][0] is None, "JSON has no infinity"
    assert run["statistics"]["progress"] is None, "nor NaN"
    assert run["statistics"]["batches_by_policy"] == dict(said.batches_by_policy)
    columns = run["history"]["columns"]
    assert columns["epoch_coverage"][-1] == said.epoch_coverage
    known = {"generation": run["history"]["generation"], "count": len(columns["time"])}
    assert web.json("/api/run/seen", **known)["history"]["start"] == known["count"]


@pytest.mark.parametrize("run", ["team/a-b", "x/examples", "x/explain", "x/preview", "a/../b", "a//b"])
def test_every_name_that_a_run_may_have_is_found(web: Web, served: ServedService, run: str):
    trainer = Trainer(served.address, run=run)
    trainer.epoch(0, steps=2)
    name = quote(run, safe="")
    assert web.json(f"/api/run/{name}")["statistics"]["run"] == run
    assert web.json(f"/api/examples/{name}", order="most_drawn")["examples"]
    assert web.json(f"/api/explain/{name}", id=3)["example"]["example_id"] == 3
    assert web.get(f"/api/preview/{name}", id=1).text == "a text"
    trainer.session.close()


def test_examples_and_why_they_were_drawn(web: Web, trainer: Trainer):
    hardest = web.json("/api/examples/seen", order="hardest", count=3)["examples"]
    assert [example["loss"] for example in hardest] == [6.0, 6.0, 6.0]
    why = web.json("/api/explain/seen", id=hardest[0]["example_id"])
    assert "gradient_clustering" in " ".join(why["why"])
    assert len(why["neighbours"]) == 8


def test_previews_are_images_texts_and_errors(web: Web, trainer: Trainer):
    path = "/api/preview/seen"
    image = web.get(path, id=7)
    assert image.headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(image.content)).getpixel((5, 5)) == 7
    text = web.get(path, id=1)
    assert (text.text, text.headers["Content-Type"]) == ("a text", "text/plain; charset=utf-8")
    assert Image.open(io.BytesIO(web.get(path, id=3).content)).size == (128, 64), "large ones are made smaller"
    failed = web.get(path, id=2)
    assert failed.status_code == 500
    assert failed.json()["error"] == "the preview of example 2 of 'pictures' failed: OSError: no such file: 2.png"


def test_what_has_no_preview_is_not_found(web: Web, served: ServedService):
    trainer = Trainer(served.address, run="plain", dataset="numbers")
    answer = web.get("/api/preview/plain", id=0)
    assert answer.status_code == 404
    error = "there are no previews of dataset 'numbers': give --previews, or ingest its records"
    assert answer.json() == {"error": error}
    assert web.get("/api/run/plain").json()["previews"] is False
    server = WebServer(served.address, host="127.0.0.1", port=0, looks={"numbers": "number {}".format}.get)
    shown = Web(server)
    assert shown.get("/api/preview/plain", id=7).text == "number 7", "records are shown where nobody gave a source"
    assert shown.get("/api/run/plain").json()["previews"] is True
    server.stop()
    trainer.session.close()


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/run/nobody", 404, "unknown run 'nobody'"),
        ("/api/explain/seen?id=x", 400, "id must be a whole number, got 'x'"),
        ("/api/explain/seen", 400, "id must be a whole number"),
        (f"/api/explain/seen?id={N}", 400, f"example {N} is not one of run 'seen'; its ids are 0 to {N - 1}"),
        ("/api/examples/seen?order=best", 400, "order must be one of"),
        (f"/api/explain/seen?id={10**20}", 400, f"id must be 0 to {2**63 - 1}, got {10**20}"),
        (f"/api/preview/seen?id={10**20}", 400, f"id must be 0 to {2**63 - 1}, got {10**20}"),
        ("/api/examples/seen?count=9999", 400, "count must be 1 to 1000, got 9999"),
        ("/api/examples/seen?count=-1", 400, "count must be 1 to 1000, got -1"),
    ],
)
def test_a_question_without_an_answer_says_why(web: Web, trainer: Trainer, path, status, words):
    answer = web.get(path)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_health_does_not_queue_behind_calls_that_wait_for_the_service(web: Web, monkeypatch):
    asked, go = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> None:
        asked.release()
        assert go.wait(60)
        raise ServiceUnavailable("too late")

    monkeypatch.setattr(SharingClient, "statistics", slow)
    with ThreadPoolExecutor(POOL) as viewers:
        waiting = [viewers.submit(requests.get, f"{web.url}/api/run/run-{i}", timeout=60) for i in range(POOL)]
        try:
            for _ in waiting:
                assert asked.acquire(timeout=30)
            assert web.get("/healthz").text == "ok\n"
            assert not any(each.done() for each in waiting)
        finally:
            go.set()


def test_it_is_read_only(web: Web, trainer: Trainer, client: SamplerClient):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert requests.request(method, web.url + "/api/run/seen", timeout=10).status_code == 405
    assert client.runs() == ["seen"]


def test_a_run_that_is_closed_while_somebody_looks_is_gone_and_says_so(web: Web, trainer: Trainer, client):
    web.look()
    client.close_run("seen")
    answer = web.get("/api/run/seen")
    assert (answer.status_code, "was closed" in answer.json()["error"]) == (410, True)
    web.look()
    assert web.json("/api/runs")["runs"] == []


def test_a_service_that_is_away_is_said_to_be_and_found_again(web: Web, trainer: Trainer, served: ServedService):
    web.look()
    served.stop()
    web.look()
    said = web.json("/api/runs")
    assert said["lost"]
    assert [run["run"] for run in said["runs"]] == ["seen"], "what was seen last stays"
    unanswered = web.get("/api/run/seen")
    assert unanswered.status_code == 503
    assert unanswered.json()["lost"], "so that the page tells a lost service from a run that does not answer"
    assert f"no service at {served.address}" in unanswered.json()["error"]
    assert "sampler_up 0.0" in web.get("/metrics").text
    served.restart()
    web.look()
    said = web.json("/api/runs")
    assert (said["lost"], said["runs"]) == ("", [])
    assert "sampler_up 1.0" in web.get("/metrics").text


def test_a_run_that_begins_anew_has_no_negative_rates(web: Web, trainer: Trainer, served: ServedService):
    web.look()
    web.look()
    served.restart()
    again = Trainer(served.address)
    again.epoch(0, steps=2)
    web.look()
    web.look()
    rates = web.json("/api/run/seen")["history"]["columns"]["examples_per_s"]
    assert min(rate for rate in rates if rate is not None) >= 0
    again.session.close()


def test_a_taken_port_and_a_factory_that_is_not_there_are_errors(served: ServedService):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--page-port"):
        WebServer(served.address, host="127.0.0.1", port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match=r"--previews 'tests\.web\.conftest:nothing'"):
        WebServer(served.address, host="127.0.0.1", port=0, previews="tests.web.conftest:nothing")
