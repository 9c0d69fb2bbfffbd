"""Runs of many examples with clusters, and their trainer, which does nothing but take batches and report.

Shapes: k clusters, d sketch length.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.serving import BATCH
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions, Timeouts
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.embedded import RunningService

CLUSTERS = 256
DIM = 16
LEAD = 64
REPORT_ROWS = 65_536
REPORTS_AT_ONCE = 16
"""that may wait in the trainer: its queue drops what is too much"""
CLUSTERED_S = 3600.0
"""within which the sketches of ten million examples must be clustered"""

TIMEOUTS = Timeouts(call_s=60, report_s=120)


def trainer(service: RunningService, run: str, examples: int, **options: Any) -> Session:
    """A joined trainer of a run of its own."""
    settings = {"policy": "gradient_clustering", "num_clusters": CLUSTERS, "sketch_dim": DIM, "max_lead": LEAD}
    return Session(
        SamplerClient(str(service), timeouts=TIMEOUTS),
        run=run,
        dataset=f"{examples}-examples",
        num_examples=examples,
        options=RunOptions(**(settings | options)),
        rank=0,
        world_size=1,
        batch_size=BATCH,
        drop_last=True,
        lead=LEAD,
        bunch=LEAD // 8,
    )


class Gradients:
    """Gradients of as many directions as there are clusters, an example's own always the same but for some noise."""

    def __init__(self, dim: int = DIM) -> None:
        self._rng, self._step = np.random.default_rng(1), 0
        self._centre_kd = np.random.default_rng(0).standard_normal((CLUSTERS, dim)).astype(np.float32)

    def report(self, ids: np.ndarray, batch_id: int = 0) -> ReportRows:
        """Losses, norms and sketches of examples; a batch's are of the next step."""
        self._step += bool(batch_id)
        rows = self._centre_kd[ids % CLUSTERS]
        rows += 0.3 * self._rng.standard_normal(rows.shape, dtype=np.float32)
        return ReportRows(
            batch_id=batch_id,
            step=self._step,
            example_ids=ids,
            losses=self._rng.gamma(1.0, 1.0, len(ids)).astype(np.float32),
            norms=np.linalg.norm(rows, axis=1),
            sketches=rows.astype(np.float16),
        )


def sketch(session: Session, examples: int, gradients: Gradients) -> None:
    """Report that many examples, and wait until they are stored."""
    for number, start in enumerate(range(0, examples, REPORT_ROWS), start=1):
        session.put(gradients.report(np.arange(start, min(examples, start + REPORT_ROWS))))
        if number % REPORTS_AT_ONCE == 0:
            session.flush()
    session.fence()
    if dropped := session.report_counts().dropped:
        raise RuntimeError(f"{dropped} rows were dropped on their way; lower REPORTS_AT_ONCE")


def cluster(session: Session, run: str, examples: int) -> None:
    """Report examples with sketches and wait for their clusters."""
    session.start_epoch(0, 0)
    take(session, 1)  # a run without a batch has no rates, and no use for clusters
    sketch(session, examples, Gradients())
    until = time.monotonic() + CLUSTERED_S
    while (said := session.client.statistics(run)).num_clusters != CLUSTERS:
        if time.monotonic() > until:
            raise TimeoutError(f"{said.num_clusters} clusters of run {run!r} after {CLUSTERED_S:g} s")
        time.sleep(1.0)


def take(session: Session, batches: int, gradients: Gradients | None = None) -> None:
    """Receive so many batches and report each, or else be done with it at once."""
    for _ in range(batches):
        message = session.next()
        assert message is not None, "the epoch is longer"
        if gradients is not None:
            session.put(gradients.report(np.frombuffer(message.example_ids, np.int64), batch_id=message.batch_id))
        session.done(message.batch_id)
