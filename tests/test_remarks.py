"""The same is not logged at each look."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from sampler_service import remarks
from sampler_service.remarks import Remarks


def test_a_warning_is_logged_when_it_is_new_and_again_after_a_while(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(remarks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    said = Remarks(logging.getLogger("test"))
    for now[0] in (0.0, 5.0, 599.0, 600.0, 601.0):
        said.warn("node %s is away", "a")
        said.warn("node %s is away", f"b{now[0]:g}")
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("node a")] == [
        "node a is away"
    ] * 2
    assert len(caplog.records) == 7
