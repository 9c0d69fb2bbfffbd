"""Embeddings of pairs under three losses: sum of hinges, max of hinges, and max of hinges on mined batches.

    python -m trainer_examples.retrieval                                     # halves of scikit-learn's digits
    python -m trainer_examples.retrieval --data multi30k --left en --right de
    python -m trainer_examples.retrieval --data flickr30k --left images.npy --right caption
    python -m trainer_examples.retrieval --left images.npy --right captions.npy

A left and a right side are each encoded into a joint space, in which a pair's sides should be nearer to one another
than to others'. Sides are text columns of a folder's train.parquet, val.parquet and test.parquet, or .npy files of
features, one row per pair (`pairs.py`); an image with several captions has its row repeated, and is no negative of its
own captions. Each method's learning rate, and the epoch whose model is kept, are those of most recall in validation;
what is printed is recall in the test part, with as many epochs for all methods.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client.retrieval import CollapseDetector, MaxOfHinges, PairSketches, recall_at_k, warm_up
from sampler_service.embedded import running_service
from trainer_examples.models import encoder
from trainer_examples.pairs import PairData, Pairs, load_pairs
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.tuning import TUNING_SEED

METHODS = ("sum of hinges", "max of hinges", "mined")
RATES = (6e-3, 2e-2, 6e-2)
"""learning rates that each method tries"""
BATCH_SIZE = 128
MARGIN = 0.2
JOINT_DIM = 512
CLIP = 2.0
"""largest norm of a gradient"""
KS = (1, 5, 10)
MINING_S = 120.0
"""deadline of a search for hard pairs; the time that an epoch waits for it is the method's"""
SKETCH_DIM = 128
"""numbers of each side's embedding that the service searches by"""


@dataclass(slots=True, kw_only=True)
class Run:
    """One training."""

    method: str
    seed: int
    rate: float
    epochs: int
    val: float = 0.0
    """sum of the six recalls in validation, of the best epoch"""
    epoch: int = 0
    """that one, from 1"""
    recalls: dict[str, dict[int, float]] = field(default_factory=dict)
    """in the test part, of its model"""
    seconds: float = 0.0
    """of training, waiting for batches included, evaluations not"""
    collapses: int = 0
    """epochs that went back to the sum of hinges because all similarities had become equal"""

    @property
    def first(self) -> float:
        """Recall at 1, mean of both directions."""
        return sum(at[1] for at in self.recalls.values()) / len(self.recalls)


class TwoSides(nn.Module):
    """An encoder for each side."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.left, self.right = encoder(pairs.left, JOINT_DIM), encoder(pairs.right, JOINT_DIM)

    def forward(self, pairs: Pairs, rows: Any) -> tuple[Tensor, Tensor]:
        return self.left(pairs.left[rows]), self.right(pairs.right[rows])

    @torch.no_grad()
    def embed(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(n, JOINT_DIM) embeddings of all, each side."""
        parts = [self(pairs, slice(start, start + 1024)) for start in range(0, len(pairs), 1024)]
        left, right = zip(*parts, strict=True)
        return torch.cat(left), torch.cat(right)


