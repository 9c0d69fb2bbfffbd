"""The registry's own decisions, in this process: stand-ins for the cluster's actors start and end when told to."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import Busy, Stale, Unavailable
from sampler_service.runtime import registry as module
from sampler_service.runtime.registry import Registry
from tests.support import make_config


class Actors:
    """What is on the cluster."""

    def __init__(self) -> None:
        self.gateways: list[str] = []
        self.openings: set[str] = set()
        self.kept: dict[str, Any] = {}
        self.may_start = threading.Event()
        self.refusal: Exception | None = None
        self.away = False

    def start_run(self, _config: RunConfig, _service: ServiceConfig, opening: str) -> str:
        self.openings.add(opening)
        assert self.may_start.wait(10)
        if self.refusal:
            raise self.refusal
        return f"actor of {opening}"

    def existing(self, _namespace: str, *kinds: str) -> list[str]:
        if self.away:
            raise ConnectionError("Ray's own store is away")
        return self.gateways if kinds == ("gateway",) else []


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(module.names, "existing", actors.existing)
    monkeypatch.setattr(module, "openings", lambda _namespace: set(actors.openings))
    monkeypatch.setattr(module, "start_run", actors.start_run)
    monkeypatch.setattr(module, "end_run", lambda _namespace, opening: actors.openings.discard(opening))
    monkeypatch.setattr(module.kept, "kept", lambda _namespace: actors.kept)
    monkeypatch.setattr(module.kept, "keep", lambda _namespace, state: actors.kept.update(state))
    monkeypatch.setattr(Registry, "_check_room", lambda *_: None)
    return actors


def make_registry() -> Registry:
    registry = Registry(ServiceConfig(), None)
    registry.register_dataset("data", 100)
    return registry


def test_a_gateway_that_never_served_ends_no_run_that_it_found(actors: Actors) -> None:
    registry = make_registry()
    actors.may_start.set()
    registry.open_run(make_config(100))
    actors.gateways = ["gateway:refused"]  # all others have crashed
    assert not registry.leave("gateway:refused", ends_runs=False)
    assert registry.runs() == ["run"]
    assert registry.leave("gateway:served", ends_runs=True)
    assert not actors.openings


def test_a_gateway_that_never_served_ends_a_registry_without_runs(actors: Actors) -> None:
    actors.gateways = ["gateway:refused"]
    assert make_registry().leave("gateway:refused", ends_runs=False)


def test_a_gateway_that_is_about_to_enter_keeps_the_one_that_leaves_from_being_the_last(actors: Actors) -> None:
    registry = make_registry()
    actors.gateways = ["gateway:leaves", "gateway:comes"]
    assert not registry.leave("gateway:leaves", ends_runs=True)
    assert registry.leave("gateway:comes", ends_runs=True), "the other has left, though its actor is still there"
    with pytest.raises(Unavailable, match="is ending with its last gateway"):
        registry.enter(ServiceConfig())


def test_ranks_that_wait_for_a_run_hear_why_it_did_not_start_and_open_it_later(actors: Actors) -> None:
    registry = make_registry()
    actors.refusal = Busy("others use the GPUs")
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(registry.open_run, make_config(100)) for _ in range(3)]
        actors.may_start.set()
        for rank in ranks:
            with pytest.raises(Busy, match="others use the GPUs"):
                rank.result(10)
    assert not actors.openings
    actors.refusal = None
    assert registry.open_run(make_config(100)), "it was not closed: it never was there"
    assert registry.host("run").startswith("actor of run:")


def test_a_run_that_is_closed_while_it_starts_does_not_come_back(actors: Actors) -> None:
    registry = make_registry()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(registry.open_run, make_config(100))
        while not actors.openings:
            pass
        registry.close_run("run")
        actors.may_start.set()
        with pytest.raises(Stale, match="was closed while it was being started"):
            first.result(10)
    assert registry.open_run(make_config(100))
    (opening,) = actors.openings
    assert registry.host("run") == f"actor of {opening}", "that of the second opening"


def test_a_registry_made_anew_knows_datasets_and_which_runs_were_closed(actors: Actors) -> None:
    actors.may_start.set()
    registry = make_registry()
    registry.open_run(make_config(100))
    registry.close_run("run")
    again = Registry(ServiceConfig(), None)
    assert again.dataset_size("data") == 100
    with pytest.raises(Stale, match="run 'run' was closed"):
        again.host("run")


def test_a_registry_answers_nothing_until_it_has_looked_for_the_runs_that_there_are(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    actors.away = True
    registry = Registry(ServiceConfig(), None)
    for call in (registry.runs, lambda: registry.open_run(make_config(100)), lambda: registry.close_run("run")):
        with pytest.raises(Unavailable, match="looks for the runs that there are"):
            call()
    actors.away = False
    assert registry._looked.wait(10)
    assert registry.runs() == []


def test_a_run_that_is_closed_while_room_for_its_scorers_is_made_gets_none(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors.may_start.set()
    registry = Registry(ServiceConfig(scorers=1, scoring="some:where"), lambda *_: None)
    registry.register_dataset("data", 100)
    registry.open_run(make_config(100))
    (opening,) = actors.openings
    given_back: list[str] = []
    monkeypatch.setattr(module, "call_run", lambda *_: None)
    monkeypatch.setattr(module, "answer", lambda *_: SimpleNamespace(weights_version=0))
    monkeypatch.setattr(module, "reserve_scorers", lambda *_: registry.close_run("run"))
    monkeypatch.setattr(module, "release", lambda _namespace, opening: given_back.append(opening))
    with pytest.raises(Stale, match="was closed"):
        registry.publishing("run")
    assert given_back == [opening]


def test_a_registry_made_anew_knows_how_a_dataset_has_changed(actors: Actors) -> None:
    actors.may_start.set()
    registry = make_registry()
    registry.open_run(make_config(100))
    dataset, runs = registry.grow_dataset("data", 120)
    assert (dataset.size, runs) == (120, ["run"])
    dataset, runs = registry.delete_examples("data", np.array([3, 110]))
    assert (dataset.deleted_ids().tolist(), runs) == ([3, 110], ["run"])
    again = Registry(ServiceConfig(), None)
    again.register_dataset("data", 100)
    assert again.dataset_size("data") == 120
    assert again.delete_examples("data", np.array([3]))[0].state() == dataset.state()


def test_while_a_run_has_yet_to_be_found_again_a_dataset_does_not_change(actors: Actors) -> None:
    """It may be of this one, and would not be told."""
    registry = make_registry()
    registry._coming_back.add("other")
    with pytest.raises(Unavailable, match="run 'other' is being taken back"):
        registry.delete_examples("data", np.array([3]))
    assert actors.kept["datasets"] == {"data": [100]}
