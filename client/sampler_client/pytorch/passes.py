"""Which pass over the set each worker of a DataLoader is at, in memory that their processes share.

Workers may end with a pass, and those of the next one must know that there was one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sampler_client.errors import ConfigError
from sampler_client.session import STATE_VERSION

MOST_WORKERS = 1024

# Columns of what somebody has set, in row 0, and of each worker, in row 1 + its number.
_ORDER, _EPOCH, _EXAMPLES, _RECEIVED, _WORKERS, _NEXT = range(6)


class Passes:
    """Begins passes, worker by worker. Each row of the memory is written by one process at a time."""

    def __init__(self) -> None:
        self._rows = torch.zeros((1 + MOST_WORKERS, 6), dtype=torch.int64).share_memory_()

    def begin(self, worker: int, workers: int) -> tuple[int, int, int]:
        """The epoch of a worker's next pass, the examples of it that come before, over all ranks, and the batches that
        this worker has received behind those.

        Raises:
            ConfigError: it is one of another number of workers than before, and nobody has said which epoch that is.
        """
        if worker >= MOST_WORKERS:
            raise ConfigError(f"a DataLoader over RemoteBatches can have {MOST_WORKERS} workers, got {workers}")
        said, row = self._rows[0], self._rows[1 + worker]
        if row[_ORDER] < said[_ORDER]:
            row[_ORDER] = said[_ORDER]
            row[_EPOCH : _RECEIVED + 1] = said[_EPOCH : _RECEIVED + 1]
        elif self._rows[1, _WORKERS] not in (0, workers):
            raise ConfigError(
                f"this DataLoader has {workers} workers, the one before had {int(self._rows[1, _WORKERS])}: call "
                "set_epoch(n) to say which epoch this is"
            )
        elif row[_NEXT]:
            row[_EPOCH], row[_EXAMPLES], row[_RECEIVED] = row[_NEXT], 0, 0
        row[_WORKERS], row[_NEXT] = workers, row[_EPOCH] + 1
        return int(row[_EPOCH]), int(row[_EXAMPLES]), int(row[_RECEIVED])

    def end(self, worker: int) -> None:
        """A worker's pass is through."""
        row = self._rows[1 + worker]
        row[_EPOCH], row[_EXAMPLES], row[_RECEIVED] = row[_NEXT], 0, 0

    def set(self, epoch: int, examples: int, received: int = 0) -> None:
        """What the next pass of every worker is."""
        said = self._rows[0]
        said[_EPOCH], said[_EXAMPLES], said[_RECEIVED] = epoch, examples, received
        said[_ORDER] += 1  # last: it makes the others count

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass of every worker is. A position inside this very epoch is kept."""
        said = self._rows[0]
        waits = self._rows[1, _ORDER] < said[_ORDER]
        if not (waits and epoch == said[_EPOCH]):
            self.set(epoch, 0)

    def state(self, worker: int, received: int) -> dict[str, Any]:
        """JSON-safe position of one worker, so many batches behind where its pass would begin at `epoch` and
        `examples`."""
        row = self._rows[1 + worker]
        where = {"epoch": int(row[_EPOCH]), "examples": int(row[_EXAMPLES]), "received": received}
        return {"version": STATE_VERSION, **where, "workers": int(row[_WORKERS])}

    def restore(self, worker: int, state: Mapping[str, Any]) -> None:
        """Give a worker its position back; its next pass goes on there."""
        row = self._rows[1 + worker]
        row[_ORDER] = self._rows[0, _ORDER]
        row[_EPOCH], row[_EXAMPLES], row[_RECEIVED] = state["epoch"], state["examples"], state["received"]
        row[_NEXT] = 0