def train(method: str, data: PairData, rate: float, *, epochs: int, seed: int, address: str) -> Run:
    """Train; the model of the best epoch in validation is tested."""
    torch.manual_seed(seed)
    model = TwoSides(data.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    run = Run(method=method, seed=seed, rate=rate, epochs=epochs)
    loader: Any = DataLoader(range(len(data.train)), batch_size=BATCH_SIZE, shuffle=True)  # pyright: ignore
    if method == "mined":
        loader = attached(loader, data.train, address, epochs=epochs, seed=seed)
    detector = CollapseDetector(MARGIN)
    for epoch in range(epochs):
        began = time.perf_counter()
        hardness = hardnesses(method, epoch, epochs, len(loader))
        run.collapses += one_epoch(model, optimizer, data.train, loader, hardness, detector)
        schedule.step()
        run.seconds += time.perf_counter() - began
        found = recall_at_k(*model.embed(data.val), ks=KS, group=data.val.group, items=data.val.items)
        score = sum(sum(at.values()) for at in found.values())
        if score > run.val:
            run.val, run.epoch = score, epoch + 1
            run.recalls = recall_at_k(*model.embed(data.test), ks=KS, group=data.test.group, items=data.test.items)
    if isinstance(loader, sampler.SampledLoader):
        loader.close()
    return run


def attached(loader: Any, pairs: Pairs, address: str, *, epochs: int, seed: int) -> sampler.SampledLoader:
    """The loader, whose batches the service composes; it knows which pairs match one another."""
    name = f"retrieval-{uuid.uuid4().hex[:8]}"
    sampled = sampler.attach(
        loader,
        address,
        run=name,
        policy="hard_negative",
        epochs=epochs,
        seed=seed,
        sketch_dim=2 * SKETCH_DIM,
    )
    with sampler.SamplerClient(address) as client:
        client.set_groups(name, pairs.group.numpy())
    return sampled


def one_epoch(
    model: TwoSides,
    optimizer: torch.optim.Optimizer,
    pairs: Pairs,
    loader: Any,
    hardness: Iterator[float],
    detector: CollapseDetector,
) -> bool:
    """Whether it collapsed; from there on the epoch has the sum of hinges. The detector goes on from epoch to epoch."""
    loss_of, collapsed = MaxOfHinges(MARGIN), False
    for item, hard in zip(loader, hardness, strict=True):
        rows, batch = item if isinstance(loader, sampler.SampledLoader) else (item, None)
        loss_of.hardness = 0.0 if collapsed else hard
        left, right = model(pairs, rows)
        losses = loss_of(left, right, pairs.group[rows])
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if batch is not None:
            batch.report(losses, PairSketches(left, right, dim=SKETCH_DIM))
        collapsed = collapsed or (loss_of.hardness == 1 and detector.collapsed(loss.item()))
    if isinstance(loader, sampler.SampledLoader):
        loader.flush()
        await_mining(loader)
    return collapsed


def await_mining(loader: sampler.SampledLoader) -> None:
    """The next epoch is composed by what this one showed: by the search that began when nine tenths of it were lent."""
    until = time.monotonic() + MINING_S
    while (said := loader.sampler.source.statistics()).refreshes <= said.epoch:
        if time.monotonic() > until:
            raise TimeoutError(f"the service has not searched for hard pairs of run {said.run!r} in {MINING_S:g} s")
        time.sleep(0.02)


def hardnesses(method: str, epoch: int, epochs: int, batches: int) -> Iterator[float]:
    """Shares of the largest hinges in the batches of an epoch."""
    for batch in range(batches):
        yield 0.0 if method == "sum of hinges" else warm_up((epoch + batch / batches) / epochs)


def best_rate(method: str, data: PairData, epochs: int, address: str) -> float:
    """The learning rate of most recall in validation."""

    def found(rate: float) -> float:
        return train(method, data, rate, epochs=epochs, seed=TUNING_SEED, address=address).val

    return max(RATES, key=found)


def main(
    data: Annotated[str | None, typer.Option(help="folder of Parquet files; none: halves of the digits")] = None,
    left: Annotated[str, typer.Option(help="text column, or .npy file of features")] = "en",
    right: Annotated[str, typer.Option(help="text column, or .npy file of features")] = "de",
    epochs: Annotated[int, typer.Option(help="passes over the training pairs, for each method")] = 12,
    seeds: Annotated[int, typer.Option(help="runs of each method")] = 3,
    limit: Annotated[int | None, typer.Option(help="largest number of training pairs")] = None,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> dict[str, list[Run]]:
    """Compare the methods; returns {method: runs}."""
    torch.set_num_threads(1)  # as many as the figures in the documents were measured with
    console = Console()
    pairs = load_pairs(data, left, right, limit=limit)
    console.print(f"{pairs}; {epochs} epochs, {seeds} seeds")
    runs: dict[str, list[Run]] = {}
    with running_service() as address:
        for method in METHODS:
            rate = best_rate(method, pairs, epochs, address)
            runs[method] = [
                train(method, pairs, rate, epochs=epochs, seed=seed, address=address) for seed in range(seeds)
            ]
            recalls = ", ".join(f"{run.first:.1%}" for run in runs[method])
            console.print(f"{method}: rate {rate:g}, recall at 1 {recalls}")
    console.print(table_of(runs))
    write_result(
        json,
        name="retrieval",
        rows=[asdict(run) | {"recall_at_1": run.first} for of_method in runs.values() for run in of_method],
        headline=headline_of(runs),
        notes=[
            f"{pairs}; {epochs} epochs of batches of {BATCH_SIZE}, {seeds} seeds, joint dimension {JOINT_DIM}.",
            f"Learning rate of each method: of {', '.join(f'{rate:g}' for rate in RATES)} the one of most recall in "
            "validation, as is the epoch whose model is tested.",
            "Ratios are of the seeds' mean recalls at 1, both directions averaged; points are their differences, "
            "paired by seed. Seconds are of one thread.",
        ],
    )
    return runs


def headline_of(runs: dict[str, list[Run]]) -> dict[str, float | None]:
    """Ratios of recalls at 1, means over the seeds; and their differences in points, with the deviation over seeds."""
    firsts = [np.array([run.first for run in runs[method]]) for method in METHODS]
    figures: dict[str, float | None] = {}
    for name, (one, other) in zip(("mh_over_sh", "mined_over_mh"), pairwise(firsts), strict=True):
        figures[name] = float(other.mean() / one.mean()) if one.any() else None
        figures[f"{name}_points"], figures[f"{name}_points_deviation"] = spread((100 * (other - one)).tolist())
    figures["mined_seconds_over_mh"] = _seconds(runs["mined"]) / _seconds(runs["max of hinges"])
    return figures


def _seconds(runs: list[Run]) -> float:
    return float(np.mean([run.seconds for run in runs]))


def table_of(runs: dict[str, list[Run]]) -> Table:
    """A row per method; means over the seeds, and the deviation of recall at 1."""
    table = new_table("recall in %", "method", "rate", "R@1/5/10 ->", "R@1/5/10 <-", "R@1", "seconds")
    for method, of_method in runs.items():
        first = [100 * run.first for run in of_method]
        ways = np.mean([[list(at.values()) for at in run.recalls.values()] for run in of_method], axis=0)
        table.add_row(
            method,
            f"{of_method[0].rate:g}",
            *(" ".join(f"{100 * share:.1f}" for share in way) for way in ways),
            "{:.1f} ± {:.1f}".format(*spread(first)),
            f"{_seconds(of_method):.0f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
