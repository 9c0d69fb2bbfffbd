"""What the HTTP server answers: the page's files, its JSON, previews, metrics. Read-only.

/                                the page
/static/…                        its files
/api/runs                        every run at a glance
/api/run/RUN?generation=&count=  one run: statistics with histograms and clusters, and what is new of its curves
/api/examples/RUN?order=&count=  examples that stand out
/api/explain/RUN?id=             why an example was drawn
/api/preview/RUN?id=             what it looks like; 404 where nobody gave a source of previews
/metrics                         Prometheus
/healthz                         200 as long as this server runs, also while the service does not answer

RUN stands last: a run's name may have slashes, and words of these paths. An error is {"error": words}; when the
service gave no answer (503), with what else is known of the service.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sampler_client.client import SamplerClient
from sampler_client.errors import ConfigError as BadRequest
from sampler_client.errors import NotFound, SamplerError, Stale
from sampler_service import __version__
from sampler_service.errors import ConfigError
from sampler_service.plain import plain
from sampler_service.web.metrics import RunCollector
from sampler_service.web.previews import Previews
from sampler_service.web.recorder import Record, Recorder

STATIC = Path(__file__).with_name("static")

MOST_LISTED = 1000
"""examples in one answer; the service refuses more"""

LARGEST_ID = 2**63 - 1
"""that the wire carries; the service knows which ids a run has"""

SPARK_POINTS = 60
"""of a run's throughput in the overview"""

HEADERS = {
    # Nothing leaves the host. Charts set styles of their own; previews are fetched once, and shown from memory (blob:).
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Pages:
    """Answers requests; each runs in a thread of Starlette's pool.

    Args:
        client: of the service.
        recorder: remembers its runs.
        previews: what examples look like.
    """

    def __init__(self, client: SamplerClient, recorder: Recorder, previews: Previews) -> None:
        self._client = client
        self._recorder = recorder
        self._previews = previews
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RunCollector(client))

    def page(self, request: Request) -> Response:  # noqa: ARG002
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    def runs(self, request: Request) -> Response:  # noqa: ARG002
        runs = [_glance(name, record) for name, record in sorted(self._recorder.runs().items())]
        return _json({**self._about(), "runs": runs})

    def run(self, request: Request) -> Response:
        name = request.path_params["run"]
        known = _whole(request, "generation", default=-1), _whole(request, "count", default=0)
        said = self._client.statistics(name, detail=True)
        record = self._recorder.runs().get(name)
        return _json(
            {
                **self._about(),
                "statistics": plain(said),
                "examples_per_s": record.examples_per_s if record else math.nan,
                "ranks": {str(rank): asdict(rates) for rank, rates in record.ranks.items()} if record else {},
                "history": record.history.since(*known) if record else None,
                "previews": self._previews.has(said.dataset),
            }
        )

    def examples(self, request: Request) -> Response:
        order = request.query_params.get("order", "hardest")
        count = _whole(request, "count", default=24, low=1, high=MOST_LISTED)
        found = self._client.examples(request.path_params["run"], order, count=count)
        return _json({"examples": [plain(example) for example in found]})

    def explain(self, request: Request) -> Response:
        found = self._client.explain(request.path_params["run"], _whole(request, "id", low=0, high=LARGEST_ID))
        return _json(plain(found))

    def preview(self, request: Request) -> Response:
        example_id = _whole(request, "id", low=0, high=LARGEST_ID)
        dataset = self._dataset(request.path_params["run"])
        shown = self._previews.of(dataset, example_id)
        if shown is None:
            raise NotFound(f"there are no previews of dataset {dataset!r}: give --previews, or ingest its records")
        return Response(
            shown.data, media_type=shown.media_type, headers={**HEADERS, "Cache-Control": "private, max-age=3600"}
        )

    def metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        # Not in the pool, whose threads may all wait for the service.
        return PlainTextResponse("ok\n")

    def unanswered(self, request: Request, error: Exception) -> Response:  # noqa: ARG002
        """What is said in place of the service's answer."""
        return JSONResponse(plain({**self._about(), "error": str(error)}), status_code=503, headers=HEADERS)

    def _dataset(self, run: str) -> str:
        """The dataset of a run: a page with many previews asks for it often, and it never changes."""
        record = self._recorder.runs().get(run)
        known = record.statistics if record else None
        return (known or self._client.statistics(run)).dataset

    def _about(self) -> dict[str, Any]:
        return {
            "service": self._client.address,
            "version": __version__,
            "time": time.time(),
            "asked": self._recorder.asked,
            "lost": self._recorder.lost,
            "lost_since": self._recorder.lost_since,
        }


def make_app(client: SamplerClient, recorder: Recorder, previews: Previews) -> Starlette:
    """The ASGI application."""
    pages = Pages(client, recorder, previews)
    return Starlette(
        routes=[
            Route("/", pages.page),
            Mount("/static", _Static(directory=STATIC)),
            Route("/api/runs", pages.runs),
            Route("/api/examples/{run:path}", pages.examples),
            Route("/api/explain/{run:path}", pages.explain),
            Route("/api/preview/{run:path}", pages.preview),
            Route("/api/run/{run:path}", pages.run),
            Route("/metrics", pages.metrics),
            Route("/healthz", pages.health),
        ],
        # Starlette takes the most specific.
        exception_handlers={
            BadRequest: _failed(400),
            NotFound: _failed(404),
            Stale: _failed(410),
            SamplerError: pages.unanswered,
            ConfigError: _failed(500),
        },
    )


class _Static(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def _glance(name: str, record: Record) -> dict[str, Any]:
    """A run in the overview; of one that has not answered yet little more than its name."""
    return {
        **(plain(record.statistics) if record.statistics else {"run": name}),
        "unanswered_since": record.unanswered_since,
        "examples_per_s": record.examples_per_s,
        "last_ratio": record.history.last("variance_ratio"),
        "recent": record.history.tail("examples_per_s", SPARK_POINTS),
    }


def _json(content: Any) -> Response:
    return JSONResponse(plain(content), headers=HEADERS)


def _whole(
    request: Request, name: str, *, default: int | None = None, low: int | None = None, high: int | None = None
) -> int:
    """A whole number of the query, from `low` to `high`."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        raise BadRequest(f"{name} must be a whole number, got {text!r}") from None
    if (low is not None and value < low) or (high is not None and value > high):
        raise BadRequest(f"{name} must be {low} to {high}, got {value}")
    return value


def _failed(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)

    return answer
