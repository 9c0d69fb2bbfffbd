"""What needs a GPU: FAISS-GPU in a shard, sketching on CUDA, a CUDA trainer through the whole service.

    python -m benchmarks.gpu_check --json benchmarks/results/gpu_check.json

Needs the extra `service-gpu` (faiss-gpu in place of faiss-cpu) and a CUDA build of torch. The CPU's figures come
from the same wheel in a process that sees no GPU, so the code is the same and only the device differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sampler_client.pytorch.loader import attach
from sampler_client.pytorch.sketcher import GradientSketcher
from sampler_service.clustering import recluster
from sampler_service.embedded import running_service
from sampler_service.index import kernels
from sampler_service.shards import LocalShards
from sampler_service.types import ReportBlock
from trainer_examples.results import write_result

ROWS, DIM, CLUSTERS = 500_000, 64, 256


def filled_shards(rows: int) -> LocalShards:
    """Shards with sketches of a thousand overlapping groups, the same on every device."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, DIM)).astype(np.float32)
    shards = LocalShards(rows, DIM)
    for start in range(0, rows, 65536):
        ids = np.arange(start, min(start + 65536, rows))
        sketches = centres[ids % 1000] + 0.5 * rng.standard_normal((len(ids), DIM)).astype(np.float32)
        ones = np.ones(len(ids), np.float32)
        block = ReportBlock(example_ids=ids, losses=ones, norms=ones, sketches=sketches.astype(np.float16), step=0)
        shards.update(block)
    return shards


def clustering_row(rows: int) -> dict[str, Any]:
    """Seconds of each part of a refresh in this process, and the objective it reaches."""
    shards = filled_shards(rows)
    start = time.perf_counter()
    seeded = recluster(shards, num_clusters=CLUSTERS, method="kmeans", max_passes=5, warm=False)
    seeded_s = time.perf_counter() - start
    start = time.perf_counter()
    refined = recluster(shards, num_clusters=CLUSTERS, max_passes=2)
    return {
        "what": f"refresh of {rows:,} sketches, K = {CLUSTERS}",
        "device": "gpu" if kernels.num_gpus() else "cpu",
        "kmeans_seconds": seeded_s,
        "hartigan_seconds": time.perf_counter() - start,
        "kmeans_objective": seeded.objective,
        "hartigan_objective": refined.objective,
    }


def on_cpu(rows: int) -> dict[str, Any]:
    """The same in a process that sees no GPU."""
    code = f"import json; from benchmarks.gpu_check import clustering_row as c; print(json.dumps(c({rows})))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def sketching_rows() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The sketching benchmark, which takes CUDA when it is there; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sketching.json"
        subprocess.run([sys.executable, "-m", "benchmarks.sketching", "--json", str(path)], check=True)
        result = json.loads(path.read_text())
    return result["rows"], {f"sketching_{name}": value for name, value in result["headline"].items()}


def cuda_trainer_row(address: str, *, amp: bool) -> dict[str, Any]:
    """A small classifier on the GPU fed by the service for 5 epochs, with and without AMP; it must learn."""
    torch.manual_seed(0)
    inputs = torch.randn(8192, 64)
    labels = (inputs @ torch.randn(64, 10)).argmax(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=amp)  # pyright: ignore[reportPrivateImportUsage]
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    base = DataLoader(TensorDataset(inputs, labels), batch_size=128, num_workers=2, pin_memory=True)
    run = f"cuda-amp-{amp}"
    with attach(base, address, run=run) as loader, GradientSketcher(model, dim=DIM) as sketcher:
        start = time.perf_counter()
        mean_losses = []
        for _ in range(5):
            total = 0.0
            for (x, y), batch in loader:
                x, y = x.cuda(non_blocking=True), y.cuda(non_blocking=True)
                with torch.autocast("cuda", enabled=amp):
                    losses = loss_fn(model(x), y)
                optimizer.zero_grad()
                scaler.scale(batch.weighted_mean(losses)).backward()
                scaler.step(optimizer)
                scaler.update()
                batch.report(losses, sketcher)
                total += float(losses.sum())
            mean_losses.append(total / len(inputs))
        loader.fence()
        statistics = loader.sampler.source.client.statistics(run)  # pyright: ignore[reportAttributeAccessIssue]
        if not mean_losses[-1] < 0.7 * mean_losses[0]:
            raise RuntimeError(f"the trainer did not learn: mean losses {mean_losses}")
        return {
            "what": "CUDA trainer, 5 epochs of 8192 examples",
            "amp": amp,
            "seconds": time.perf_counter() - start,
            "mean_losses": mean_losses,
            "policy": statistics.active_policy,
            "sketch_coverage": statistics.sketch_coverage,
            "variance_ratio": statistics.variance_ratio,
        }


def main(json: Annotated[Path | None, typer.Option(help="where to write the result")] = None) -> None:
    """Run every check; ends with 2 when there is no GPU for FAISS or torch."""
    if not kernels.num_gpus() or not torch.cuda.is_available():
        typer.echo(
            f"no GPU: FAISS sees {kernels.num_gpus()}, torch says cuda.is_available() = {torch.cuda.is_available()}; "
            "install the extra service-gpu and a CUDA build of torch on a machine that has one"
        )
        raise typer.Exit(2)
    gpu, cpu = clustering_row(ROWS), on_cpu(ROWS)
    sketching, headline = sketching_rows()
    with running_service(arguments=["--gpus-per-shard", "0.25"]) as address:
        trainers = [cuda_trainer_row(address, amp=amp) for amp in (False, True)]
    headline |= {
        "kmeans_gpu_over_cpu_speed": cpu["kmeans_seconds"] / gpu["kmeans_seconds"],
        "hartigan_gpu_over_cpu_speed": cpu["hartigan_seconds"] / gpu["hartigan_seconds"],
        "objective_gpu_over_cpu": gpu["hartigan_objective"] / cpu["hartigan_objective"],
    }
    device = f"device: {torch.cuda.get_device_name()}"
    write_result(json, name="gpu_check", rows=[gpu, cpu, *trainers, *sketching], headline=headline, notes=[device])


if __name__ == "__main__":
    typer.run(main)
