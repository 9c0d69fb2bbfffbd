from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GrowDatasetRequest(_message.Message):
    __slots__ = ("dataset", "num_examples")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    num_examples: int
    def __init__(self, dataset: _Optional[str] = ..., num_examples: _Optional[int] = ...) -> None: ...

class DeleteExamplesRequest(_message.Message):
    __slots__ = ("dataset", "example_ids")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    example_ids: bytes
    def __init__(self, dataset: _Optional[str] = ..., example_ids: _Optional[bytes] = ...) -> None: ...

class DatasetState(_message.Message):
    __slots__ = ("num_examples", "deleted")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    deleted: int
    def __init__(self, num_examples: _Optional[int] = ..., deleted: _Optional[int] = ...) -> None: ...

class RegisterDatasetRequest(_message.Message):
    __slots__ = ("dataset", "num_examples", "protocol")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    num_examples: int
    protocol: int
    def __init__(self, dataset: _Optional[str] = ..., num_examples: _Optional[int] = ..., protocol: _Optional[int] = ...) -> None: ...

class RegisterDatasetResponse(_message.Message):
    __slots__ = ("protocol", "service_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    service_version: str
    def __init__(self, protocol: _Optional[int] = ..., service_version: _Optional[str] = ...) -> None: ...

class DescribeDatasetRequest(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    def __init__(self, dataset: _Optional[str] = ...) -> None: ...

class DescribeDatasetResponse(_message.Message):
    __slots__ = ("num_examples", "schema")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    schema: bytes
    def __init__(self, num_examples: _Optional[int] = ..., schema: _Optional[bytes] = ...) -> None: ...

class OpenRunRequest(_message.Message):
    __slots__ = ("run", "dataset", "policy", "policy_options", "seed", "sketch_dim", "sketch_dtype", "num_clusters", "max_lead", "lease_seconds", "on_lost", "epochs", "candidates", "by_budget", "num_examples")
    class PolicyOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SKETCH_DIM_FIELD_NUMBER: _ClassVar[int]
    SKETCH_DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_LEAD_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ON_LOST_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    BY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    run: str
    dataset: str
    policy: str
    policy_options: _containers.ScalarMap[str, str]
    seed: int
    sketch_dim: int
    sketch_dtype: str
    num_clusters: int
    max_lead: int
    lease_seconds: float
    on_lost: str
    epochs: int
    candidates: int
    by_budget: bool
    num_examples: int
    def __init__(self, run: _Optional[str] = ..., dataset: _Optional[str] = ..., policy: _Optional[str] = ..., policy_options: _Optional[_Mapping[str, str]] = ..., seed: _Optional[int] = ..., sketch_dim: _Optional[int] = ..., sketch_dtype: _Optional[str] = ..., num_clusters: _Optional[int] = ..., max_lead: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., on_lost: _Optional[str] = ..., epochs: _Optional[int] = ..., candidates: _Optional[int] = ..., by_budget: bool = ..., num_examples: _Optional[int] = ...) -> None: ...

class OpenRunResponse(_message.Message):
    __slots__ = ("created", "unbiased", "policies")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    UNBIASED_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    created: bool
    unbiased: bool
    policies: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, created: bool = ..., unbiased: bool = ..., policies: _Optional[_Iterable[str]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("run", "rank", "world_size", "batch_size", "drop_last", "lead", "trainer", "token", "worker", "workers", "num_examples")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DROP_LAST_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    run: str
    rank: int
    world_size: int
    batch_size: int
    drop_last: bool
    lead: int
    trainer: str
    token: str
    worker: int
    workers: int
    num_examples: int
    def __init__(self, run: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., batch_size: _Optional[int] = ..., drop_last: bool = ..., lead: _Optional[int] = ..., trainer: _Optional[str] = ..., token: _Optional[str] = ..., worker: _Optional[int] = ..., workers: _Optional[int] = ..., num_examples: _Optional[int] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("session", "steps_per_epoch", "max_lead")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MAX_LEAD_FIELD_NUMBER: _ClassVar[int]
    session: str
    steps_per_epoch: int
    max_lead: int
    def __init__(self, session: _Optional[str] = ..., steps_per_epoch: _Optional[int] = ..., max_lead: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session", "done")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    session: str
    done: bool
    def __init__(self, session: _Optional[str] = ..., done: bool = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetReferenceRequest(_message.Message):
    __slots__ = ("run", "losses")
    RUN_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    run: str
    losses: bytes
    def __init__(self, run: _Optional[str] = ..., losses: _Optional[bytes] = ...) -> None: ...

class SetReferenceResponse(_message.Message):
    __slots__ = ("table_version",)
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    def __init__(self, table_version: _Optional[int] = ...) -> None: ...

class SetGroupsRequest(_message.Message):
    __slots__ = ("run", "groups")
    RUN_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    run: str
    groups: bytes
    def __init__(self, run: _Optional[str] = ..., groups: _Optional[bytes] = ...) -> None: ...

class SetGroupsResponse(_message.Message):
    __slots__ = ("table_version",)
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    def __init__(self, table_version: _Optional[int] = ...) -> None: ...

class SetTargetRequest(_message.Message):
    __slots__ = ("run", "sketches")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SKETCHES_FIELD_NUMBER: _ClassVar[int]
    run: str
    sketches: Array
    def __init__(self, run: _Optional[str] = ..., sketches: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class SetTargetResponse(_message.Message):
    __slots__ = ("table_version",)
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    def __init__(self, table_version: _Optional[int] = ...) -> None: ...

class AnnounceDropRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class AnnounceDropResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WeightsChunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: WeightsHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[WeightsHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WeightsHeader(_message.Message):
    __slots__ = ("session", "step", "num_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: str
    step: int
    num_bytes: int
    def __init__(self, session: _Optional[str] = ..., step: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("version", "scorers", "scorer_error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    SCORER_ERROR_FIELD_NUMBER: _ClassVar[int]
    version: int
    scorers: int
    scorer_error: str
    def __init__(self, version: _Optional[int] = ..., scorers: _Optional[int] = ..., scorer_error: _Optional[str] = ...) -> None: ...

class CloseRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class CloseRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runs: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("hello", "epoch", "credit", "pause")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    epoch: StartEpoch
    credit: Credit
    pause: Pause
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., epoch: _Optional[_Union[StartEpoch, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("session", "last_batch_id", "held", "records")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAST_BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    last_batch_id: int
    held: _containers.RepeatedScalarFieldContainer[int]
    records: RecordsRequest
    def __init__(self, session: _Optional[str] = ..., last_batch_id: _Optional[int] = ..., held: _Optional[_Iterable[int]] = ..., records: _Optional[_Union[RecordsRequest, _Mapping]] = ...) -> None: ...

class RecordsRequest(_message.Message):
    __slots__ = ("columns", "decode")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    decode: _containers.RepeatedCompositeFieldContainer[ImageDecoding]
    def __init__(self, columns: _Optional[_Iterable[str]] = ..., decode: _Optional[_Iterable[_Union[ImageDecoding, _Mapping]]] = ...) -> None: ...

class ImageDecoding(_message.Message):
    __slots__ = ("column", "mode", "height", "width")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    column: str
    mode: str
    height: int
    width: int
    def __init__(self, column: _Optional[str] = ..., mode: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class StartEpoch(_message.Message):
    __slots__ = ("epoch", "skip_examples", "first_step", "progress", "population")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SKIP_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    skip_examples: int
    first_step: int
    progress: float
    population: str
    def __init__(self, epoch: _Optional[int] = ..., skip_examples: _Optional[int] = ..., first_step: _Optional[int] = ..., progress: _Optional[float] = ..., population: _Optional[str] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("count", "acked", "waited")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    count: int
    acked: _containers.RepeatedScalarFieldContainer[int]
    waited: float
    def __init__(self, count: _Optional[int] = ..., acked: _Optional[_Iterable[int]] = ..., waited: _Optional[float] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BatchReply(_message.Message):
    __slots__ = ("block", "epoch_start", "epoch_end", "record_schema")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    EPOCH_START_FIELD_NUMBER: _ClassVar[int]
    EPOCH_END_FIELD_NUMBER: _ClassVar[int]
    RECORD_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    block: BatchBlock
    epoch_start: EpochStart
    epoch_end: EpochEnd
    record_schema: bytes
    def __init__(self, block: _Optional[_Union[BatchBlock, _Mapping]] = ..., epoch_start: _Optional[_Union[EpochStart, _Mapping]] = ..., epoch_end: _Optional[_Union[EpochEnd, _Mapping]] = ..., record_schema: _Optional[bytes] = ...) -> None: ...

class BatchBlock(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: _containers.RepeatedCompositeFieldContainer[Batch]
    def __init__(self, batch: _Optional[_Iterable[_Union[Batch, _Mapping]]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("batch_id", "epoch", "step", "table_version", "policy", "example_ids", "weights", "probabilities", "cluster_ids", "lease_deadline", "lead", "global_batch_size", "world_size", "keep", "choice_seed", "records")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    CHOICE_SEED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    epoch: int
    step: int
    table_version: int
    policy: str
    example_ids: bytes
    weights: bytes
    probabilities: bytes
    cluster_ids: bytes
    lease_deadline: float
    lead: int
    global_batch_size: int
    world_size: int
    keep: int
    choice_seed: int
    records: bytes
    def __init__(self, batch_id: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., table_version: _Optional[int] = ..., policy: _Optional[str] = ..., example_ids: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., probabilities: _Optional[bytes] = ..., cluster_ids: _Optional[bytes] = ..., lease_deadline: _Optional[float] = ..., lead: _Optional[int] = ..., global_batch_size: _Optional[int] = ..., world_size: _Optional[int] = ..., keep: _Optional[int] = ..., choice_seed: _Optional[int] = ..., records: _Optional[bytes] = ...) -> None: ...

class EpochStart(_message.Message):
    __slots__ = ("epoch", "num_steps", "policy", "reason", "population", "num_examples", "epoch_steps")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_STEPS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    num_steps: int
    policy: str
    reason: str
    population: str
    num_examples: int
    epoch_steps: int
    def __init__(self, epoch: _Optional[int] = ..., num_steps: _Optional[int] = ..., policy: _Optional[str] = ..., reason: _Optional[str] = ..., population: _Optional[str] = ..., num_examples: _Optional[int] = ..., epoch_steps: _Optional[int] = ...) -> None: ...

class EpochEnd(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class ReportBundle(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("session", "batch_id", "step", "example_ids", "losses", "norms", "sketches", "scores", "stage", "evidence")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    SKETCHES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    session: str
    batch_id: int
    step: int
    example_ids: bytes
    losses: bytes
    norms: bytes
    sketches: Array
    scores: bool
    stage: Stage
    evidence: Evidence
    def __init__(self, session: _Optional[str] = ..., batch_id: _Optional[int] = ..., step: _Optional[int] = ..., example_ids: _Optional[bytes] = ..., losses: _Optional[bytes] = ..., norms: _Optional[bytes] = ..., sketches: _Optional[_Union[Array, _Mapping]] = ..., scores: bool = ..., stage: _Optional[_Union[Stage, _Mapping]] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("scoring", "training", "waiting", "uniform", "proposed", "chosen")
    SCORING_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    scoring: float
    training: float
    waiting: float
    uniform: float
    proposed: float
    chosen: float
    def __init__(self, scoring: _Optional[float] = ..., training: _Optional[float] = ..., waiting: _Optional[float] = ..., uniform: _Optional[float] = ..., proposed: _Optional[float] = ..., chosen: _Optional[float] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("rows", "uniform", "chosen", "by_norms", "scored_uniform", "scored_chosen")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    BY_NORMS_FIELD_NUMBER: _ClassVar[int]
    SCORED_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    SCORED_CHOSEN_FIELD_NUMBER: _ClassVar[int]
    rows: int
    uniform: float
    chosen: float
    by_norms: bool
    scored_uniform: float
    scored_chosen: float
    def __init__(self, rows: _Optional[int] = ..., uniform: _Optional[float] = ..., chosen: _Optional[float] = ..., by_norms: bool = ..., scored_uniform: _Optional[float] = ..., scored_chosen: _Optional[float] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReportSummary(_message.Message):
    __slots__ = ("table_version", "accepted", "rejected")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    accepted: int
    rejected: _containers.ScalarMap[str, int]
    def __init__(self, table_version: _Optional[int] = ..., accepted: _Optional[int] = ..., rejected: _Optional[_Mapping[str, int]] = ...) -> None: ...

class FenceRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class FenceResponse(_message.Message):
    __slots__ = ("table_version",)
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    def __init__(self, table_version: _Optional[int] = ...) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = ("run", "detail")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    run: str
    detail: bool
    def __init__(self, run: _Optional[str] = ..., detail: bool = ...) -> None: ...

class GetStatisticsResponse(_message.Message):
    __slots__ = ("run", "dataset", "num_examples", "policy", "active_policy", "reason", "unbiased", "table_version", "epoch", "batches", "examples", "reported_rows", "rejected_rows", "sketch_coverage", "variance_ratio", "effective_sample_ratio", "num_clusters", "refreshes", "mean_age_steps", "lead", "max_lead", "trainers", "leases_expired", "memory_bytes", "shards", "shards_away", "shards_lost", "candidates", "stage_ratio", "stage_cost", "uniform_share", "median_age_steps", "p99_age_steps", "median_lead", "p99_lead", "scorers", "scored_rows", "weights_version", "weights_step", "scorer_error", "progress", "epoch_coverage", "window_coverage", "never_drawn", "leases", "batches_by_policy", "waited_seconds", "ranks", "shard", "detail", "trained_ratio", "median_rates_age_steps", "p99_rates_age_steps", "deleted")
    class RejectedRowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BatchesByPolicyEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNBIASED_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    REPORTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SKETCH_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_RATIO_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SAMPLE_RATIO_FIELD_NUMBER: _ClassVar[int]
    NUM_CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    REFRESHES_FIELD_NUMBER: _ClassVar[int]
    MEAN_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    MAX_LEAD_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    LEASES_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_AWAY_FIELD_NUMBER: _ClassVar[int]
    SHARDS_LOST_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    STAGE_RATIO_FIELD_NUMBER: _ClassVar[int]
    STAGE_COST_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    P99_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_LEAD_FIELD_NUMBER: _ClassVar[int]
    P99_LEAD_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    SCORED_ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_STEP_FIELD_NUMBER: _ClassVar[int]
    SCORER_ERROR_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    NEVER_DRAWN_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_BY_POLICY_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRAINED_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_RATES_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    P99_RATES_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    run: str
    dataset: str
    num_examples: int
    policy: str
    active_policy: str
    reason: str
    unbiased: bool
    table_version: int
    epoch: int
    batches: int
    examples: int
    reported_rows: int
    rejected_rows: _containers.ScalarMap[str, int]
    sketch_coverage: float
    variance_ratio: float
    effective_sample_ratio: float
    num_clusters: int
    refreshes: int
    mean_age_steps: float
    lead: int
    max_lead: int
    trainers: int
    leases_expired: int
    memory_bytes: int
    shards: int
    shards_away: int
    shards_lost: int
    candidates: int
    stage_ratio: float
    stage_cost: float
    uniform_share: float
    median_age_steps: float
    p99_age_steps: float
    median_lead: float
    p99_lead: float
    scorers: int
    scored_rows: int
    weights_version: int
    weights_step: int
    scorer_error: str
    progress: float
    epoch_coverage: float
    window_coverage: float
    never_drawn: int
    leases: int
    batches_by_policy: _containers.ScalarMap[str, int]
    waited_seconds: float
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatistics]
    shard: _containers.RepeatedCompositeFieldContainer[ShardStatistics]
    detail: StatisticsDetail
    trained_ratio: float
    median_rates_age_steps: float
    p99_rates_age_steps: float
    deleted: int
    def __init__(self, run: _Optional[str] = ..., dataset: _Optional[str] = ..., num_examples: _Optional[int] = ..., policy: _Optional[str] = ..., active_policy: _Optional[str] = ..., reason: _Optional[str] = ..., unbiased: bool = ..., table_version: _Optional[int] = ..., epoch: _Optional[int] = ..., batches: _Optional[int] = ..., examples: _Optional[int] = ..., reported_rows: _Optional[int] = ..., rejected_rows: _Optional[_Mapping[str, int]] = ..., sketch_coverage: _Optional[float] = ..., variance_ratio: _Optional[float] = ..., effective_sample_ratio: _Optional[float] = ..., num_clusters: _Optional[int] = ..., refreshes: _Optional[int] = ..., mean_age_steps: _Optional[float] = ..., lead: _Optional[int] = ..., max_lead: _Optional[int] = ..., trainers: _Optional[int] = ..., leases_expired: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., shards: _Optional[int] = ..., shards_away: _Optional[int] = ..., shards_lost: _Optional[int] = ..., candidates: _Optional[int] = ..., stage_ratio: _Optional[float] = ..., stage_cost: _Optional[float] = ..., uniform_share: _Optional[float] = ..., median_age_steps: _Optional[float] = ..., p99_age_steps: _Optional[float] = ..., median_lead: _Optional[float] = ..., p99_lead: _Optional[float] = ..., scorers: _Optional[int] = ..., scored_rows: _Optional[int] = ..., weights_version: _Optional[int] = ..., weights_step: _Optional[int] = ..., scorer_error: _Optional[str] = ..., progress: _Optional[float] = ..., epoch_coverage: _Optional[float] = ..., window_coverage: _Optional[float] = ..., never_drawn: _Optional[int] = ..., leases: _Optional[int] = ..., batches_by_policy: _Optional[_Mapping[str, int]] = ..., waited_seconds: _Optional[float] = ..., ranks: _Optional[_Iterable[_Union[RankStatistics, _Mapping]]] = ..., shard: _Optional[_Iterable[_Union[ShardStatistics, _Mapping]]] = ..., detail: _Optional[_Union[StatisticsDetail, _Mapping]] = ..., trained_ratio: _Optional[float] = ..., median_rates_age_steps: _Optional[float] = ..., p99_rates_age_steps: _Optional[float] = ..., deleted: _Optional[int] = ...) -> None: ...

class RankStatistics(_message.Message):
    __slots__ = ("rank", "trainer", "connected", "epoch", "held", "lead", "batches", "examples", "waited_seconds")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    trainer: str
    connected: bool
    epoch: int
    held: int
    lead: int
    batches: int
    examples: int
    waited_seconds: float
    def __init__(self, rank: _Optional[int] = ..., trainer: _Optional[str] = ..., connected: bool = ..., epoch: _Optional[int] = ..., held: _Optional[int] = ..., lead: _Optional[int] = ..., batches: _Optional[int] = ..., examples: _Optional[int] = ..., waited_seconds: _Optional[float] = ...) -> None: ...

class ShardStatistics(_message.Message):
    __slots__ = ("shard", "away", "sketched", "memory_bytes")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    SKETCHED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    away: bool
    sketched: int
    memory_bytes: int
    def __init__(self, shard: _Optional[int] = ..., away: bool = ..., sketched: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class StatisticsDetail(_message.Message):
    __slots__ = ("weights", "rates", "ages", "leads", "clusters")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    AGES_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    weights: Histogram
    rates: Histogram
    ages: Histogram
    leads: Histogram
    clusters: _containers.RepeatedCompositeFieldContainer[ClusterStatistics]
    def __init__(self, weights: _Optional[_Union[Histogram, _Mapping]] = ..., rates: _Optional[_Union[Histogram, _Mapping]] = ..., ages: _Optional[_Union[Histogram, _Mapping]] = ..., leads: _Optional[_Union[Histogram, _Mapping]] = ..., clusters: _Optional[_Iterable[_Union[ClusterStatistics, _Mapping]]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("edges", "counts", "sum")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, edges: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class ClusterStatistics(_message.Message):
    __slots__ = ("cluster", "size", "draw_share", "loss", "scatter", "redundancy", "x", "y")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAW_SHARE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SCATTER_FIELD_NUMBER: _ClassVar[int]
    REDUNDANCY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    cluster: int
    size: int
    draw_share: float
    loss: float
    scatter: float
    redundancy: float
    x: float
    y: float
    def __init__(self, cluster: _Optional[int] = ..., size: _Optional[int] = ..., draw_share: _Optional[float] = ..., loss: _Optional[float] = ..., scatter: _Optional[float] = ..., redundancy: _Optional[float] = ..., x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class ExampleStatistics(_message.Message):
    __slots__ = ("example_id", "loss", "norm", "age_steps", "drawn", "last_epoch", "cluster", "rate")
    EXAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    example_id: int
    loss: float
    norm: float
    age_steps: float
    drawn: int
    last_epoch: int
    cluster: int
    rate: float
    def __init__(self, example_id: _Optional[int] = ..., loss: _Optional[float] = ..., norm: _Optional[float] = ..., age_steps: _Optional[float] = ..., drawn: _Optional[int] = ..., last_epoch: _Optional[int] = ..., cluster: _Optional[int] = ..., rate: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("run", "example_id", "neighbours")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    run: str
    example_id: int
    neighbours: int
    def __init__(self, run: _Optional[str] = ..., example_id: _Optional[int] = ..., neighbours: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("example", "why", "neighbours", "no_neighbours")
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    NO_NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    example: ExampleStatistics
    why: _containers.RepeatedScalarFieldContainer[str]
    neighbours: _containers.RepeatedCompositeFieldContainer[Neighbour]
    no_neighbours: str
    def __init__(self, example: _Optional[_Union[ExampleStatistics, _Mapping]] = ..., why: _Optional[_Iterable[str]] = ..., neighbours: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ..., no_neighbours: _Optional[str] = ...) -> None: ...

class Neighbour(_message.Message):
    __slots__ = ("similarity", "example")
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    similarity: float
    example: ExampleStatistics
    def __init__(self, similarity: _Optional[float] = ..., example: _Optional[_Union[ExampleStatistics, _Mapping]] = ...) -> None: ...

class ExamplesRequest(_message.Message):
    __slots__ = ("run", "order", "count")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    run: str
    order: str
    count: int
    def __init__(self, run: _Optional[str] = ..., order: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ExamplesResponse(_message.Message):
    __slots__ = ("examples",)
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    examples: _containers.RepeatedCompositeFieldContainer[ExampleStatistics]
    def __init__(self, examples: _Optional[_Iterable[_Union[ExampleStatistics, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
