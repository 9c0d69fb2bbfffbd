"""Weighted draws per second, as a trainer would consume them: batches of 256.

    OMP_NUM_THREADS=1 python -m benchmarks.draws --json benchmarks/results/draws.json --plot draws.png

Ours is what the service runs: `WeightedDrawer` in the planner's blocks of `BLOCK_STEPS` batches, each with a
generator of its own and each batch an array of ids; and `LocalSampler`, which yields ids one by one. It and the peers
are iterated as their documentation says, through torch's BatchSampler; `torch.multinomial` alone, without the
iterating, is the harder thing to beat. One measurement is one set of weights and as many draws as examples
(at most `--draws`), so that every sampler pays once for its running sum; "steady" leaves that out for ours.
The samplers take turns in one process, and each figure is a median. All of them run on one thread, so speeds
are per second of that thread's processor time: on an idle machine that is the wall clock, on a busy one it
leaves out the waiting for a core (the wall clock is in the rows as well).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress
from scipy.stats import chisquare
from torch.utils.data import BatchSampler, WeightedRandomSampler

from sampler_service.local import LocalSampler
from sampler_service.planning.draws import BLOCK_STEPS
from sampler_service.planning.randomness import Stream, generator
from sampler_service.planning.weighted import WeightedDrawer
from sampler_service.types import Float64
from trainer_examples.results import write_result

SIZES = (100_000, 1_000_000, 10_000_000, 30_000_000)
BATCH = 256
ABOVE_2E24 = (1 << 24) + 1000

OURS, STEADY, MAKE, LOCAL = "ours", "ours, steady", "ours, making the order", "ours, LocalSampler"
TORCH, MULTINOMIAL, SPDL = "torch WeightedRandomSampler", "torch.multinomial alone", "spdl DistributedRandomSampler"

Measurement = Callable[[], int]
"""Draws something and returns how many."""


def draw_blocks(drawer: WeightedDrawer, draws: int) -> int:
    rows = BATCH * BLOCK_STEPS
    blocks = max(1, draws // rows)
    for block in range(blocks):
        rng = generator(Stream.DRAW, seed=0, epoch=0, position=block * rows)
        for _batch in drawer.draw(num_batches=BLOCK_STEPS, size=BATCH, rng=rng):
            pass
    return blocks * rows


def ours(weight_n: Float64, draws: int) -> dict[str, Measurement]:
    rng = np.random.default_rng(0)
    drawer = WeightedDrawer(weight_n, rng)

    def with_new_weights() -> int:
        drawer.refresh(weight_n)
        return draw_blocks(drawer, draws)

    def steady() -> int:
        return draw_blocks(drawer, draws)

    def with_new_order() -> int:
        return draw_blocks(WeightedDrawer(weight_n, rng), draws)

    local = iterated(LocalSampler(weight_n, draws))
    return {OURS: with_new_weights, STEADY: steady, MAKE: with_new_order, LOCAL: local}


def iterated(sampler: Any) -> Measurement:
    def run() -> int:
        return sum(len(batch) for batch in BatchSampler(sampler, BATCH, drop_last=False))

    return run


def peers(weight_n: Float64, draws: int) -> dict[str, Measurement | str]:
    """By name; a string is the reason why the peer cannot take part."""
    weights = torch.from_numpy(weight_n)
    found: dict[str, Measurement | str] = {
        TORCH: iterated(WeightedRandomSampler(weights, draws)),  # pyright: ignore[reportArgumentType]
        MULTINOMIAL: lambda: len(torch.multinomial(weights, draws, replacement=True)),
        SPDL: "not installed",
    }
    try:
        from spdl.source import DistributedRandomSampler  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    weight_array: Any = weight_n  # declared as a list, but it takes arrays, and only they are quick
    size = len(weight_n)
    sampler = DistributedRandomSampler(size, rank=0, world_size=1, num_draws=draws, weights=weight_array)
    return found | {SPDL: iterated(sampler)}


def measure(num_examples: int, draws: int, repeats: int, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per sampler at one size; samplers take turns, `repeats` times."""
    weight_n = np.random.default_rng(num_examples).lognormal(size=num_examples)
    contenders: dict[str, Measurement | str] = {**ours(weight_n, draws), **peers(weight_n, draws)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}  # processor, wall
    drawn: dict[str, int] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            tick(f"{num_examples:.0e} {name}")
            if isinstance(run, str):
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                drawn[name] = run()
            except RuntimeError as error:
                contenders[name] = f"cannot run: {str(error).splitlines()[0]}"
                continue
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows: list[dict[str, Any]] = []
    for name, run in contenders.items():
        row = {"result": run} if isinstance(run, str) else _summary(drawn[name], seconds[name])
        rows.append({"examples": num_examples, "sampler": name} | row)
    return rows


