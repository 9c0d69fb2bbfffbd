"""Seconds per epoch of each recipe against the same script on its own DataLoader, at equal steps.

    python -m benchmarks.recipes --json benchmarks/results/recipes.json

Each measurement is a process of its own that runs the example itself (`benchmarks.recipes.one`): with the plain
DataLoader, attached with reports of losses, and attached with sketches, in turns. The service runs beside it. Models
and steps are small (three convolutions on 32 x 32 images, a transformer of two layers, tens of milliseconds each), so
the overhead of larger ones is less. A figure is the ratio of medians over all epochs of all repeats.
"""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.recipes.one import RECIPES, WORKERS
from sampler_service.embedded import running_service
from trainer_examples.results import write_result

VARIANTS = ("loader", "losses", "sketches")
STEPS = 40
EPOCHS = 6
LIMIT_S = 300


def make_data(folder: Path) -> None:
    """STEPS batches of 64 random images, and of 32 random texts; a sixth more is held out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64 * STEPS * 6 // 5, 3 * 32 * 32), dtype=np.uint8)
    labels = rng.integers(0, 10, len(pixels))
    images = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "images.parquet")
    letters = rng.choice(list("etaoinshrdlu "), (32 * STEPS * 6 // 5, 64))
    (folder / "texts.txt").write_text("\n".join("".join(line.tolist()) for line in letters))


def measure(recipe: str, variant: str, address: str, folder: Path) -> list[float]:
    """Seconds of each epoch."""
    out = folder / "seconds.json"
    out.unlink(missing_ok=True)
    one = ["-m", "benchmarks.recipes.one", recipe, variant, address, str(folder), str(EPOCHS), str(out)]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS["ddp"]), "--standalone"]
    command = [sys.executable, *(torchrun if recipe == "ddp" else []), *one]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode or not out.exists():
        raise SystemExit(f"{recipe}, {variant}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    noted = jsonlib.loads(out.read_text())
    if set(noted["steps"]) != {STEPS}:
        raise SystemExit(f"{recipe}, {variant}: epochs of {noted['steps']} steps, not of {STEPS}: no comparison")
    return noted["seconds"]


def rows_of(recipe: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    medians = {variant: statistics.median(seconds) for variant, seconds in taken.items()}
    return {
        "recipe": recipe,
        "processes": WORKERS.get(recipe, 1),
        **{f"{variant}_s": median for variant, median in medians.items()},
        "overhead_losses": medians["losses"] / medians["loader"],
        "overhead": medians["sketches"] / medians["loader"],
        "epochs_s": taken,
    }


def main(
    json: Annotated[Path | None, typer.Option(help="where the result goes")] = None,
    recipes: Annotated[str, typer.Option(help="comma-separated")] = ",".join([*RECIPES, "ray"]),
    repeats: Annotated[int, typer.Option(help="processes of each recipe and variant")] = 3,
) -> None:
    """Measure what the service adds to each recipe."""
    chosen = recipes.split(",")
    taken: dict[str, dict[str, list[float]]] = {recipe: {variant: [] for variant in VARIANTS} for recipe in chosen}
    turns = [(recipe, variant) for _ in range(repeats) for recipe in chosen for variant in VARIANTS]
    with tempfile.TemporaryDirectory() as folder, running_service() as address:
        make_data(Path(folder))
        for recipe, variant in track(turns, "measuring"):
            taken[recipe][variant] += measure(recipe, variant, address, Path(folder))
    rows = [rows_of(recipe, taken[recipe]) for recipe in chosen]
    write_result(
        json,
        name="recipes",
        rows=rows,
        headline={
            "recipe_overhead": max(row["overhead"] for row in rows),
            "recipe_overhead_losses": max(row["overhead_losses"] for row in rows),
            **{f"overhead_{row['recipe']}": row["overhead"] for row in rows},
        },
        notes=[
            "seconds per epoch over those of the same script on its own DataLoader, of equally many steps",
            "overhead: the whole recipe, sketches and gradient_clustering; overhead_losses: losses alone, shuffled",
            "trainers, service and its shards share this machine's cores",
        ],
    )


if __name__ == "__main__":
    typer.run(main)
