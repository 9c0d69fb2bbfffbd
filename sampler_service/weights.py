"""The newest published weights of a run, in parts. A plain class; an actor of its own at the edge, so that gigabytes
never pass through the run's actor, which batches wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sampler_service.errors import Conflict

PART_BYTES = 4 * 1024 * 1024
"""in which weights travel between processes"""

NO_SCORERS = (
    "this service has no scorers, so it has no use for weights; start it with `sampler-service up --scorers 1 "
    "--scoring package.module:factory`, or leave publish() out"
)


@dataclass(slots=True, kw_only=True)
class Weights:
    """Weights as they were published."""

    version: int
    step: int
    """of the trainer"""
    parts: list[bytes] = field(default_factory=list)
    """which together are a safetensors file"""


class WeightsStore:
    """Holds the newest whole weights, and those that are on their way. Calls must not overlap."""

    def __init__(self) -> None:
        self._newest: Weights | None = None
        self._coming: Weights | None = None

    def begin(self, version: int, step: int) -> None:
        """New weights come; what is left of others that were on their way is dropped."""
        self._coming = Weights(version=version, step=step)

    def append(self, version: int, part: bytes) -> None:
        """Their next part.

        Raises:
            Conflict: others began to come after them.
        """
        self._of(version).parts.append(part)

    def finish(self, version: int) -> None:
        """They are whole: the newest from now on."""
        self._newest, self._coming = self._of(version), None

    def abandon(self, version: int) -> None:
        """They will never be whole."""
        if self._coming is not None and self._coming.version == version:
            self._coming = None

    def newest(self, after: int) -> tuple[int, int, int] | None:
        """Version, step and number of parts of the newest weights; None unless they are newer than `after`."""
        if self._newest is None or self._newest.version <= after:
            return None
        return self._newest.version, self._newest.step, len(self._newest.parts)

    def part(self, version: int, number: int) -> bytes | None:
        """A part of the newest weights; None when others have taken their place."""
        if self._newest is None or self._newest.version != version:
            return None
        return self._newest.parts[number]

    def _of(self, version: int) -> Weights:
        if self._coming is None or self._coming.version != version:
            raise Conflict(
                f"weights {version} were displaced by others while they came; let one trainer of a run publish"
            )
        return self._coming


def in_parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of any size joined to parts of at least PART_BYTES, but for the last."""
    waiting, size = [], 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= PART_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
