"""A trainer for tests that kill it: prints what its loop receives, then waits inside its loop for ever.

python -m tests.client.killed_trainer ADDRESS START_METHOD RANK WORLD_SIZE BATCHES
"""

from __future__ import annotations

import json
import sys
import time

from torch.utils.data import DataLoader

import sampler_client as sampler

PREFETCH = 4
LEASE_S = 2.0


def main(address: str, method: str, rank: int, world_size: int, batches: int) -> None:
    records = sampler.RemoteBatches(
        address,
        run="run",
        dataset="numbers",
        batch_size=5,
        policy="shuffle",
        columns=("number",),
        rank=rank,
        world_size=world_size,
        prefetch_factor=PREFETCH,
        lease_s=LEASE_S,
    )
    workers = {"num_workers": 1, "prefetch_factor": PREFETCH, "multiprocessing_context": method}
    for received, (columns, _) in enumerate(DataLoader(records, batch_size=None, **workers), start=1):
        print(json.dumps(columns["number"].tolist()), flush=True)  # noqa: T201 - for the test
        if received == batches:
            time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
