"""The composition root: the only place that knows both edges, gRPC and Ray."""

from __future__ import annotations

from functools import partial

from sampler_service.config import ServiceConfig
from sampler_service.factories import find_factory
from sampler_service.records import DataDirectory
from sampler_service.records.desk import RecordDesk
from sampler_service.records.nodes import NodeRecords
from sampler_service.rpc.server import Server, check_free
from sampler_service.runtime.cluster import Cluster
from sampler_service.runtime.ending import down
from sampler_service.runtime.node_records import RayNodes
from sampler_service.scoring.installed import check_installed
from sampler_service.scoring.worker import make_scorer
from sampler_service.service import Service
from sampler_service.web.server import WebServer, listen

__all__ = ["down", "serve", "serve_page", "start"]


def serve(service: Service, config: ServiceConfig) -> Server:
    """A gRPC server in front of a service, in a gateway's process."""
    nodes = NodeRecords(config.data_dir, RayNodes(config.name))
    return Server(service, config, RecordDesk(DataDirectory(config.data_dir), nodes.bring))


def serve_page(service: str, config: ServiceConfig) -> WebServer:
    """The page of the service at "host:port"."""
    looks = RecordDesk(DataDirectory(config.data_dir)).look
    return WebServer(service, host=config.host, port=config.page_port or 0, previews=config.previews, looks=looks)


def start(config: ServiceConfig, address: str | None = None) -> Cluster:
    """The whole service: on a Ray cluster of its own, or on the one at `address`."""
    # Errors now, before a cluster is started for nothing, and not in an actor.
    check_free(config.host, config.port)
    if config.page_port is not None:
        listen(config.host, config.page_port).close()
    if config.previews:
        find_factory("--previews", config.previews)
    if config.scorers:
        check_installed()
        find_factory("--scoring", config.scoring)
    scorer = partial(make_scorer, config.scoring) if config.scorers else None
    return Cluster(serve, serve_page, config, address, scorer)
