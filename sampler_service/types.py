"""Frozen array views passed between the stages; no behaviour, numpy only.

Shapes: n examples, r reported rows, d sketch length, k clusters or strata, b batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Sketches = NDArray[np.float16] | NDArray[np.float32]

NO_CLUSTER = -1
"""cluster id of an example that has no sketch yet"""

NEVER = -1
"""step of an example that was never reported"""

NO_ROW = -1
"""example id where fewer were found than were looked for"""


def freeze(view: object) -> None:
    """Mark every array field of a dataclass read-only, so that a stray write fails at the line at fault."""
    for name in _field_names(type(view)):
        value = getattr(view, name)
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value = value.view()
            value.flags.writeable = False
            object.__setattr__(view, name, value)


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """All that a policy may know about the examples of a run, at one `table_version`."""

    loss_n: Float32
    """Last reported loss, in the trainer's unit; NaN when never reported."""
    norm_n: Float32
    """Last reported gradient norm; NaN when never reported."""
    step_n: Int64
    """Trainer step of the last report; NEVER (-1) when there is none."""
    cluster_n: Int32
    """Cluster of the example's sketch, 0 … k-1; NO_CLUSTER (-1) when it has no sketch."""
    cluster_sse_k: Float64
    """Scatter of every cluster, sum of squared distances to its mean; its length is k."""
    cluster_scatter: float = math.nan
    """The same of all clustered sketches, to the mean of them all; NaN without clusters."""
    gradient_step_n: Int64 | None = None
    """Trainer step at which the norm or sketch was taken, NEVER (-1) when there is none; None: as `step_n`. It is
    older than that where trainers report losses alone and scorers the rest."""
    reference_loss_n: Float32 | None = None
    """Loss under a reference model (the irreducible loss of RHO-LOSS), when the run was given one."""
    alignment_n: Float32 | None = None
    """Inner product of the example's sketch with the mean sketch of held-out examples, when the run was given one; NaN
    where there is no sketch."""
    alignment_step: int | None = None
    """Latest trainer step when they were compared: sketches that came later were not. None: there are none."""
    agreement: float = 1.0
    """|mean|^2 / mean |.|^2 of the held-out sketches, 0 … 1: 1 when all are the same, 0 when they cancel out."""
    group_n: Int64 | None = None
    """Group of the example, 0 … g-1, such as its label, when the run was given groups."""
    place_n: Float64 | None = None
    """Place of the example in a balanced order, 0 … 1; None until one was made."""
    nearby: Nearby | None = None
    """Pairs near to some, when there are embeddings."""
    epoch_steps: int = 1
    """Steps of an epoch, the yardstick of ages."""
    step: int = 0
    """The latest trainer step heard of, so that `step - step_n` is an age in steps."""
    version: int = 0
    """table_version: rises each time reports or clusters change the table."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.loss_n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearby:
    """Pairs whose other halves are near to that of an anchor. a anchors, m pairs."""

    anchor_a: Int64
    """Example ids, each once."""
    near_am: Int64
    """Example ids in the rank band of each anchor, nearest first; NO_ROW (-1) where there are fewer."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfSome:
    """Order of whole batches: the best one of some candidates that are drawn at random, again and again."""

    score_n: Float32
    """Of the examples; a batch has their mean. No NaN."""
    attempts: int
    """Candidates for each step, at least 1: a random order."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPlace:
    """The order of given places, the same in each epoch."""

    place_n: Float64
    """No NaN; those of the same place are in random order."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearTogether:
    """Anchors in random order, each followed, in the same batch, by pairs that are near to it; the others fill up."""

    nearby: Nearby
    together: int
    """Pairs that follow an anchor, at most."""
    share: float
    """Of the anchors that are followed by any, 0 … 1."""


