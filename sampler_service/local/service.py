"""The service in the trainer's own process, for notebooks and tests."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from sampler_client.config import RunOptions, Timeouts
from sampler_client.errors import ConfigError, SamplerError
from sampler_service.config import ServiceConfig
from sampler_service.factories import find_factory
from sampler_service.local.session import LocalSession
from sampler_service.rpc.inprocess import InProcessClient, as_client_errors
from sampler_service.scoring.worker import make_scorer
from sampler_service.service import InProcessService

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from sampler_client.pytorch.loader import SampledLoader


class LocalService(InProcessClient):
    """The service in this process: no Ray, no server, no address, and nothing to start or stop.

    It is a `SamplerClient` of itself, so `statistics`, `explain`, `examples`, `set_groups`, `set_reference`,
    `close_run` and the others are here, and raise the same errors. In the place of an address it fits
    `sampler_client.attach` and `RemoteBatchSampler.connect`, of which policies, phases, budgets, second stages, targets
    and saved positions work as ever. With the same seed and reports the batches are those of a service elsewhere.

    What differs: reports are taken in while `batch.report` runs, clusters are made anew inside the report that makes
    them due, and errors are raised there and then. Everything goes with the process. Ranks may share a service from
    threads of one process.

    Args:
        shards: of sketches, per run.
        scoring: "package.module:factory" of what scores examples by published weights; see `sampler_service.scoring`.
            Without it `publish` is refused.
        timeouts: of `attach` where it is given none; `batch_s` bounds the waiting for other ranks.

    Raises:
        ConfigError: `shards` is below 1, or `scoring` names no factory.

    Example:
        with LocalService() as service:
            loader = service.attach(loader, run="try", policy="gradient_clustering")
            for (images, labels), batch in loader:
                ...
                batch.report(losses, sketcher)
            print(service.statistics("try").variance_ratio)
    """

    def __init__(self, *, shards: int = 1, scoring: str = "", timeouts: Timeouts | None = None) -> None:
        with as_client_errors("a service in this process"):
            config = ServiceConfig(shards=shards, scorers=bool(scoring), scoring=scoring)
            if scoring:
                find_factory("scoring", scoring)
        scorer = partial(make_scorer, scoring) if scoring else None
        self._service = InProcessService(shards=shards, make_scorer=scorer)
        self._sessions: dict[tuple[str, int], LocalSession] = {}
        super().__init__(self._service, config, timeouts=timeouts)

    def attach(self, loader: DataLoader[Any], *, run: str, **options: Any) -> SampledLoader:
        """Let this service decide what an existing DataLoader yields: `sampler_client.attach` without an address.

        A rank that is attached again is taken over, so that a cell of a notebook can be run again: the loader before
        raises Stale from then on. Another policy or seed needs another run, or `close_run` first.

        Args:
            loader: over a map-style dataset.
            run: name of the training job.
            options: those of `sampler_client.attach`.

        Raises:
            ConfigError: as `sampler_client.attach`.
            Conflict: the run is open with another configuration, or other ranks train with another batch size.
        """
        # By name: a service that answers calls needs no torch.
        return import_module("sampler_client.pytorch.loader").attach(loader, self, run=run, **options)

    def batches(self, **_: Any) -> NoReturn:
        """There are none with records.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a service in this process holds no records: attach a DataLoader over your own data set, or stream from "
            "`sampler-service up`"
        )

    def open_session(
        self, *, dataset: str, num_examples: int, options: RunOptions, timeouts: Timeouts | None = None, **request: Any
    ) -> LocalSession:
        """See `sampler_client.joining.Joinable`."""
        place = request["run"], request["rank"]
        self.register_dataset(dataset, num_examples)
        self.open_run(request["run"], dataset, options, num_examples)
        self._present()
        if place in self._sessions:
            self._sessions.pop(place).close()
        request |= {"timeouts": timeouts or self.timeouts, "dataset": dataset, "num_examples": num_examples}
        session = LocalSession(self, self._service, self._present, **request)
        self._sessions[place] = session
        return session

    def _present(self) -> None:
        """Give a sign of life of every trainer: over no connection they can't be lost, however long they say nothing,
        as between two cells of a notebook."""
        for place, session in list(self._sessions.items()):
            try:
                with as_client_errors("renew"):
                    self._service.renew(session.session)
            except SamplerError:  # it left, or its run was closed
                self._sessions.pop(place, None)

    def close(self) -> None:
        """Close every loader and run; what the service knew is gone."""
        for session in list(self._sessions.values()):
            session.close()
        self._sessions.clear()
        for run in self.runs():
            self.close_run(run)
