"""Client of the sampling service. Importing it needs numpy, grpcio and protobuf; torch is loaded on first use.

Example:
    import sampler_client as sampler

    loader = sampler.attach(loader, "localhost:50051", run="resnet-cifar10")
    sketcher = sampler.GradientSketcher(model, dim=64)
    for (images, labels), batch in loader:
        losses = loss_fn(model(images), labels)  # per example, reduction="none"
        batch.weighted_mean(losses).backward()
        optimizer.step()
        batch.report(losses, sketcher)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The core of Python's gRPC has fork handlers, on unless this is set before gRPC is imported. They start threads in a
# forked DataLoader worker, which abort it when a stream of the trainer's breaks (grpcio 1.85.1).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from sampler_client.batch import Batch
from sampler_client.budget import TimeBudget
from sampler_client.client import SamplerClient
from sampler_client.config import DecodeImage, RunOptions, Timeouts
from sampler_client.errors import (
    Busy,
    ConfigError,
    Conflict,
    Damaged,
    MessageTooLarge,
    NotFound,
    RecordError,
    ReplyTimeout,
    SamplerError,
    ScoringError,
    ServiceUnavailable,
    SketchError,
    Stale,
    VersionMismatch,
)
from sampler_client.figures import FigureLogger, WandbWriter
from sampler_client.phases import Phase

if TYPE_CHECKING:
    from sampler_client.pytorch.batch_sampler import RemoteBatchSampler
    from sampler_client.pytorch.loader import SampledLoader, attach
    from sampler_client.pytorch.remote_batches import RemoteBatches
    from sampler_client.pytorch.sketcher import GradientSketcher
    from sampler_client.pytorch.tensorboard import TensorBoardWriter
    from sampler_client.pytorch.two_stage.scorer import LastLayerScorer, Scores
    from sampler_client.pytorch.two_stage.stage import TwoStage

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Busy",
    "ConfigError",
    "Conflict",
    "Damaged",
    "DecodeImage",
    "FigureLogger",
    "GradientSketcher",
    "LastLayerScorer",
    "MessageTooLarge",
    "NotFound",
    "Phase",
    "RecordError",
    "RemoteBatchSampler",
    "RemoteBatches",
    "ReplyTimeout",
    "RunOptions",
    "SampledLoader",
    "SamplerClient",
    "SamplerError",
    "Scores",
    "ScoringError",
    "ServiceUnavailable",
    "SketchError",
    "Stale",
    "TensorBoardWriter",
    "TimeBudget",
    "Timeouts",
    "TwoStage",
    "VersionMismatch",
    "WandbWriter",
    "attach",
]

_TORCH = {
    "GradientSketcher": "sampler_client.pytorch.sketcher",
    "LastLayerScorer": "sampler_client.pytorch.two_stage.scorer",
    "RemoteBatchSampler": "sampler_client.pytorch.batch_sampler",
    "RemoteBatches": "sampler_client.pytorch.remote_batches",
    "SampledLoader": "sampler_client.pytorch.loader",
    "Scores": "sampler_client.pytorch.two_stage.scorer",
    "TensorBoardWriter": "sampler_client.pytorch.tensorboard",
    "TwoStage": "sampler_client.pytorch.two_stage.stage",
    "attach": "sampler_client.pytorch.loader",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is asked for (PEP 562)."""
    if name not in _TORCH:
        raise AttributeError(f"module 'sampler_client' has no attribute {name!r}")
    return getattr(import_module(_TORCH[name]), name)