def _summary(draws: int, seconds: list[tuple[float, float]]) -> dict[str, Any]:
    cpu, wall = zip(*seconds, strict=True)
    return {
        "draws": draws,
        "draws_per_s": draws / statistics.median(cpu),
        "slowest_draws_per_s": draws / max(cpu),
        "fastest_draws_per_s": draws / min(cpu),
        "cpu_seconds": statistics.median(cpu),
        "wall_seconds": statistics.median(wall),
        "repeats": len(seconds),
    }


def chi_square_above_2e24() -> float:
    """p-value of 2 000 000 draws in 64 bins, weight 2 for the first half of 2^24 + 1000 examples, 1 for the rest."""
    weight_n = np.ones(ABOVE_2E24)
    weight_n[: ABOVE_2E24 // 2] = 2
    rng = np.random.default_rng(24)
    drawer = WeightedDrawer(weight_n, rng)
    count = 2_000_000 // (BLOCK_STEPS * BATCH)
    blocks = [drawer.draw(num_batches=BLOCK_STEPS, size=BATCH, rng=rng) for _ in range(count)]
    observed_b = np.bincount(np.concatenate(blocks).ravel() * 64 // ABOVE_2E24, minlength=64)
    expected_b = np.bincount(np.arange(ABOVE_2E24) * 64 // ABOVE_2E24, weights=weight_n, minlength=64)
    return float(chisquare(observed_b, expected_b / expected_b.sum() * observed_b.sum()).pvalue)


def headline_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios where that size and the peer were run; a weight change is in both sides."""
    speed = {(row["examples"], row["sampler"]): row["draws_per_s"] for row in rows if "draws_per_s" in row}
    ratios = {
        "over_torch_1e7": (10**7, OURS, TORCH),
        "over_multinomial_1e7": (10**7, OURS, MULTINOMIAL),
        "over_spdl_1e7": (10**7, OURS, SPDL),
        "local_over_torch_1e5": (10**5, LOCAL, TORCH),
        "local_over_torch_1e6": (10**6, LOCAL, TORCH),
        "local_over_torch_1e7": (10**7, LOCAL, TORCH),
    }
    return {
        figure: speed[size, ours] / speed[size, peer]
        for figure, (size, ours, peer) in ratios.items()
        if (size, peer) in speed
    }


def draw_plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in (OURS, STEADY, LOCAL, MULTINOMIAL, TORCH, SPDL):
        points = [(r["examples"], r["draws_per_s"]) for r in rows if r["sampler"] == name and "draws_per_s" in r]
        if points:
            axes.loglog(*zip(*points, strict=True), "o-", label=name, linewidth=2.5 if name == OURS else 1.2)
    axes.set_xlabel("examples (torch stops at 2^24)")
    axes.set_ylabel("weighted draws per second")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the rows and the headline")] = None,
    plot: Annotated[Path | None, typer.Option(help="where to write the curves, PNG")] = None,
    repeats: Annotated[int, typer.Option(help="measurements per sampler and size", min=1)] = 5,
    draws: Annotated[int, typer.Option(help="most draws in one measurement")] = 10_000_000,
    largest: Annotated[int, typer.Option(help="leave out sizes above this")] = SIZES[-1],
) -> None:
    """Measure weighted draws per second against torch and SPDL, and test the frequencies above 2^24 examples."""
    torch.set_num_threads(1)
    sizes = [size for size in SIZES if size <= largest]
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        task = progress.add_task("draws", total=7 * repeats * len(sizes) + 1)

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        for size in sizes:
            rows += measure(size, min(size, draws), repeats, tick)
        tick("chi-square")
        chi_square = chi_square_above_2e24()
    for row in rows:
        result = row.get("result") or f"{row['draws_per_s'] / 1e6:.2f} M draws/s"
        print(f"{row['examples']:>10,} {row['sampler']:<32} {result}")
    notes = [
        f"Medians of {repeats}, samplers taking turns in one process, one thread; log-normal weights.",
        "Seconds are processor time of that one thread; the rows have the wall clock too.",
        f"One measurement is one change of all weights and min(examples, {draws:,}) draws in batches of {BATCH}.",
        "torch.multinomial yields one tensor for the whole epoch and is not cut into batches.",
        "Draws of torch and SPDL are independent; ours are spread evenly over blocks of "
        f"{BLOCK_STEPS} batches, those of LocalSampler over the epoch (same marginals).",
        f"spdl {metadata.version('spdl')}" if _has("spdl") else "spdl is not installed",
    ]
    headline = headline_of(rows) | {"chi_square_p_above_2e24": chi_square}
    write_result(json, name="draws", rows=rows, headline=headline, notes=notes)
    if plot is not None:
        draw_plot(rows, plot)


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    typer.run(main)
