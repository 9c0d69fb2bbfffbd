"""Factories that a service is told of in tests, as an operator names them: "tests.scoring_factories:numbers"."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from sampler_client.pytorch.two_stage.scorer import Scores
from sampler_service.scoring import Scoring

EXAMPLES = 64


def model(seed: int = 0) -> nn.Sequential:
    """A classifier of `records`; other seeds have other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def records(examples: int = EXAMPLES) -> TensorDataset:
    """Pairs that are the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(examples, 6, generator=generator), torch.arange(examples) % 3)


def numbers(dataset: str) -> Scoring | None:
    """Scores any dataset but "unscored"."""
    return None if dataset == "unscored" else Scoring(model=model(99), records=records(), batch_size=16)


def raising(dataset: str) -> Scoring:
    raise FileNotFoundError(f"no records of {dataset}")


def nonsense(dataset: str) -> str:
    return f"scores of {dataset}"


def too_few(dataset: str) -> Scoring:
    return Scoring(model=model(), records=records(10))


def _scored_by(scorer) -> Scoring:
    return Scoring(model=model(), records=records(), scorer=scorer, batch_size=16)


def _fail(item):
    raise ZeroDivisionError("in the user's code")


def failing(dataset: str) -> Scoring:
    return _scored_by(_fail)


def wrong_shape(dataset: str) -> Scoring:
    return _scored_by(lambda item: torch.ones(len(item[0]), 2))


def wrong_width(dataset: str) -> Scoring:
    return _scored_by(lambda item: Scores(norms=torch.ones(len(item[0])), sketches=torch.ones(len(item[0]), 5)))


def all_nan(dataset: str) -> Scoring:
    return _scored_by(lambda item: torch.full((len(item[0]),), torch.nan))


def _some_unusable(item):
    norms = torch.ones(len(item[0]))
    norms[0], norms[1] = torch.nan, -1
    return norms


def some_unusable(dataset: str) -> Scoring:
    """Of every 16 scores one is NaN and one negative."""
    return _scored_by(_some_unusable)


class _OneMissing(TensorDataset):
    def __getitem__(self, index):
        if index == 5:
            raise OSError("record 5 can't be read")
        return super().__getitem__(index)


def one_missing(dataset: str) -> Scoring:
    return Scoring(model=model(), records=_OneMissing(*records().tensors), batch_size=8)
