"""`docs/growing.md`: its calls, in their order, on a service behind a real gRPC server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

import sampler_client as sampler
from tests.served import ServedService

TEXT = (Path(__file__).parents[2] / "docs/growing.md").read_text(encoding="utf-8")

FIRST, MORE, ALL = 20_000, 5_000, 120_000


class Growing(list):
    """A data set to which a list of records is appended."""

    def append(self, records: list[int]) -> None:
        self.extend(records)


def test_the_calls_of_the_page_do_what_it_says(served: ServedService) -> None:
    dataset = Growing(range(FIRST))
    loader = sampler.attach(
        DataLoader(dataset, batch_size=5000), served.address, run="reviews", policy="shuffle", rank=0, world_size=1
    )
    assert sum(len(batch) for _, batch in loader) == FIRST
    client = sampler.SamplerClient(served.address)
    namespace: dict[str, Any] = {
        "sampler": sampler,
        "dataset": dataset,
        "loader": loader,
        "client": client,
        "new_records": list(range(FIRST, FIRST + MORE)),
    }
    sizes = []
    for code in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(code.replace("localhost:50051", served.address), namespace)
        sizes.append(sum(len(batch) for _, batch in loader))
    assert sizes == [FIRST + MORE, FIRST + MORE, FIRST + MORE - 2]
    assert served.service.dataset_size("reviews") == ALL
    loader.close()
