"""A service ends, and nothing of it is left on the cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

from sampler_service.errors import NotFound, Unavailable
from sampler_service.runtime import kept, names
from sampler_service.runtime.joining import connect
from sampler_service.runtime.run_actors import end_run, openings

GRACE_S = 5.0
"""that calls under way have when a gateway drains"""

DRAINED_S = GRACE_S + 10.0
"""within which it must have drained"""

LEAVE_S = 30.0
"""within which the registry must have ended the runs of the last gateway"""

ASKED_S = DRAINED_S + LEAVE_S + 5.0
"""within which gateways that were asked to must have drained, taken leave and gone"""

GONE_S = 20.0
"""within which what was killed must be gone"""


def end_service(namespace: str) -> None:
    """End the registry and all runs; gateways are left to those who started them."""
    # Those of this registry: a gateway that comes just now makes another, with runs of its own.
    ending = openings(namespace)
    kept.forget(namespace)
    names.kill(namespace, names.REGISTRY)
    for opening in ending:
        end_run(namespace, opening)


def down(address: str, namespace: str) -> list[str]:
    """End a service from any node of its cluster; names of the gateways that had to be killed, for they did not drain.

    Raises:
        NotFound: there is no such service.
        Unavailable: the cluster can't be joined, or something of the service does not go.
    """
    connect(address, namespace)
    try:
        if not names.existing(namespace) and not openings(namespace):
            raise NotFound(
                f"no service {namespace!r} on the Ray cluster at {address!r}; there are {names.services()}; name one "
                "with --name"
            )
        for name in names.existing(namespace, "gateway"):
            with suppress(ValueError):
                gateway: Any = ray.get_actor(name, namespace)
                gateway.ask_stop.remote()
        stuck = names.gone(namespace, "gateway", within_s=ASKED_S)
        for name in names.existing(namespace, "gateway", "page"):
            names.kill(namespace, name)
        end_service(namespace)
        if left := names.gone(namespace, within_s=GONE_S):
            raise Unavailable(
                f"waited {GONE_S:g} s for these actors of {namespace!r} to end: {', '.join(left)}; try again"
            )
        return stuck
    finally:
        ray.shutdown()
