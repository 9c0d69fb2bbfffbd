"""What needs no service elsewhere: all of it in one process, and the weighted sampler alone.

Example:
    from sampler_service.local import LocalSampler, LocalService

    with LocalService() as service:
        loader = service.attach(loader, run="try")
    loader = DataLoader(dataset, batch_size=64, sampler=LocalSampler(weights, len(dataset)))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampler_service.local.sampler import LocalSampler
    from sampler_service.local.service import LocalService

__all__ = ["LocalSampler", "LocalService"]

_HOMES = {"LocalSampler": "sampler_service.local.sampler", "LocalService": "sampler_service.local.service"}


def __getattr__(name: str) -> Any:
    """Load each when it is asked for (PEP 562): the sampler needs numpy alone, the service FAISS and gRPC's client."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sampler_service.local' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
