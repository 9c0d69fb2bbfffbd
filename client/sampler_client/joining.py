"""Joining a run: from what a person says to a session, as a rank among the trainers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.budget import TimeBudget, share_of
from sampler_client.client import SamplerClient, option_texts
from sampler_client.config import RunOptions, Timeouts
from sampler_client.epochs import Source
from sampler_client.errors import ConfigError
from sampler_client.phases import Phase, schedule_of
from sampler_client.session import Session

DEFAULT_POLICY = "auto"

OPTIONS = {
    "budget",
    "dataset",
    "drop_last",
    "phases",
    "queue",
    "rank",
    "timeouts",
    "world_size",
    *RunOptions.__slots__,
} - {"policy"}
"""what `attach` and `connect` take beside their own arguments"""


class Joinable(Protocol):
    """What takes the place of an address: a service in the trainer's own process."""

    def open_session(
        self, *, dataset: str, num_examples: int, options: RunOptions, timeouts: Timeouts | None, **request: Any
    ) -> Source:
        """A source in a run; `request` is what `Session` takes beside these and its client."""
        ...


def join(  # noqa: PLR0913 - keyword-only settings, each with a default
    address: str | Joinable,
    run: str,
    num_examples: int | None,
    batch_size: int,
    policy: str,
    lead: int,
    ahead: int,
    *,
    policy_options: Mapping[str, Any] | None = None,
    phases: Sequence[Phase] | None = None,
    budget: TimeBudget | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    dataset: str | None = None,
    drop_last: bool = False,
    timeouts: Timeouts | None = None,
    queue: int = 256,
    records: pb.RecordsRequest | None = None,
    worker: int = 0,
    workers: int = 1,
    token: str = "",
    **options: Any,
) -> Source:
    """Open a run, or find it, and claim a place in it.

    Args:
        address: "host:port" of the service, or what opens sessions itself.
        num_examples: of the dataset; None: as many as the service holds records of it.
        lead: batches that may be held at once, `ahead` of them beside what is prefetched.
        records: batches come with these records.
        worker, workers: of the streams that share the rank's batches by turns, this one.
        token: names the trainer, where it may join from another process.

    Raises:
        ConfigError: an option that there is not, or that does not fit the others or the run.
        NotFound: the service holds no records of the dataset.
        ServiceUnavailable: nobody answers at `address`.
    """
    unknown = options.keys() - RunOptions.__slots__
    if unknown:
        raise ConfigError(f"unknown options {sorted(unknown)}; there are {sorted(OPTIONS)}")
    if phases is not None:
        if policy not in (DEFAULT_POLICY, "phases"):
            raise ConfigError(f"phases name policies of their own; leave policy={policy!r} out")
        policy, policy_options = "phases", {**(policy_options or {}), "schedule": schedule_of(phases)}
    timed = {} if budget is None else {"progress": share_of(budget)}
    rank, world_size = place_of(rank, world_size)
    request: dict[str, Any] = {
        "run": run,
        "dataset": dataset or run,
        "num_examples": num_examples,
        "options": RunOptions(
            policy=policy, policy_options=option_texts(policy_options), by_budget=budget is not None, **options
        ),
        "rank": rank,
        "world_size": world_size,
        "batch_size": batch_size,
        "drop_last": drop_last,
        "lead": lead,
        "bunch": max(1, ahead // 2),  # what workers prefetch is in their queue: only these are slack
        "queue": queue,
        **timed,
    }
    if not isinstance(address, str):
        return address.open_session(timeouts=timeouts, **request)
    client = SamplerClient(address, timeouts=timeouts)
    if num_examples is None:
        request["num_examples"] = int(client.describe_dataset(request["dataset"]).num_examples)
    return Session(client, records=records, worker=worker, workers=workers, token=token, **request)


def place_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This trainer's rank and world: as given, else of torch.distributed, else of the environment, else alone."""
    if (rank is None) != (world_size is None):
        raise ConfigError(f"give both rank and world_size or neither, got {rank} and {world_size}")
    if rank is not None and world_size is not None:
        return rank, world_size
    torch = sys.modules.get("torch.distributed")  # who has not imported it has no process group
    if torch is not None and torch.is_available() and torch.is_initialized():
        return torch.get_rank(), torch.get_world_size()
    return environment_place()


def environment_place() -> tuple[int, int]:
    """Rank and world size of the environment; (0, 1) where it says nothing.

    Raises:
        ConfigError: it has a world size without a rank, as a process has that is to join a group later.
    """
    if "RANK" not in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but RANK is not set and torch.distributed not initialised, so "
            "this trainer's rank is not known yet: call attach later (Lightning: in train_dataloader()), or pass rank "
            "and world_size"
        )
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
