"""An order in which gradients cancel along the way: order balancing (GraB) in sketch space.

Walking through an epoch in the present order, each centred sketch gets the sign that keeps the signed sum short; the
next order is all with a plus as they came, then all with a minus backwards. Partial sums of centred gradients stay
short, by which SGD over such orders converges faster than over random ones.

Source: Lu, Guo, De Sa, "GraB: Finding Provably Better Data Permutations than Random Reshuffling", NeurIPS 2022,
arXiv 2205.10733, algorithm 4. Sketches keep inner products, so the walk goes over them. Each shard balances its own
examples, against a sum of its own, and their orders are interleaved, which is ours: the workers of Cooper et al.,
"CD-GraB", arXiv 2302.00845, share one sum. The source centres by the mean of the epoch before; here it is that of the
sketches as they are when the walk begins, which is before the epoch ends, so that the last ones are an epoch older.

Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sampler_service.policies.contract import Kind, shuffled
from sampler_service.types import ByPlace, Rates, Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancedOrder:
    """Every example once an epoch, weight 1, in the balanced order; random until there is one."""

    name: ClassVar[str] = "balanced_order"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"place"})
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.0

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        plain = shuffled(len(view))
        if view.place_n is None:
            return plain
        return Sweep(keep_n=plain.keep_n, weight_n=plain.weight_n, order=ByPlace(place_n=view.place_n))

    def aside(self, view: TableView) -> str:
        return "no order was balanced yet" if view.place_n is None else ""
