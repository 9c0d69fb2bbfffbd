"""The composition root: the only place that knows both edges, gRPC and Ray."""

from __future__ import annotations

from functools import partial

from sampler_service.config import ServiceConfig
from sampler_service.rpc.server import Server, check_free
from sampler_service.runtime.cluster import Cluster
from sampler_service.scoring.factory import check_installed, find_factory
from sampler_service.scoring.worker import make_scorer
from sampler_service.service import Service


def serve(service: Service, config: ServiceConfig) -> Server:
    """A gRPC server in front of a service."""
    return Server(service, config)


def start(config: ServiceConfig, address: str | None = None) -> Cluster:
    """The whole service: on a Ray cluster of its own, or on the one at `address`."""
    check_free(config.host, config.port)
    if not config.scorers:
        return Cluster(serve, config, address)
    check_installed()
    find_factory(config.scoring)  # its errors now, not in an actor
    return Cluster(serve, config, address, partial(make_scorer, config.scoring))
