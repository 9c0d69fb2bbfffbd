"""The page of a service on Ray: a process of its own, which comes back."""

from __future__ import annotations

import requests

from sampler_service.embedded import running_service
from tests.cluster.support import actors, until


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/api/runs", timeout=5).json()["asked"]
    except requests.ConnectionError:
        return False


def test_a_killed_page_comes_back_on_its_port_and_the_log_says_so():
    with running_service(page=True) as service:
        (page,) = actors(service.pid, "Page")
        until(lambda: answers(service.page), "the page to answer")
        page.kill()
        until(lambda: [p.pid for p in actors(service.pid, "Page")] not in ([], [page.pid]), "another process")
        until(lambda: answers(service.page), "the page to answer again")
        assert "the process of the page has died" in service.log.read_text()
