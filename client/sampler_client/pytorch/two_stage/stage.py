"""The second stage: candidates in, the batch out, with what was learnt about all of them on its way to the service.

Shapes: c candidates, b kept, d sketch length.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch
from sampler_client.config import check_whole, check_within
from sampler_client.errors import ConfigError, ScoringError
from sampler_client.pytorch.two_stage.choose import choose, similar_together
from sampler_client.pytorch.two_stage.items import take_rows, to_device
from sampler_client.pytorch.two_stage.scorer import LastLayerScorer, Scorer, Scores

Order = Literal["random", "similar"]


@dataclass(slots=True)
class StageCounts:
    """What the second stage did so far."""

    scored: int = 0
    """batches chosen out of candidates"""
    candidates: int = 0
    """examples that were scored"""
    unscored: int = 0
    """batches that came without candidates: the service does not expect scoring to pay"""
    unusable: int = 0
    """candidates whose score was NaN, infinite or negative; each got the mean of the others"""
    blind: int = 0
    """batches without any usable score, chosen by the first stage alone"""
    autocast_failed: int = 0
    """passes of a `LastLayerScorer` that failed in bfloat16; it scores in the model's own precision since"""


@dataclass(frozen=True, slots=True)
class TwoStage:
    """How a trainer chooses its batches out of candidates."""

    scorer: Scorer | torch.nn.Module
    """a model gets a `LastLayerScorer`"""
    candidates: int = 3
    """Most candidates for each example of a batch; the service proposes fewer, or none, where that pays better.
    1: no second stage."""
    mix: float = 0.3
    """Share of the chances that does not follow the scores, in (0, 1]: no weight grows beyond 1/mix times."""
    order: Order = "random"
    """"similar" rarely keeps two candidates of like gradients (strata); for scorers that make sketches."""

    def __post_init__(self) -> None:
        check_whole("candidates", self.candidates, 1)
        check_within("mix", self.mix, "(0, 1]")
        if self.order not in ("random", "similar"):
            raise ConfigError(f"order must be 'random' or 'similar', got {self.order!r}")


class SecondStage:
    """Keeps the best b of c b candidates, without bias."""

    def __init__(self, settings: TwoStage) -> None:
        scorer = settings.scorer
        self.scorer: Scorer = LastLayerScorer(scorer) if isinstance(scorer, torch.nn.Module) else scorer
        self.counts = StageCounts()
        self._settings = settings
        self._device: torch.device | None = getattr(self.scorer, "device", None)
        self._left_at: float | None = None
        self._sketches = bool(getattr(self.scorer, "sketch_dim", 0))  # of others the first scores say it

    def select(self, item: Any, batch: Batch, waited_s: float) -> tuple[Any, Batch]:
        """The examples of `item` that were kept, on the scorer's device, and their handle.

        Args:
            item: what the DataLoader yielded for the candidates.
            batch: their handle.
            waited_s: seconds that the loop waited for `item`.

        Raises:
            ScoringError: the scorer failed, or returned something else than one score for each candidate.
        """
        if batch.keep == len(batch):
            item = to_device(item, self._device)
            self.counts.unscored += 1
            self._left_at = time.perf_counter()
            batch.norms_from_scorer, batch.sketches_from_scorer = True, self._sketches
            return item, batch
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what is left of the step before is no cost of scoring
        began = time.perf_counter()
        trained_s = 0.0 if self._left_at is None else began - waited_s - self._left_at
        item = to_device(item, self._device)
        scores = self._scored(item, batch)
        norm_c = _array(scores.norms)
        sketch_cd = None if scores.sketches is None else _array(scores.sketches)
        self._sketches = batch.sketches_from_scorer = sketch_cd is not None
        choice = choose(
            self._usable(norm_c),
            batch.weights,
            batch.keep,
            mix=self._settings.mix,
            rng=np.random.default_rng(batch.choice_seed),
            order_c=self._order_of(sketch_cd, batch),
        )
        item = take_rows(item, torch.from_numpy(choice.index), len(batch))
        self.counts.autocast_failed = getattr(self.scorer, "autocast_failed", 0)
        self.counts.scored += 1
        self.counts.candidates += len(batch)
        self._left_at = time.perf_counter()
        stage = pb.Stage(
            scoring=self._left_at - began,
            training=max(trained_s, 0.0),
            waiting=waited_s,
            uniform=choice.moments.uniform,
            proposed=choice.moments.proposed,
            chosen=choice.moments.chosen,
        )
        batch.report_scores(norms=norm_c, sketches=sketch_cd, stage=stage)
        return item, batch.kept(choice.index, choice.weights, stage)

    def _scored(self, item: Any, batch: Batch) -> Scores:
        what = f"scoring the {len(batch)} candidates of batch {batch.batch_id}"
        try:
            scores = self.scorer(item)
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            raise ScoringError(f"{what}: {type(error).__name__}: {error}") from error
        if not isinstance(scores, Scores):
            scores = Scores(norms=scores)
        shape, c = tuple(getattr(scores.norms, "shape", ())), len(batch)
        if shape != (c,):
            raise ScoringError(f"{what}: the scorer returned norms of shape {shape}, expected ({c},)")
        if scores.sketches is not None:
            shape = tuple(getattr(scores.sketches, "shape", ()))
            if len(shape) != 2 or shape[0] != c:
                raise ScoringError(f"{what}: the scorer returned sketches of shape {shape}, expected ({c}, sketch_dim)")
        return scores

    def _usable(self, norm_c: NDArray[np.float32]) -> NDArray[np.float32]:
        """(c,) scores to choose by: any would be unbiased, so one that can't be used becomes the mean of the others."""
        usable_c = np.isfinite(norm_c) & (norm_c >= 0)
        if usable_c.all():
            return norm_c
        self.counts.unusable += int(np.count_nonzero(~usable_c))
        if not usable_c.any():
            self.counts.blind += 1
            return np.ones_like(norm_c)
        return np.where(usable_c, norm_c, norm_c[usable_c].mean())

    def _order_of(self, sketch_cd: NDArray[np.float32] | None, batch: Batch) -> NDArray[np.intp] | None:
        if self._settings.order == "random":
            return None
        if sketch_cd is None:
            raise ConfigError('order="similar" needs sketches; give LastLayerScorer a sketch_dim, such as 64')
        return similar_together(batch.weights[:, None] * np.nan_to_num(sketch_cd), leaf=len(batch) // batch.keep)


def _array(values: Any) -> NDArray[np.float32]:
    """float32 on the CPU; waits for the device."""
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values, np.float32)
