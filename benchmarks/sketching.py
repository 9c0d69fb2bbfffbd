"""What gradient sketches cost a training step, what the peers cost, and how well sketches keep inner products.

    python -m benchmarks.sketching --json benchmarks/results/sketching.json

A step is forward, backward, SGD update and, with a sketcher, `take()`. Variants run interleaved, one step each
per round and in rotated order, on copies of one model; a row's `ratio` is the median over rounds of its time over
the plain step of the same round. Sketchers run with their default settings except for `dim`. Peers (opacus,
BackPACK) are optional: a row says so when one can't be imported or can't run the model. Run with OMP_NUM_THREADS=1
on a shared machine.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.sketching_models import CASES, Case, examples
from sampler_client.pytorch.sketcher import GradientSketcher
from trainer_examples.results import write_result

DIMS = (32, 64, 128, 256)
Step = Callable[[], object]


def training_step(model: nn.Module, x: Tensor, y: Tensor, after_backward: Step) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        after_backward()
        optimizer.step()

    return step


def opacus_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    wrapped = GradSampleModule(model)

    def forget() -> None:
        for parameter in wrapped.parameters():
            parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]

    return training_step(wrapped, x, y, forget)


def backpack_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    from backpack import backpack, extend  # pyright: ignore[reportMissingImports]
    from backpack.extensions import BatchGrad  # pyright: ignore[reportMissingImports]

    model, loss = extend(model), extend(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with backpack(BatchGrad()):
            loss(model(x), y).backward()
        if any(not hasattr(p, "grad_batch") for p in model.parameters()):
            raise RuntimeError("BatchGrad left parameters without grad_batch")
        optimizer.step()

    return step


def per_example_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """{parameter: (b, *shape)} by torch.func, an extra pass."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], x_i: Tensor, y_i: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, x_i[None]), y_i[None])

    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)


def vmap_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    return training_step(model, x, y, lambda: per_example_gradients(model, x, y))


PEERS = {"opacus GradSampleModule": opacus_step, "BackPACK BatchGrad": backpack_step, "vmap(grad)": vmap_step}


def seconds(step: Step, device: torch.device) -> float:
    """Of the device on CUDA; else of the processor, so that neighbours on a shared machine do not count."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.process_time()
    step()
    return time.process_time() - began


def interleaved(steps: dict[str, Step], rounds: int, device: torch.device, tick: Step) -> dict[str, list[float]]:
    """Seconds of each variant in each round; the order rotates, so that none always follows the same other."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        for step in steps.values():
            step()
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(steps[name], device))
        tick()
    gc.enable()
    return times


