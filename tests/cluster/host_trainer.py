"""A trainer without torch that writes down all that it is given, for tests and benchmarks across hosts.

    python -m tests.cluster.host_trainer '{"address": "10.77.0.1:50051", "run": "job", "rank": 0, "world_size": 2, …}'

Prints a line of JSON for each batch, {"epoch", "ids", "at"}, and one at the end: counts of its reports, or {"error"}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions, Timeouts
from sampler_client.epochs import EpochReader
from sampler_client.errors import SamplerError
from sampler_client.session import Session

DIM = 16
GROUPS = 4
LEAD = 4


class Gradients:
    """What a sketcher would have seen: examples fall into groups by their id, with little noise."""

    def __init__(self, example_ids: np.ndarray, dim: int = DIM) -> None:
        rng = np.random.default_rng(0)
        centre_kd = rng.standard_normal((GROUPS, dim))
        sketch_rd = centre_kd[example_ids % GROUPS] + 0.05 * rng.standard_normal((len(example_ids), dim))
        self.sketches = sketch_rd.astype(np.float16)
        self.norms: np.ndarray | None = np.linalg.norm(sketch_rd, axis=1).astype(np.float32)
        self.usable = np.ones(len(example_ids), bool)

    def take(self, coefficients: Any, /) -> Gradients:
        return self


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - what it is for


def train(
    address: str, run: str, *, examples: int, batch_size: int, rank: int, world_size: int, epochs: int, step_s: float
) -> None:
    """Go through the epochs, and report every batch."""
    patient = Timeouts(call_s=60, batch_s=90, report_s=60, reconnect_s=120)
    session = Session(
        SamplerClient(address, timeouts=patient),
        run=run,
        dataset=f"{run}-examples",
        num_examples=examples,
        options=RunOptions(policy="shuffle", sketch_dim=DIM, lease_s=5.0, num_clusters=GROUPS),
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=False,
        lead=LEAD,
    )
    reader = EpochReader(session, run=run, num_examples=examples, lead=LEAD)
    for _ in range(epochs):
        for _ in reader:
            batch = reader.received()
            say(epoch=batch.epoch, ids=batch.example_ids.tolist(), at=time.time())
            time.sleep(step_s)
            batch.report(np.ones(len(batch)), Gradients(batch.example_ids))
        reader.end_epoch()
    session.flush()
    counts = session.report_counts()
    say(accepted=counts.accepted, rejected=counts.rejected, dropped=counts.dropped)
    session.close()


if __name__ == "__main__":
    try:
        train(**json.loads(sys.argv[1]))
    except SamplerError as error:
        say(error=f"{type(error).__name__}: {error}")
        raise
