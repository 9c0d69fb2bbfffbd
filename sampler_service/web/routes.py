"""What the HTTP server answers: the page's files, its JSON, previews, metrics. Read-only.

/                                the page
/static/…                        its files
/api/runs                        every run at a glance
/api/runs/RUN?generation=&count= one run: statistics with histograms and clusters, and what is new of its curves
/api/runs/RUN/examples?order=    examples that stand out
/api/runs/RUN/explain?id=        why an example was drawn
/api/runs/RUN/preview?id=        what it looks like; 404 where nobody gave a source of previews
/metrics                         Prometheus
/healthz                         200 as long as this server runs, also while the service does not answer
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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

HEADERS = {
    # Nothing leaves the host. Charts set styles of their own.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Pages:
    """Answers requests; each runs in a thread of Starlette's pool.

    Args:
        client: of the service.
        recorder: remembers its runs.
        previews: what examples look like; None: nobody said.
    """

    def __init__(self, client: SamplerClient, recorder: Recorder, previews: Previews | None) -> None:
        self._client = client
        self._recorder = recorder
        self._previews = previews
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RunCollector(client))

    def page(self, request: Request) -> Response:  # noqa: ARG002
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    def runs(self, request: Request) -> Response:  # noqa: ARG002
        runs = [_glance(record) for _, record in sorted(self._recorder.runs().items())]
        return _json({**self._about(), "runs": runs})

    def run(self, request: Request) -> Response:
        name = request.path_params["run"]
        said = self._client.statistics(name, detail=True)
        record = self._recorder.runs().get(name)
        history = (
            record.history.since(_whole(request, "generation", -1), _whole(request, "count", 0)) if record else None
        )
        rate = record.examples_per_s if record else math.nan
        return _json(
            {
                **self._about(),
                "statistics": plain(said),
                "examples_per_s": rate,
                "history": history,
                "previews": self._previews is not None,
            }
        )

    def examples(self, request: Request) -> Response:
        order, count = request.query_params.get("order", "hardest"), _whole(request, "count", 24)
        found = self._client.examples(request.path_params["run"], order, count=count)
        return _json({"examples": [plain(example) for example in found]})

    def explain(self, request: Request) -> Response:
        found = self._client.explain(request.path_params["run"], _whole(request, "id"))
        return _json(plain(found))

    def preview(self, request: Request) -> Response:
        if self._previews is None:
            raise NotFound("this service was started without --previews")
        dataset = self._client.statistics(request.path_params["run"]).dataset
        shown = self._previews.of(dataset, _whole(request, "id"))
        if shown is None:
            raise NotFound(f"there are no previews of dataset {dataset!r}")
        return Response(
            shown.data, media_type=shown.media_type, headers={**HEADERS, "Cache-Control": "private, max-age=3600"}
        )

    def metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def health(self, request: Request) -> Response:  # noqa: ARG002
        return PlainTextResponse("ok\n")

    def _about(self) -> dict[str, Any]:
        return {
            "service": self._client.address,
            "version": __version__,
            "time": time.time(),
            "lost": self._recorder.lost,
            "lost_since": self._recorder.lost_since,
        }


def make_app(client: SamplerClient, recorder: Recorder, previews: Previews | None) -> Starlette:
    """The ASGI application."""
    pages = Pages(client, recorder, previews)
    # A run's name may have slashes, so what is asked of it comes first.
    return Starlette(
        routes=[
            Route("/", pages.page),
            Mount("/static", _Static(directory=STATIC)),
            Route("/api/runs", pages.runs),
            Route("/api/runs/{run:path}/examples", pages.examples),
            Route("/api/runs/{run:path}/explain", pages.explain),
            Route("/api/runs/{run:path}/preview", pages.preview),
            Route("/api/runs/{run:path}", pages.run),
            Route("/metrics", pages.metrics),
            Route("/healthz", pages.health),
        ],
        exception_handlers=_HANDLERS,
    )


class _Static(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def _glance(record: Record) -> dict[str, Any]:
    """A run in the overview."""
    said = record.statistics
    points = record.history.since(-1, 0)["columns"]
    return {
        **plain(said),
        "examples_per_s": record.examples_per_s,
        "recent": list(points.get("examples_per_s", [])[-60:]),
    }


def _json(content: Any) -> Response:
    return JSONResponse(plain(content), headers=HEADERS)


def _whole(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise BadRequest(f"{name} must be a whole number, got {text!r}") from None


def _failed(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)

    return answer


_HANDLERS: dict[Any, Any] = {
    BadRequest: _failed(400),
    NotFound: _failed(404),
    Stale: _failed(410),
    SamplerError: _failed(503),
    ConfigError: _failed(500),
}
"""status by error; Starlette takes the most specific"""
