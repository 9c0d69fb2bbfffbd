"""One recipe in a process of its own: the example as it stands, on the service or on the DataLoader that it was given.

    python -m benchmarks.recipes.one RECIPE VARIANT ADDRESS DATA EPOCHS OUT

Variants: "loader" is the plain DataLoader, shuffled, or with a DistributedSampler; "losses" attaches it and reports
losses; "sketches" is the whole recipe. OUT gets the seconds and steps of each epoch but the first and last, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

import sampler_client
from sampler_client.batch import Batch
from sampler_client.pytorch.loader import SampledLoader

WORKERS = {"ddp": 2, "ray": 2}
"""processes that train, where there are several"""

_POLICY = {"loader": "shuffle", "losses": "shuffle", "sketches": "gradient_clustering"}

_starts: list[float] = []
_steps: list[int] = []


class Unweighted:
    """The handle of a batch that nobody planned."""

    run_step = 1

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def weighted_mean(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def report(self, *_: Any) -> None: ...


class OwnLoader(SampledLoader):
    """A DataLoader in the place of an attached one: as it is, but for the shuffling."""

    def __init__(self, plain: DataLoader[Any]) -> None:
        together = torch.distributed.is_initialized()
        sampler = DistributedSampler(cast(Any, plain.dataset)) if together else None
        self.loader = DataLoader(
            plain.dataset,
            batch_size=plain.batch_size,
            num_workers=plain.num_workers,
            collate_fn=plain.collate_fn,
            drop_last=plain.drop_last,
            sampler=sampler,
            shuffle=sampler is None,
        )

    def __iter__(self) -> Iterator[tuple[Any, Batch]]:
        return self._batches()

    def _batches(self) -> Iterator[tuple[Any, Batch]]:
        for item in _counted(self.loader):
            first = next(iter(item.values() if isinstance(item, dict) else item))
            yield item, cast(Batch, Unweighted(len(first)))

    def __len__(self) -> int:
        return len(self.loader)

    reason = ""  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 0}

    def end_epoch(self) -> None: ...

    def flush(self, timeout_s: float | None = None) -> None: ...

    def close(self) -> None: ...


class NoSketcher:
    """Takes the place of a GradientSketcher, and hooks nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> NoSketcher:
        return self

    def __exit__(self, *_: object) -> None: ...


def install(variant: str) -> None:
    """Make the examples of this process train as the variant says, and note when epochs begin."""
    torch.set_num_threads(1)
    if variant == "loader":
        sampler_client.attach = lambda loader, *_, **__: OwnLoader(loader)  # pyright: ignore[reportPrivateImportUsage]
    else:
        batches = SampledLoader._batches

        def timed(loader: SampledLoader) -> Iterator[tuple[Any, Batch]]:
            yield from _counted(batches(loader))

        cast(Any, SampledLoader)._batches = timed
    if variant != "sketches":
        sampler_client.GradientSketcher = cast(Any, NoSketcher)  # pyright: ignore[reportPrivateImportUsage]
        report = Batch.report
        cast(Any, Batch).report = lambda batch, losses, _=None: report(batch, losses)


def _counted(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of an epoch, whose beginning and number are noted."""
    _starts.append(time.perf_counter())
    _steps.append(0)
    for batch in batches:
        _steps[-1] += 1
        yield batch


def noted() -> dict[str, list[float]]:
    """Of each epoch but the first, in which things are made, and the last, whose end is not seen."""
    return {
        "seconds": [later - earlier for earlier, later in pairwise(_starts[1:])],
        "steps": [float(steps) for steps in _steps[1:-1]],
    }


def pytorch(data: Path, **given: Any) -> None:
    from trainer_examples import train

    train.main(data=str(data / "images.parquet"), **given)


def ddp(data: Path, **given: Any) -> None:
    from trainer_examples import train_ddp

    train_ddp.main(data=str(data / "images.parquet"), two_stage=False, **given)


def lightning(data: Path, **given: Any) -> None:
    from trainer_examples import train_lightning

    train_lightning.main(data=str(data / "images.parquet"), **given)


def accelerate(data: Path, **given: Any) -> None:
    from trainer_examples import train_accelerate

    train_accelerate.main(data=str(data / "images.parquet"), **given)


def huggingface(data: Path, **given: Any) -> None:
    from trainer_examples import train_huggingface

    train_huggingface.main(data=str(data / "texts.txt"), **given)


def stateful(data: Path, **given: Any) -> None:
    from trainer_examples import train_stateful

    train_stateful.main(data=str(data / "images.parquet"), workers=1, **given)


def language_model(data: Path, epochs: int, policy: str, **given: Any) -> None:
    from trainer_examples import train_language_model
    from trainer_examples.texts import load_texts

    texts = load_texts(data / "texts.txt")
    steps = epochs * -(-len(texts.train) // train_language_model.BATCH_SIZE)
    train_language_model.train(texts, steps=steps, seed=0, policy=policy, **given)


RECIPES: dict[str, Callable[..., None]] = {
    recipe.__name__: recipe for recipe in (pytorch, ddp, lightning, accelerate, huggingface, stateful, language_model)
}


def on_ray(variant: str, data: Path, out: Path, **given: Any) -> None:
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    def loop(config: dict[str, Any]) -> None:
        from trainer_examples import train_ray

        with measured(variant, out, first=ray.train.get_context().get_world_rank() == 0):
            train_ray.train(config)

    ray.init(num_cpus=WORKERS["ray"], include_dashboard=False)
    try:
        TorchTrainer(
            loop,
            train_loop_config={"data": str(data / "images.parquet"), **given},
            scaling_config=ray.train.ScalingConfig(num_workers=WORKERS["ray"]),
            run_config=ray.train.RunConfig(name=given["run"], storage_path=str(out.parent / "ray")),
        ).fit()
    finally:
        ray.shutdown()


@contextmanager
def measured(variant: str, out: Path, *, first: bool) -> Iterator[None]:
    """Run the block as the variant says, and write the seconds where this is the first rank."""
    install(variant)
    yield
    if first:
        out.write_text(json.dumps(noted()))


def main(recipe: str, variant: str, address: str, data: str, epochs: str, out: str) -> None:
    given: dict[str, Any] = {
        "address": address,
        "run": f"{recipe}-{variant}-{time.time_ns()}",
        "policy": _POLICY[variant],
    }
    if recipe == "ddp":
        given["run"] = None  # rank 0 names it
    if recipe == "ray":
        on_ray(variant, Path(data), Path(out), epochs=int(epochs), **given)
        return
    with measured(variant, Path(out), first=os.environ.get("RANK", "0") == "0"):
        RECIPES[recipe](Path(data), epochs=int(epochs), **given)


if __name__ == "__main__":
    main(*sys.argv[1:])
