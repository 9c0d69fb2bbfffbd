"""Waiting for an actor: with a deadline, and with errors in our own words."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from sampler_service.errors import Unavailable


def answer(reference: Any, timeout_s: float | None, whom: str) -> Any:
    """What an actor answers.

    Raises:
        Unavailable: it did not within `timeout_s`, or it is gone; `whom` says who was waited for.
        SamplerError: what the actor raised.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise Unavailable(f"waited {timeout_s:g} s for {whom}; is the cluster overloaded?") from error
    except RayActorError as error:
        raise Unavailable(f"waited for {whom}, but its process has died; it is being restarted") from error
    except RayTaskError as error:
        raise error.cause from error
