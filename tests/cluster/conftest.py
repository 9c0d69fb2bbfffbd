"""One service on Ray for all tests of this folder, as a person starts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sampler_client as sampler
from sampler_service.embedded import RunningService, running_service
from tests.cluster.support import PATIENT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker("ray")


NOT_RUN = "the test across hosts was NOT run"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip is a letter among hundreds; this one is said."""
    reasons = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if NOT_RUN in reason):
        terminalreporter.write_sep("!", reason.removeprefix("Skipped: "), red=True, bold=True)


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with running_service(shards=2) as service:
        yield service


@pytest.fixture
def attach(service: RunningService) -> Iterator[Callable[..., sampler.SampledLoader]]:
    """Attach a loader over `examples` numbers, or another data set; its run is closed in the end."""
    opened: list[tuple[str, sampler.SampledLoader]] = []

    def make(
        run: str,
        *,
        examples: int = 64,
        over: Dataset | None = None,
        batch_size: int = 16,
        address: str = service,
        **options,
    ):
        plain = DataLoader(over or TensorDataset(torch.arange(examples)), batch_size=batch_size)
        options = {"timeouts": PATIENT, **options}
        opened.append((run, sampler.attach(plain, str(address), run=run, **options)))
        return opened[-1][1]

    yield make
    for run, loader in opened:
        loader.close()
        with sampler.SamplerClient(service) as client:
            client.close_run(run)
