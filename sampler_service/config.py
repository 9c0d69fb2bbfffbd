"""How a run and the service are set up; every check of an argument is here.

A run is named once and for all by its RunConfig: opening it again with another one is a Conflict.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sampler_service.errors import ConfigError, Conflict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

SERVICE_NAME = "sampler-service"
"""unless it is given another; also the Ray namespace of its actors"""

Lost = Literal["redeliver", "drop"]

MOST_EXAMPLES = 2**31 - 1
"""of a dataset: orders and draws are kept as int32"""

MOST_MESSAGE_BYTES = 32 * 1024**2
"""to which batches are gathered: of a message's 64 MiB so much is left for the batch that fills it"""

MOST_CLUSTERS = 16384
"""each batch draws from all of them, and a centre is d numbers in every shard"""


def check_name(kind: str, name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: when it is no name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{kind} name {name!r} must be 1 to 200 characters of A-Z a-z 0-9 . _ / - and start with a letter or digit"
        )
    return name


def check_whole(name: str, value: Any, least: float = -math.inf) -> int:
    """The value as a number; a ConfigError unless it is a whole one, at least so large."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ConfigError(f"{name} must be at least {least}, got {value!r}")
    return number


def _check_numbers(settings: object, whole: Iterable[str], least: Mapping[str, float]) -> None:
    """Raise ConfigError unless these settings are whole numbers, and those at least so large, which NaN is not."""
    for name in whole:
        check_whole(name, getattr(settings, name))
    for name, low in least.items():
        if not getattr(settings, name) >= low:
            raise ConfigError(f"{name} must be at least {low}, got {getattr(settings, name)}")


def default_data_dir() -> str:
    """Where data sets are kept unless another folder is given: in the user's cache."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gradient-sampler", "datasets"))


def check_size(dataset: str, num_examples: int) -> None:
    """Raise ConfigError unless a dataset can have so many examples."""
    if not 1 <= num_examples <= MOST_EXAMPLES:
        raise ConfigError(f"dataset {dataset!r} has {num_examples} examples; it must have 1 to {MOST_EXAMPLES}")


_WHOLE_OF_RUNS = ("num_examples", "seed", "sketch_dim", "num_clusters", "max_lead", "candidates", "epochs")

