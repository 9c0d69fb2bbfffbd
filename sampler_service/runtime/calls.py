"""Waiting for an actor: with a deadline, and with errors in our own words."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from sampler_service.errors import Unavailable

REPORTS = "reports"
"""threads of a run's actor for calls that may wait for its shards: batches wait for none of them"""

LOOKS = "looks"
"""those for people who look, which may take long: shards are asked, arrays are read"""

GROUP_OF: dict[str, str] = {
    **dict.fromkeys(("report", "fence", "set_target", "follow", "published", "to_score", "take_scores"), REPORTS),
    **dict.fromkeys(("statistics", "explain", "examples"), LOOKS),
}
"""by method of the Sampler; all others have the threads that are left"""


def call_run(host: Any, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of the Sampler that a run's actor has; see `answer`."""
    return host.call.options(concurrency_group=GROUP_OF.get(method)).remote(method, *args, **options)


class Ended(Unavailable):
    """An actor is gone, and Ray does not start it again."""


def finished(reference: Any, within_s: float = 0.0) -> bool:
    """Whether an actor has answered, or never will; waits for it."""
    ready, _ = ray.wait([reference], timeout=within_s, fetch_local=False)
    return bool(ready)


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
