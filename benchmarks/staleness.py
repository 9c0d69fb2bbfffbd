"""How old what a batch was drawn by is when it is trained on: a real service, a real DataLoader with workers.

A small model takes steps of 20 ms and reports each one, under a draw policy, which plans a batch when there is room
for it. `Batch.lead` says how many batches the trainer held, unfinished, when this one was handed out; the README
promises at most num_workers x prefetch_factor + ahead, and `ahead` is 2 by default. Before that, the rates may have
served for some batches: as many as came since the first one with this `table_version`. Both together are steps that the
model has taken since the latest report that the batch could know of.

    python -m benchmarks.staleness --json benchmarks/results/staleness.json
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn import functional
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client.pytorch.loader import lead_of
from sampler_service.embedded import running_service
from trainer_examples.data import load
from trainer_examples.models import mlp
from trainer_examples.results import write_result

BATCH = 16
WORKERS = 2
PREFETCH = 2
STEP_S = 0.02


def measure(
    address: str, policy: str, steps: int, *, workers: int = WORKERS, prefetch: int = PREFETCH
) -> dict[str, Any]:
    """Train `steps` steps and look at every batch's lead, and at the age of the rates of those that were drawn.

    Returns:
        What was promised, and of the leads met: median, 99th percentile, largest, and how often each came; the same but
        the last of the ages of rates, and of both together; and what the service says of the ages itself.
    """
    data = load()
    model = mlp(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader: DataLoader[Any] = DataLoader(
        data.train, BATCH, shuffle=True, num_workers=workers, prefetch_factor=prefetch, persistent_workers=True
    )
    leads: list[int] = []
    ages: list[int] = []  # of the rates, and with the lead, of the batches that the policy drew
    totals: list[int] = []
    first: dict[int, int] = {}  # batch with each table version
    run = f"staleness-{policy}"
    with (
        sampler.attach(loader, address, run=run, policy=policy) as sampled,
        sampler.GradientSketcher(model, dim=64) as sketcher,
        sampler.SamplerClient(address) as client,
    ):
        while len(leads) < steps:
            for (x, y), batch in sampled:
                began = time.perf_counter()
                age = len(leads) - first.setdefault(batch.table_version, len(leads))
                leads.append(batch.lead)
                if batch.policy == policy:
                    ages.append(age)
                    totals.append(batch.lead + age)
                losses = functional.cross_entropy(model(x), y, reduction="none")
                optimizer.zero_grad()
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
                time.sleep(max(0.0, STEP_S - (time.perf_counter() - began)))
        said = client.statistics(run)
    return {
        "policy": policy,
        "num_workers": workers,
        "prefetch_factor": prefetch,
        "step_ms": STEP_S * 1e3,
        "batches": len(leads),
        "promised": lead_of(loader),
        **_quantiles(leads),
        "leads": {str(lead): times for lead, times in sorted(Counter(leads).items())},
        "drawn": len(totals),
        "rates_age_steps": _quantiles(ages),
        "rates_age_steps_said": {"median": said.median_rates_age_steps, "p99": said.p99_rates_age_steps},
        "lead_and_age_steps": _quantiles(totals),
    }


def _quantiles(values: list[int]) -> dict[str, float]:
    """Of no values none."""
    if not values:
        return {}
    return {
        "median": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "largest": max(values),
    }


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    steps: Annotated[int, typer.Option(help="at least so many; epochs are run to their end")] = 200,
) -> None:
    """Measure staleness with two workers that prefetch two batches each."""
    with running_service() as address:
        rows = [measure(address, policy, steps) for policy in ("gradient_clustering", "importance")]
    ours = rows[0]
    write_result(
        json,
        name="staleness",
        rows=rows,
        headline={
            "serving_staleness_median": ours["median"],
            "serving_staleness_p99": ours["p99"],
            "promised": float(ours["promised"]),
            "total_staleness_median": ours["lead_and_age_steps"]["median"],
            "total_staleness_p99": ours["lead_and_age_steps"]["p99"],
        },
        notes=(
            "batches, which are steps, that the trainer held when a batch was handed out; policy gradient_clustering",
            "promised: num_workers x prefetch_factor + ahead = 2 x 2 + 2",
            "total: lead and age of the rates together, of the batches that the policy drew",
        ),
    )


if __name__ == "__main__":
    typer.run(main)