_LEAST_OF_RUNS = {"epochs": 0, "fresh_epochs": 0, "refresh_coverage": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What a run is."""

    run: str
    dataset: str
    num_examples: int
    """that it has when it is opened; it may grow with its data set"""
    policy: str
    policy_options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    sketch_dim: int = 64
    """d, numbers in one sketch"""
    sketch_dtype: str = "float16"
    """what rows are kept as; float32 doubles the memory"""
    num_clusters: int = 0
    """0: as many as examples in the first global batch (K = B, gradient clustering's choice)"""
    max_lead: int = 64
    """batches that a trainer may hold unreported: the bound on staleness"""
    lease_s: float = 60.0
    """seconds for which a lost trainer's batches wait for its return"""
    on_lost: Lost = "redeliver"
    candidates: int = 1
    """most examples proposed for each one of a batch, of which trainers keep the best; 1: no second stage"""
    epochs: int = 0
    """planned length; 0: unknown"""
    by_budget: bool = False
    """how far the run is goes by what trainers tell of a time budget, instead of by `epochs`"""
    fresh_epochs: float = 3.0
    """a report older than this many epochs does not count as fresh"""
    refresh_coverage: float = 1.0
    """clusters are made anew once this share of the examples has been reported since the last time"""

    def __post_init__(self) -> None:
        check_name("run", self.run)
        check_name("dataset", self.dataset)
        _check_numbers(self, _WHOLE_OF_RUNS, _LEAST_OF_RUNS)
        check_size(self.dataset, self.num_examples)
        if not 1 <= self.sketch_dim <= 4096:
            raise ConfigError(f"sketch_dim must be 1 to 4096, got {self.sketch_dim}; 64 suits clustering")
        if self.sketch_dtype not in ("float16", "float32"):
            raise ConfigError(f"sketch_dtype must be 'float16' or 'float32', got {self.sketch_dtype!r}")
        if not 0 <= self.num_clusters <= MOST_CLUSTERS:
            raise ConfigError(
                f"num_clusters must be 0 to {MOST_CLUSTERS}, got {self.num_clusters}; as many as examples in a global "
                "batch suit gradient clustering, which is what 0 takes"
            )
        if not 1 <= self.max_lead <= 65536:
            raise ConfigError(f"max_lead must be 1 to 65536 batches, got {self.max_lead}")
        if not 0 < self.lease_s < float("inf"):
            raise ConfigError(f"lease_s must be positive seconds, got {self.lease_s}")
        if self.on_lost not in ("redeliver", "drop"):
            raise ConfigError(f"on_lost must be 'redeliver' or 'drop', got {self.on_lost!r}")
        if not 1 <= self.candidates <= 64:
            raise ConfigError(
                f"candidates must be 1 to 64 for each example of a batch, got {self.candidates}; 3 is usual"
            )
        if self.num_clusters > self.num_examples:
            raise ConfigError(
                f"num_clusters {self.num_clusters} is more than the {self.num_examples} examples of {self.dataset!r}"
            )

    def check_same(self, other: RunConfig) -> None:
        """Raise Conflict, naming the fields, unless `other` says the same."""
        differ = [
            f"{f.name} is {getattr(self, f.name)!r}, asked for {getattr(other, f.name)!r}"
            for f in fields(self)
            # A data set grows; whether a trainer can load what its run has by now, it says when it joins.
            if f.name != "num_examples" and getattr(self, f.name) != getattr(other, f.name)
        ]
        if differ:
            raise Conflict(
                f"run {self.run!r} is open with another configuration: {'; '.join(differ)}; "
                "use another run name, or close the run first"
            )


_ALIKE = (
    *("shards", "gpus_per_shard", "threads_per_shard"),
    *("scorers", "scoring", "scorer_gpus", "threads_per_scorer"),
)
"""what all gateways of a service must ask for alike: its registry starts it for all of them"""


_LEAST = {
    **dict.fromkeys(("shards", "threads_per_shard", "max_trainers", "threads_per_scorer", "max_weights_bytes"), 1),
    **dict.fromkeys(("gpus_per_shard", "scorers", "scorer_gpus"), 0),
}
"""the smallest value of each of these settings"""

_WHOLE = (
    *("port", "shards", "threads_per_shard", "max_trainers", "message_bytes"),
    *("scorers", "threads_per_scorer", "max_weights_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """How the service runs on its cluster."""

    name: str = SERVICE_NAME
    """of the service: those on one Ray cluster with different names know nothing of each other"""
    host: str = "127.0.0.1"
    """interface to listen on; 0.0.0.0 for trainers on other machines"""
    port: int = 50051
    """0 takes a free one"""
    shards: int = 1
    """sketch shards per run; one holds about ten million examples of 64 float16 in 2 GB"""
    gpus_per_shard: float = 0.0
    """GPUs that each shard actor asks Ray for; FAISS uses one when it is there"""
    threads_per_shard: int = 1
    """OpenMP threads of FAISS in a shard"""
    max_trainers: int = 256
    """that the gateway serves at once; each takes a thread"""
    reflection: bool = False
    """gRPC server reflection, for grpcurl"""
    message_bytes: int = 128 * 1024
    """batches that are ready together are sent in one message, up to about this size; 1 sends each by itself"""
    call_s: float = 20.0
    """deadline of one call between actors"""
    scorers: int = 0
    """scorer actors per run; they start when its trainer publishes weights"""
    scoring: str = ""
    """the operator's "package.module:factory" of what they run; see `sampler_service.scoring`"""
    scorer_gpus: float = 0.0
    """GPUs that each scorer actor asks Ray for; without one it runs at low priority"""
    threads_per_scorer: int = 1
    """threads of a scorer's matrix products on the CPU"""
    max_weights_bytes: int = 4 * 1024**3
    """published weights may have"""
    page_port: int | None = None
    """of the web page and of /metrics, on the same interface; 0 takes a free one, None leaves them out"""
    previews: str = ""
    """the operator's "package.module:factory" of what examples look like; see `sampler_service.web.previews`"""

    data_dir: str = field(default_factory=default_data_dir)
    """folder of the registered data sets, on each node that serves them"""
    follow_s: float = 5.0
    """seconds between two looks at what was appended to records and deleted from them, here and on other nodes"""

    def __post_init__(self) -> None:
        check_name("service", self.name)
        _check_numbers(self, _WHOLE, _LEAST)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be 0 to 65535, got {self.port}")
        if self.page_port is not None and not 0 <= check_whole("page_port", self.page_port) <= 65535:
            raise ConfigError(f"page_port must be 0 to 65535, got {self.page_port}")
        if self.page_port and self.page_port == self.port:
            raise ConfigError(f"port and page_port are both {self.port}; give the page another with --page-port")
        if not 1 <= self.message_bytes <= MOST_MESSAGE_BYTES:
            raise ConfigError(f"message_bytes must be 1 to {MOST_MESSAGE_BYTES}, got {self.message_bytes}")
        for name in ("call_s", "follow_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive seconds, got {getattr(self, name)}")
        if bool(self.scorers) != bool(self.scoring):
            raise ConfigError(
                f"scorers is {self.scorers} and scoring {self.scoring!r}: give both, --scorers 1 --scoring "
                "package.module:factory, or neither"
            )

    def check_same(self, other: ServiceConfig) -> None:
        """Raise Conflict unless a gateway with `other` may serve beside those of this service."""
        for name in _ALIKE:
            here, asked = getattr(self, name), getattr(other, name)
            if here != asked:
                raise Conflict(
                    f"service {self.name!r} on this cluster runs with {name}={here}, asked for {asked}; use the same, "
                    "or give this one another --name, or end the other first: sampler-service down"
                )
