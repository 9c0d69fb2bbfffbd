"""Which pass over the set each worker of a DataLoader is at, in memory that their processes share.

Workers may end with a pass, and those of the next one must know that there was one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sampler_client.epochs import STATE_VERSION
from sampler_client.errors import ConfigError

MOST_WORKERS = 1024

# Columns of what somebody has set, in row 0, and of each worker, in row 1 + its number.
_ORDER, _EPOCH, _EXAMPLES, _RECEIVED, _OF, _WORKERS, _NEXT = range(7)
_POSITION = slice(_EPOCH, _OF + 1)

_NAME_BYTES = 64
"""of the name of the examples that an epoch began with"""

_SESSION_BYTES = 256


class Passes:
    """Begins passes, worker by worker. Each row of the memory is written by one process at a time."""

    def __init__(self) -> None:
        self._rows = torch.zeros((1 + MOST_WORKERS, 7), dtype=torch.int64).share_memory_()
        self._names = torch.zeros((1 + MOST_WORKERS, _NAME_BYTES), dtype=torch.uint8).share_memory_()
        self._sessions = torch.zeros((1 + MOST_WORKERS, _SESSION_BYTES), dtype=torch.uint8).share_memory_()

    def begin(self, worker: int, workers: int) -> dict[str, Any]:
        """Where a worker's next pass begins: the `epoch`, the `examples` of it that come before, over all ranks, and
        the batches that this worker has `received` behind those.

        Raises:
            ConfigError: it is one of another number of workers than before, and nobody has said which epoch that is.
        """
        if worker >= MOST_WORKERS:
            raise ConfigError(f"a DataLoader over RemoteBatches can have {MOST_WORKERS} workers, got {workers}")
        said, row = self._rows[0], self._rows[1 + worker]
        if row[_ORDER] < said[_ORDER]:
            row[_ORDER] = said[_ORDER]
            row[_POSITION], self._names[1 + worker] = said[_POSITION], self._names[0]
        elif self._rows[1, _WORKERS] not in (0, workers):
            raise ConfigError(
                f"this DataLoader has {workers} workers, the one before had {int(self._rows[1, _WORKERS])}: call "
                "set_epoch(n) to say which epoch this is"
            )
        elif row[_NEXT]:
            self._place(1 + worker, {"epoch": int(row[_NEXT]), "examples": 0})
        row[_WORKERS], row[_NEXT] = workers, row[_EPOCH] + 1
        return self._placed(1 + worker)

    def began(self, worker: int, population: str, num_examples: int) -> None:
        """What the service said of the examples of a worker's pass."""
        row = self._placed(1 + worker)
        self._place(1 + worker, {**row, "population": population, "num_examples": num_examples})

    def end(self, worker: int) -> None:
        """A worker's pass is through."""
        self._place(1 + worker, {"epoch": int(self._rows[1 + worker, _NEXT]), "examples": 0})

    def joined(self, worker: int, session: str) -> None:
        """The session that a worker has, and leaves to the one that comes after it."""
        self._sessions[1 + worker] = _packed(session, _SESSION_BYTES)

    def leave(self) -> list[tuple[str, bool]]:
        """The sessions that workers have left, and whether their passes were through by then. They are left once."""
        held = []
        for at in self._sessions[:, 0].nonzero().flatten().tolist():
            held.append((_unpacked(self._sessions[at]), bool(self._rows[at, _EPOCH] == self._rows[at, _NEXT])))
            self._sessions[at] = 0
        return held

    def set(self, position: Mapping[str, Any]) -> None:
        """Where the next pass of every worker begins."""
        self._place(0, position)
        self._rows[0, _ORDER] += 1  # last: it makes the others count

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass of every worker is. A position inside this very epoch is kept."""
        said = self._rows[0]
        waits = self._rows[1, _ORDER] < said[_ORDER]
        if not (waits and epoch == said[_EPOCH]):
            self.set({"epoch": epoch, "examples": 0})

    def state(self, worker: int, received: int) -> dict[str, Any]:
        """JSON-safe position of one worker: where its pass began, and so many batches behind that."""
        if self._rows[1 + worker, _ORDER] < self._rows[0, _ORDER]:  # it has yet to begin where somebody said
            return {"version": STATE_VERSION, **self._placed(0)}
        return {"version": STATE_VERSION, **self._placed(1 + worker), "received": received}

    def restore(self, worker: int, position: Mapping[str, Any]) -> None:
        """Give a worker its position back; its next pass goes on there."""
        row = self._rows[1 + worker]
        row[_ORDER], row[_NEXT] = self._rows[0, _ORDER], 0
        self._place(1 + worker, position)

    def _place(self, at: int, position: Mapping[str, Any]) -> None:
        self._names[at] = _packed(position.get("population", ""), _NAME_BYTES)
        numbers = (
            position["epoch"],
            position["examples"],
            position.get("received", 0),
            position.get("num_examples", 0),
        )
        self._rows[at, _POSITION] = torch.tensor(numbers)

    def _placed(self, at: int) -> dict[str, Any]:
        epoch, examples, received, of = self._rows[at, _POSITION].tolist()
        found: dict[str, Any] = {"epoch": epoch, "examples": examples, "received": received}
        if of:
            found |= {"population": _unpacked(self._names[at]), "num_examples": of}
        return found


def _packed(text: str, size: int) -> torch.Tensor:
    return torch.tensor(list(text.encode()[:size].ljust(size, b"\0")), dtype=torch.uint8)


def _unpacked(row: torch.Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode()