Order = BestOfSome | ByPlace | NearTogether


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Rates of a policy that visits each kept example once an epoch, in random order or one of its own."""

    keep_n: Float64
    """Probability that the example is kept this epoch, in (0, 1]; independent over examples."""
    weight_n: Float32
    """Loss weight of the example when it is kept."""
    score_n: Float32 | None = None
    """When given, every run of `round(b / top_fraction)` examples in the epoch's order is cut to its b highest."""
    top_fraction: float = 1.0
    order: Order | None = None
    """None: random."""
    alive: int = 0
    """Examples that were not deleted, where some were: the others have keep_n 0. 0: all."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def over(self) -> int:
        """Examples that it goes through."""
        return self.alive or len(self.keep_n)


@dataclass(frozen=True, slots=True, kw_only=True)
class StratifiedDraw:
    """Rates of a policy that draws a share of every batch from each stratum, uniformly inside a stratum."""

    stratum_n: Int32
    """Stratum of every example, 0 … k-1."""
    rate_k: Float64
    """Share of a batch that comes from the stratum; sums to 1, positive for every non-empty stratum."""
    alive: int = 0
    """Examples that were not deleted, where some were: the others are the last stratum, of rate 0. 0: all."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def over(self) -> int:
        """Examples that it draws from."""
        return self.alive or len(self.stratum_n)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedDraw:
    """Rates of a policy that draws example i with probability p_i."""

    probability_n: Float64
    """Sums to 1, positive everywhere."""
    unbiased: bool = True
    """Whether weights undo the probabilities; without, all are 1, and training minimises another mean of the losses."""
    alive: int = 0
    """Examples that were not deleted, where some were: the others have probability 0. 0: all."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def over(self) -> int:
        """Examples that it draws from."""
        return self.alive or len(self.probability_n)


Rates = Sweep | StratifiedDraw | WeightedDraw


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What planning yields: examples with what a trainer must know of each. All arrays have length b."""

    example_ids: Int64
    weights: Float32
    """Factor on the example's loss; 1 / (n p_i) for draws, 1 / keep_i for lossless sweeps."""
    probabilities: Float64
    """p_i of a draw (expected copies per unit batch); for a sweep the probability of being kept, over n."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, index: NDArray[np.intp] | slice) -> Rows:
        return Rows(
            example_ids=self.example_ids[index],
            weights=self.weights[index],
            probabilities=self.probabilities[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What trainers gave a run beside reports."""

    group_n: Int64 | None = None
    reference_loss_n: Float32 | None = None
    target_md: Float32 | None = None
    """sketches of held-out examples, (m, d)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBlock:
    """Reported rows, already checked; r rows, each example at most once (the latest wins)."""

    example_ids: Int64
    losses: Float32
    """NaN where the trainer sent none."""
    norms: Float32
    """NaN where the trainer sent none."""
    sketches: Sketches | None
    """(r, d), or None when the report carries no sketches."""
    step: int | Int64
    """Trainer step at which the gradients were taken: one for all rows, or (r,)."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One trainer's part of a global batch, as it is handed out under a lease."""

    batch_id: int
    epoch: int
    step: int
    table_version: int
    policy: str
    rows: Rows
    cluster_ids: Int32
    lease_deadline: float
    """Unix seconds; meaningful once the trainer is gone."""
    lead: int
    """Batches its trainer held unreported when this one was handed out."""
    keep: int = 0
    """The rows are candidates, of which the trainer keeps so many; 0: all."""
    choice_seed: int = 0
    """Of the trainer's choice among them."""
    pass_number: int = 0
    """Rises with each pass over the set; 0: of one beside the run's own, for a rank that came back to it late."""
    whole: bool = False
    """Its pass hands out every example once, but for those that fill no batch."""
    again: bool = False
    """It was lent before and did not arrive: it is counted already."""
    size: int = 0
    """It was planned from the examples below this number,"""
    alive: int = 0
    """of which so many were not deleted,"""
    drawn: bool = False
    """with weights 1 / (alive p)."""
    global_batch_size: int
    world_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report as it came from a trainer, of the right lengths but with unchecked values."""

    batch_id: int
    """The batch it belongs to; 0 for rows that belong to none."""
    step: int
    example_ids: Int64
    losses: Float32 | None
    norms: Float32 | None
    sketches: Sketches | None
    scores: bool = False
    """Of a scoring pass over the batch's candidates, whose losses count for nothing; the report of the batch itself may
    follow."""
    stage: Stage | None = None
    """What the second stage measured."""
    evidence: Evidence | None = None
    """What the training step says of the second stage's choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a scorer's forward pass said of r examples, unchecked."""

    norms: Float32
    """(r,) sizes of their gradients"""
    sketches: Float32 | None = None
    """(r, d)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a scorer is asked to do."""

    example_ids: Int64
    """to score; empty: nothing is due"""
    version: int
    """newest weights; a scorer that has older ones gets no examples"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """What became of a scorer's work; of the right lengths, but with unchecked values."""

    scorer: str
    version: int
    """of the weights"""
    step: int
    """at which they were published: that of the scores"""
    example_ids: Int64
    scored: Scored
    failed_ids: Int64
    """asked for, and not scored"""
    error: str = ""
    """why not"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a trainer's second stage measured at one step."""

    scoring_s: float
    """seconds of the forward pass over the candidates, and of the choice"""
    training_s: float
    """seconds of the step before, without scoring and waiting; 0 when unknown"""
    waiting_s: float
    """seconds that the loop waited for the candidates"""
    uniform: float
    """second moment of a uniform draw's gradient, estimated from the scores"""
    proposed: float
    """the same of a draw by the proposals alone"""
    chosen: float
    """the same of both stages together"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Second moments of what a trainer's step showed of the rows that its second stage had chosen."""

    rows: int
    uniform: float
    """mean(w v^2), v being gradient norms or losses above the least of the batch: under uniform draws"""
    chosen: float
    """mean((w v)^2): of what was done"""
    by_norms: bool
    scored_uniform: float
    """the same two by the scores of its candidates"""
    scored_chosen: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How the image files in a column become pixels: (height, width, channels) uint8."""

    column: str
    mode: str = "RGB"
    """"RGB" or "L", 3 channels or 1"""
    height: int = 0
    width: int = 0
    """what images are scaled to; both 0: all must be of the size of the first one"""


@dataclass(frozen=True, slots=True)
class Version:
    """Which data is registered under a name, and which state of it."""

    uid: str
    """of the registration: data that is registered anew under the same name has another"""
    generation: int
    """1 at first, and one more after each change"""
    content: str
    """checksum of all that it holds: two nodes may each have changed their copy"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What there is of a dataset."""

    uid: str
    """see `Version`"""
    num_examples: int
    """deleted ones among them"""
    deleted: Int64
    """ids"""
    schema: bytes
    """an Arrow IPC message"""
