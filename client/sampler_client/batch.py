"""The handle that comes with every batch: what was drawn, with which weight, and how to report back.

Shapes: b examples of this trainer's part, d sketch length.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

    from sampler_client.reporter import PendingReport, ReportRows


class Taken(Protocol):
    """What a sketcher hands over for one backward pass."""

    @property
    def sketches(self) -> NDArray[Any]:
        """(b, d) float16 or float32"""
        ...

    @property
    def norms(self) -> NDArray[np.float32] | None:
        """(b,) gradient norms; None: of something else than gradients"""
        ...

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(b,) rows whose gradient could be told"""
        ...


class _Snapshot(NamedTuple):
    """`Taken`, as it was at one moment."""

    sketches: NDArray[Any]
    norms: NDArray[np.float32] | None
    usable: NDArray[np.bool_]


class Sketcher(Protocol):
    """Anything that yields the sketches of the last backward pass, such as GradientSketcher."""

    def take(self, coefficients: Any = None, /) -> Taken:
        """Sketches, given dL/dloss_i of each example, or None when the caller reduced the losses alone."""
        ...

    # A sketcher may also have `capture`, with the same arguments, which waits for no device: it returns an object
    # whose `resolve()` gives what `take` would. `Batch.report` then uses it instead.


class Batch:
    """One trainer's part of a global batch. Arrays are read-only and in the order of the data.

    Before the second stage of a two-stage run its examples are candidates, of which `keep` are to be kept.

    Attributes:
        batch_id: rises within the run; 0 is no batch.
        epoch, step: position of the global batch; step counts from 0 in each epoch.
        table_version: the table that it was planned from.
        policy: what planned it.
        lead: batches in this trainer's hands, not finished, when this one was handed out.
        example_ids: (b,) int64.
        weights: (b,) float32, factor on each example's loss.
        probabilities: (b,) float32, chance of each example in one draw.
        cluster_ids: (b,) int32, -1 for examples without a sketch.
        lease_deadline: Unix seconds.
        global_batch_size, world_size: examples and trainers of this step, for the scale of the loss.
        position: where training goes on behind this batch, for `RemoteBatches.load_state_dict`; None where the loader
            keeps it.
    """

    __slots__ = (
        "_coefficients",
        "_epoch_steps",
        "_first_step",
        "_message",
        "_record_schema",
        "_report",
        "_stage",
        "_steps_per_epoch",
        "cluster_ids",
        "example_ids",
        "norms_from_scorer",
        "position",
        "probabilities",
        "sketches_from_scorer",
        "weights",
    )

    def __init__(
        self,
        message: pb.Batch,
        report: Callable[[ReportRows | PendingReport], None] | None = None,
        steps_per_epoch: int = 0,
        first_step: int = 0,
        epoch_steps: int = 0,
        *,
        record_schema: bytes = b"",
    ) -> None:
        self._message = message
        self._record_schema = record_schema
        self._report = report
        self._steps_per_epoch = steps_per_epoch
        self._first_step = first_step  # of the epoch that was resumed inside: `step` counts from there
        self.position: dict[str, Any] | None = None
        self._epoch_steps = epoch_steps  # of the whole epoch; 0: as many as the clock counts for it
        self._coefficients: Any = None
        self._stage: pb.Stage | None = None  # what the second stage measured when it chose these
        self.norms_from_scorer = False  # of a two-stage run: a sketcher's are of other layers, in another unit
        self.sketches_from_scorer = False  # likewise: the products of one's with the other's mean nothing
        self.example_ids = wire.to_array(message.example_ids, np.int64, "example_ids")
        self.weights = wire.to_array(message.weights, np.float32, "weights")
        self.probabilities = wire.to_array(message.probabilities, np.float32, "probabilities")
        self.cluster_ids = wire.to_array(message.cluster_ids, np.int32, "cluster_ids")

    @property
    def batch_id(self) -> int:
        return self._message.batch_id

    @property
    def epoch(self) -> int:
        return self._message.epoch

    @property
    def step(self) -> int:
        return self._message.step

    @property
    def run_step(self) -> int:
        """Steps since the start of the run, the clock by which reports age.

        An epoch has as many as it had when the run was opened: where the data set has grown since, some steps are one.
        """
        step = self._first_step + self.step
        if self._epoch_steps > self._steps_per_epoch:
            step = step * self._steps_per_epoch // self._epoch_steps
        return self.epoch * self._steps_per_epoch + step

    @property
    def table_version(self) -> int:
        return self._message.table_version

    @property
    def policy(self) -> str:
        return self._message.policy

    @property
    def lead(self) -> int:
        return self._message.lead

    @property
    def lease_deadline(self) -> float:
        return self._message.lease_deadline

    @property
    def global_batch_size(self) -> int:
        return self._message.global_batch_size

    @property
    def world_size(self) -> int:
        return self._message.world_size

    @property
    def keep(self) -> int:
        """Examples to train on; fewer than there are where these are candidates."""
        return min(self._message.keep or len(self), len(self))

    @property
    def choice_seed(self) -> int:
        """Of the choice among candidates; a function of the run's seed, the epoch, the step and the rank."""
        return self._message.choice_seed

    @property
    def records(self) -> RecordBatch:
        """The examples' records, (b,) rows in the order of `example_ids`; their memory is this batch's alone.

        Raises:
            ConfigError: batches of this stream come without.
        """
        from sampler_client.records import decode

        return decode(self._message.records, self._record_schema)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __repr__(self) -> str:
        return (
            f"Batch(batch_id={self.batch_id}, epoch={self.epoch}, step={self.step}, examples={len(self)}, "
            f"policy={self.policy!r}, table_version={self.table_version}, lead={self.lead})"
        )

    def weighted_mean(self, losses: Any) -> Any:
        """The scalar to back-propagate: world/B sum_i w_i l_i over this trainer's part of a global batch of B.

        With DistributedDataParallel's average over ranks this is (1/B) sum w_i l_i over the global batch, an
        unbiased estimate of the mean loss when the policy is unbiased, also when the last batch is ragged.
        The derivative with respect to each loss is noted on the way, so that sketches come out unscaled
        whatever happens to the scalar afterwards (division by accumulation steps, a GradScaler).

        Args:
            losses: (b,) torch tensor of per-example losses (`reduction="none"`, averaged over positions).

        Raises:
            ConfigError: when `losses` is not a vector with one loss per example of this batch.
        """
        if tuple(losses.shape) != (len(self),):
            raise ConfigError(
                f"weighted_mean needs one loss per example, shape ({len(self)},), got {tuple(losses.shape)}; "
                'use reduction="none" and average over positions'
            )
        if self.keep < len(self):
            raise ConfigError(
                f"these are {len(self)} candidates, of which {self.keep} are to be kept: attach with two_stage=…, "
                "or choose with SecondStage.select"
            )
        if losses.requires_grad:
            losses.register_hook(self._note_coefficients)
        # The scale goes into the weights: a sum of float16 losses overflows long before their mean does.
        scale = np.float32(self.world_size / self.global_batch_size)
        return (losses * losses.new_tensor(self.weights * scale)).sum()

    def kept(self, index: NDArray[np.intp], weights: NDArray[np.float32], stage: pb.Stage) -> Batch:
        """The handle of those candidates that are trained on.

        Args:
            index: (b,) places among them.
            weights: (b,) final ones.
            stage: what the second stage measured.
        """
        batch = Batch(self._message, self._report, self._steps_per_epoch, self._first_step, self._epoch_steps)
        batch.example_ids, batch.cluster_ids = self.example_ids[index], self.cluster_ids[index]
        # What both stages together give an example: w p = 1/n before and after, up to the weight of either stage.
        batch.probabilities = self.probabilities[index] * self.weights[index] / weights
        batch.weights = weights
        for array in (batch.example_ids, batch.cluster_ids, batch.probabilities, batch.weights):
            array.flags.writeable = False
        batch._stage = stage
        batch.norms_from_scorer, batch.sketches_from_scorer = True, self.sketches_from_scorer
        return batch

    def forwarded(self, report: Callable[[ReportRows | PendingReport], None], position: dict[str, Any]) -> Batch:
        """The same handle without records, for another process. This one has no records any more either.

        Args:
            report: takes reports there; must be picklable.
            position: behind this batch.
        """
        self._message.ClearField("records")  # in place: they would be copied otherwise
        batch = Batch(self._message, report, self._steps_per_epoch, self._first_step, self._epoch_steps)
        batch.position = position
        batch.example_ids, batch.weights = self.example_ids, self.weights
        batch.probabilities, batch.cluster_ids = self.probabilities, self.cluster_ids
        return batch

    def padded(self, size: int) -> Batch:
        """Filled up to `size` examples with repeats of weight 0, in the order of the examples."""
        clock = self._steps_per_epoch, self._first_step, self._epoch_steps
        batch = Batch(self._message, self._report, *clock, record_schema=self._record_schema)
        index = np.arange(size) % len(self)
        batch.example_ids, batch.cluster_ids = self.example_ids[index], self.cluster_ids[index]
        batch.probabilities = self.probabilities[index]
        batch.weights = np.where(np.arange(size) < len(self), self.weights[index], np.float32(0))
        for array in (batch.example_ids, batch.cluster_ids, batch.probabilities, batch.weights):
            array.flags.writeable = False
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = self.example_ids, self.weights, self.probabilities, self.cluster_ids
        clock = self._steps_per_epoch, self._first_step, self._epoch_steps
        return _unpickled, (self._message.SerializeToString(), self._report, clock, self.position, arrays)

    def report_scores(
        self,
        *,
        norms: NDArray[np.float32],
        sketches: NDArray[np.float32] | None,
        stage: pb.Stage,
    ) -> None:
        """Queue what a scoring pass showed of all candidates.

        Args:
            norms: (c,).
            sketches: (c, d) or None.
            stage: what the second stage measured.
        """
        from sampler_client.reporter import ReportRows

        rows = ReportRows(
            batch_id=self.batch_id,
            step=self.run_step,
            example_ids=self.example_ids,
            norms=norms,
            sketches=sketches,
            scores=True,
            stage=stage,
        )
        if self._report is not None:
            self._report(rows)

    def _note_coefficients(self, gradient: Any) -> None:
        self._coefficients = gradient.detach()

    def report(self, losses: Any, sketcher: Sketcher | None = None) -> None:
        """Queue what this batch showed; returns at once, a background thread sends it.

        On a GPU too: the thread waits for the device and copies, nothing here does. What goes wrong there is raised
        by the next report or `flush()`.

        Args:
            losses: (b,) per-example losses, a torch tensor or an array.
            sketcher: takes the sketches of the backward pass that just ended.

        Raises:
            ConfigError: when the number of losses is not that of the examples, or a sketcher is given in a run whose
                scorer makes the sketches.
            SketchError: when the sketcher saw no backward pass for this batch, or an earlier report failed.
        """
        from sampler_client.reporter import PendingReport

        values = losses if hasattr(losses, "detach") else np.array(losses, dtype=np.float32)
        if tuple(values.shape) != (len(self),):
            raise ConfigError(f"report needs {len(self)} losses, one per example, got shape {tuple(values.shape)}")
        if sketcher is not None and self.sketches_from_scorer:
            raise ConfigError(
                "the sketches of this run are made by its scorer, and a sketcher's are of other layers: report the "
                "losses alone, or give the scorer sketch_dim=0"
            )
        report = PendingReport(
            batch_id=self.batch_id,
            step=self.run_step,
            example_ids=self.example_ids,
            losses=_deferred(values),
            sketches=None if sketcher is None else _captured(sketcher, self._coefficients),
            scored=self.norms_from_scorer,
            weights=self.weights,
            stage=self._stage,
        )
        self._coefficients = None
        if self._report is not None:
            self._report(report)


def _unpickled(
    message: bytes,
    report: Callable[[ReportRows | PendingReport], None] | None,
    clock: tuple[int, int, int],
    position: dict[str, Any] | None,
    arrays: tuple[NDArray[Any], ...],
) -> Batch:
    batch = Batch(pb.Batch.FromString(message), report, *clock)
    batch.position = position
    batch.example_ids, batch.weights, batch.probabilities, batch.cluster_ids = arrays
    return batch


def _captured(sketcher: Any, coefficients: Any) -> Callable[[], Taken]:
    """The sketches of the last backward pass, for later where the sketcher knows how to."""
    if hasattr(sketcher, "capture"):
        return sketcher.capture(coefficients).resolve
    taken = sketcher.take(coefficients)
    # Read now: the report is sent later, and the sketcher may hand over itself, with the next batch's values by then.
    snapshot = _Snapshot(taken.sketches, taken.norms, taken.usable)
    return lambda: snapshot


def _deferred(values: Any) -> Callable[[], NDArray[np.float32]]:
    """The values as they are now, without waiting for the device of a tensor."""
    if isinstance(values, np.ndarray):
        return lambda: values
    # By name: this module is importable without torch.
    return import_module("sampler_client.pytorch.captured").Deferred(values).numpy
