"""Ray Train's workers share every batch, and are told what to write where they would not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import ServedService
from trainer_examples.data import load

EXAMPLES = len(load().train)
SIZE = 64  # of a global batch
STEPS = -(-EXAMPLES // SIZE)
FAILS_AFTER = 3

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of much that is its own


def wrong_lines(config: dict[str, Any]) -> None:
    """What each worker is told, and then the example as it is."""
    import ray.train
    from ray.train.torch import prepare_data_loader
    from torch.utils.data import DataLoader

    import sampler_client as sampler
    from tests.frameworks.conftest import BATCH, N, numbers
    from trainer_examples import train_ray

    def batches(run: str, **options: Any) -> sampler.RemoteBatchSampler:
        return sampler.RemoteBatchSampler.connect(
            config["address"], run=run, num_examples=N, batch_size=BATCH, **options
        )

    def attached(run: str) -> sampler.SampledLoader:
        return sampler.attach(DataLoader(numbers(), batch_size=BATCH), config["address"], run=run)

    def replaced() -> None:
        ours = batches("replaced")
        for _ in prepare_data_loader(DataLoader(numbers(), batch_sampler=ours)):
            ours.received()

    def moved() -> None:
        ours = batches("moved", ahead=4)
        list(prepare_data_loader(DataLoader(numbers(), batch_sampler=ours), add_dist_sampler=False))

    cases = {
        "replaced": replaced,
        "moved": moved,
        "prepared": lambda: prepare_data_loader(attached("prepared")),
        "prefetched": lambda: list(prepare_data_loader(attached("prefetched"), add_dist_sampler=False)),
        "attached after": lambda: sampler.attach(
            prepare_data_loader(DataLoader(numbers(), batch_size=BATCH)), config["address"], run="after"
        ),
    }
    said: dict[str, str] = {}
    for case, act in cases.items():
        try:
            act()
            said[case] = "nothing"
        except Exception as error:
            said[case] = f"{type(error).__name__}: {error}"
    rank = ray.train.get_context().get_world_rank()
    Path(config["folder"], f"rank{rank}.json").write_text(json.dumps(said))
    train_ray.train(config)


SAYS = {
    "replaced": "ConfigError: received.* was built without this sampler.*prepare_data_loader",
    "moved": r"ConfigError: ray\.train\..*prepare_data_loader",
    "prepared": "AttributeError: .* no prepare_data_loader",
    "prefetched": r"ConfigError: ray\.train\..*prepare_data_loader",
    "attached after": "ConfigError: attach needs a plain DataLoader, got a ray.*Leave it out",
}


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of its own, whose workers can import the tests."""
    import ray

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    ray.init("local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_cpus")
def test_two_workers_share_every_batch_and_are_told_what_to_write_where_they_would_not(
    served: ServedService, tmp_path: Path
) -> None:
    result = fit(wrong_lines, served, tmp_path)
    assert result.error is None
    for rank in range(2):
        told = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for case, says in SAYS.items():
            assert re.search(says, told[case], re.DOTALL), f"{case}: {told[case]}"
    statistics = served.service.statistics("ray")
    assert statistics.rejected_rows == {}
    assert (statistics.examples, statistics.reported_rows) == (2 * EXAMPLES,) * 2
    assert result.metrics["accuracy"] > 0.7


def fails_once(config: dict[str, Any]) -> None:
    """The example, whose rank 0 fails in the second epoch when it has reported of FAILS_AFTER steps of it."""
    import ray.train

    from sampler_client.batch import Batch
    from trainer_examples import train_ray

    failed, report, reports = Path(config["folder"], "failed"), Batch.report, 0

    def counted(batch: Batch, *arguments: Any) -> None:
        nonlocal reports
        first = ray.train.get_context().get_world_rank() == 0
        if first and reports == STEPS + FAILS_AFTER and not failed.exists():
            failed.touch()
            raise KeyError("a failure")
        reports += 1
        report(batch, *arguments)

    Batch.report = counted
    try:
        train_ray.train(config)
    finally:
        Batch.report = report


@pytest.mark.usefixtures("two_cpus")
def test_workers_that_were_started_again_go_on_from_the_checkpoint(served: ServedService, tmp_path: Path) -> None:
    result = fit(fails_once, served, tmp_path, max_failures=1)
    assert result.error is None and (tmp_path / "failed").exists()
    assert result.metrics["accuracy"] > 0.7 and result.metrics["epoch"] == 1
    statistics = served.service.statistics("ray")
    assert statistics.rejected_rows == {} and statistics.epoch == 1
    # What was trained on since the checkpoint, the end of the first epoch, comes again, as far as it was reported.
    again = statistics.reported_rows - 2 * EXAMPLES
    assert FAILS_AFTER * SIZE // 2 <= again <= (FAILS_AFTER + 1) * SIZE


def fit(loop: Callable[[dict[str, Any]], None], served: ServedService, folder: Path, *, max_failures: int = 0) -> Any:
    """Two epochs of the example on two workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = {"data": None, "address": served.address, "run": "ray", "policy": "shuffle", "epochs": 2}
    return TorchTrainer(
        loop,
        train_loop_config=config | {"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="recipe", storage_path=str(folder), failure_config=FailureConfig(max_failures=max_failures)
        ),
    ).fit()