def rows_of(case: Case, times: dict[str, list[float]], notes: dict[str, str]) -> list[dict[str, Any]]:
    plain = times["plain"]
    rows = []
    for name, values in times.items():
        ratios = sorted(t / p for t, p in zip(values, plain, strict=True))
        rows.append(
            {
                "measure": "step time",
                "model": case.name,
                "batch": case.batch,
                "variant": name,
                "ms": round(1e3 * statistics.median(values), 3),
                "ratio": round(statistics.median(ratios), 4),
                "ratio_p25_p75": [round(ratios[len(ratios) // 4], 4), round(ratios[3 * len(ratios) // 4], 4)],
                "rounds": len(values),
                "note": notes.get(name, ""),
            }
        )
    return rows


def own_rows(case: Case, device: torch.device, rounds: int, tick: Step) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = case.build().to(device)
    x, y = examples(case, device)
    steps = {"plain": training_step(copy.deepcopy(model), x, y, lambda: None)}
    notes: dict[str, str] = {}
    for dim in DIMS:
        twin = copy.deepcopy(model)
        sketcher = GradientSketcher(twin, dim)
        steps[f"sketcher d={dim}"] = training_step(twin, x, y, sketcher.take)
        notes[f"sketcher d={dim}"] = f"{len(sketcher.layers)} layers, {len(sketcher.skipped)} left out"
    return rows_of(case, interleaved(steps, rounds, device, tick), notes)


def peer_rows(case: Case, device: torch.device, rounds: int, tick: Step) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = case.build().to(device)
    x, y = examples(case, device)
    rows: list[dict[str, Any]] = []
    for name, build in PEERS.items():
        try:
            steps = {
                "plain": training_step(copy.deepcopy(model), x, y, lambda: None),
                name: build(copy.deepcopy(model), x, y),
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                times = interleaved(steps, rounds, device, lambda: None)
            rows += [row for row in rows_of(case, times, {}) if row["variant"] == name]
        except Exception as error:  # whatever a peer raises is its result
            note = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
            rows.append({"measure": "step time", "model": case.name, "variant": name, "note": note})
        tick()
    return rows


def correlation_rows(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Pearson correlation over all pairs of a batch after 20 steps, over all parameters and over the sketched."""
    torch.manual_seed(0)
    model = case.build().to(device)
    x, y = examples(case, device)
    step = training_step(model, x, y, lambda: None)
    for _ in range(20):
        step()
    # Products of one parameter at a time: all gradients side by side would be b times the model.
    exact = per_example_gradients(model, x, y)
    grams = {name: gram(value.flatten(1)) for name, value in exact.items()}
    rows = []
    for dim in DIMS:
        with GradientSketcher(model, dim, dtype=np.float32) as sketcher:
            F.cross_entropy(model(x), y).backward()
            sketches = sketcher.take().sketches
            layers = set(sketcher.layers)
        covered = [name for name in grams if name.rpartition(".")[0] in layers]
        row: dict[str, Any] = {"measure": "correlation", "model": case.name, "dim": dim}
        for label, names in (("all parameters", list(grams)), ("sketched layers", covered)):
            products = np.sum([grams[name] for name in names], axis=0)
            estimates = sketches.astype(float) @ sketches.T
            row[f"inner product, {label}"] = pearson(estimates, products)
            row[f"cosine, {label}"] = pearson(cosine(estimates), cosine(products))
        rows.append(row)
    return rows


def gram(rows: Tensor) -> np.ndarray:
    return (rows @ rows.T).double().cpu().numpy()


def cosine(products: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.diag(products))
    return products / np.outer(lengths, lengths)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    upper = np.triu_indices(len(a), 1)
    return round(float(np.corrcoef(a[upper], b[upper])[0, 1]), 4)


def headline_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    ratio = {row["model"]: row["ratio"] for row in rows if row.get("variant") == "sketcher d=64"}
    worst = max(ratio["resnet_group_norm"], ratio["resnet_batch_norm"])
    return {"mlp": ratio["mlp"], "resnet": worst, "transformer": ratio["transformer"]}


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    rounds: Annotated[int, typer.Option(help="rounds per model")] = 60,
    peer_rounds: Annotated[int, typer.Option(help="rounds per model and peer; 0 leaves the peers out")] = 6,
) -> None:
    """Measure step times with and without sketches, then how sketches correlate with exact gradients."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        task = progress.add_task("sketching", total=len(CASES) * (rounds + len(PEERS) * (peer_rounds > 0) + 1))

        def tick() -> None:
            progress.advance(task)

        for case in CASES:
            rows += own_rows(case, device, rounds, tick)
            rows += peer_rows(case, device, peer_rounds, tick) if peer_rounds else []
            # Under BatchNorm the examples couple: there is no gradient of one example alone to compare with.
            rows += correlation_rows(case, device) if case.name != "resnet_batch_norm" else []
            tick()
    notes = [
        f"device {device}, {torch.get_num_threads()} thread(s); {rounds} interleaved rounds, medians of paired ratios",
        "times: CUDA events on a GPU, process CPU time on a CPU (wall time, with one thread on an idle machine)",
        "headline: step with a default GradientSketcher (d=64) and take() over plain; resnet is the worse norm",
    ]
    write_result(json, name="sketching", rows=rows, headline=headline_of(rows), notes=notes)


if __name__ == "__main__":
    typer.run(main)
