"""What a scorer brings: rows scored a second, and how old what is known becomes with one and without.

A trainer whose steps take 20 ms of somebody else's device (it sleeps, and leaves the cores to the service) draws by
`importance` from 20 000 images, epochs of which take some six seconds. Once a sketcher reports what was trained on,
once a scorer refreshes norms from weights that the trainer publishes every tenth step.

    python -m benchmarks.scorers --json benchmarks/results/scorers.json
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_service.embedded import running_service
from sampler_service.scoring import Scoring
from trainer_examples.models import mlp
from trainer_examples.results import write_result

EXAMPLES = 20_000
PIXELS, CLASSES = 784, 10
BATCH = 64
STEP_S = 0.02
PUBLISH_EVERY = 10
DATASET = "benchmark-scorers"


def records() -> TensorDataset:
    """Images of a mixture of ten Gaussians, the same in every process."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=rng)
    centres = torch.randn(CLASSES, PIXELS, generator=rng)
    images = centres[labels] + 2 * torch.randn(EXAMPLES, PIXELS, generator=rng)
    return TensorDataset(images, labels)


def make_model() -> nn.Module:
    """784-256-10."""
    return mlp(PIXELS, CLASSES, width=256)


def scoring(dataset: str) -> Scoring | None:
    """What the service's scorers run; it finds this by its name."""
    return Scoring(model=make_model(), records=records()) if dataset == DATASET else None


def measure(address: str, *, scored: bool, epochs: int) -> dict[str, Any]:
    """Train, and look at the ages after every half epoch but those of the first, in which nothing is known yet.

    Returns:
        Medians over the looks of the median and 99th percentile of ages in steps; and rows scored a second, from the
        first that was, which is when the scorer had started.
    """
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader: DataLoader[Any] = DataLoader(records(), BATCH, shuffle=True)
    run = f"scorers-{'with' if scored else 'without'}"
    sketcher = None if scored else sampler.GradientSketcher(model, dim=64)
    looks: list[Any] = []
    began: tuple[float, int] | None = None
    ended = (0.0, 0)
    with (
        sampler.attach(loader, address, run=run, dataset=DATASET, policy="importance") as sampled,
        sampler.SamplerClient(address) as client,
    ):
        if scored:  # processes of their own take seconds to start, however long the job
            sampled.publish(model)
            _await_scorer(client, run)
        for epoch in range(epochs):
            for step, ((x, y), batch) in enumerate(sampled):
                due = time.perf_counter() + STEP_S
                losses = functional.cross_entropy(model(x), y, reduction="none")
                optimizer.zero_grad()
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
                if scored and step % PUBLISH_EVERY == 0:
                    sampled.publish(model)
                if step % (len(sampled) // 2) == len(sampled) // 2 - 1:
                    said = client.statistics(run)
                    ended = time.perf_counter(), said.scored_rows
                    began = began or ended
                    if epoch:
                        looks.append(said)
                time.sleep(max(0.0, due - time.perf_counter()))
        sampled.flush()
        client.close_run(run)
    assert began is not None
    return {
        "scored": scored,
        "epochs": epochs,
        "steps_per_epoch": EXAMPLES // BATCH,
        "median_age_steps": median(said.median_age_steps for said in looks),
        "p99_age_steps": median(said.p99_age_steps for said in looks),
        "rows_per_second": (ended[1] - began[1]) / (ended[0] - began[0]),
    }


def _await_scorer(client: sampler.SamplerClient, run: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not client.statistics(run).scored_rows:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no scorer of run {run!r} scored anything within {timeout_s:g} s")
        time.sleep(0.1)


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    epochs: Annotated[int, typer.Option(help="at least 2: ages are looked at from the second on")] = 4,
) -> None:
    """One scorer against none."""
    with running_service(arguments=("--scorers", "1", "--scoring", "benchmarks.scorers:scoring")) as address:
        rows = [measure(address, scored=scored, epochs=epochs) for scored in (False, True)]
    without, beside = rows
    write_result(
        json,
        name="scorers",
        rows=rows,
        headline={
            "scored_rows_per_second": beside["rows_per_second"],
            "median_age_steps": beside["median_age_steps"],
            "median_age_steps_without": without["median_age_steps"],
            "p99_age_steps": beside["p99_age_steps"],
            "p99_age_steps_without": without["p99_age_steps"],
        },
        notes=(
            f"an MLP 784-256-10, {EXAMPLES} images, steps of {1e3 * STEP_S:g} ms in which the cores are free for the "
            "scorer, as where a trainer computes on a device of its own",
            "ages in steps, of the norms that the policy draws by; without a scorer a sketcher reports those of what "
            "was trained on",
        ),
    )


if __name__ == "__main__":
    typer.run(main)
