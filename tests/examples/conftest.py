"""Reports that are in the table before the next step, so that what a policy knows is not a matter of luck."""

from __future__ import annotations

import pytest

from sampler_client.reporter import ReportRows
from sampler_client.session import Session


@pytest.fixture
def prompt_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    put = Session.put

    def put_and_wait(session: Session, rows: ReportRows) -> None:
        put(session, rows)
        session.flush()

    monkeypatch.setattr(Session, "put", put_and_wait)
