"""Waiting for an actor: with a deadline, and with errors in our own words."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from sampler_service.errors import Unavailable


class Ended(Unavailable):
    """An actor is gone, and Ray does not start it again."""


def answer(reference: Any, timeout_s: float | None, whom: str) -> Any:
    """What an actor answers.

    Raises:
        Unavailable: it did not within `timeout_s`, or can't be reached; `whom` says who was waited for.
        Ended: it is gone for good.
        SamplerError: what the actor raised.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise Unavailable(f"waited {timeout_s:g} s for {whom}; is the cluster overloaded?") from error
    except ActorUnavailableError as error:
        raise Unavailable(f"waited for {whom}, which is out of reach: Ray starts it again, or looks for it") from error
    except RayActorError as error:
        raise Ended(f"waited for {whom}, whose process has ended") from error
    except RayTaskError as error:
        raise error.cause from error
