"""What a training step says of the choice that made its batch, whatever the scores said that it was made by.

A kept row was drawn with a density of 1/(n w) of it, w being its final weight, so over the rows of a batch mean(w v^2)
estimates the second moment of v over the data set and mean((w v)^2) that of what was done. Their ratio is the share of
the variance that the choice leaves when v are gradient norms. Losses will do: where the chances follow the gradients g,
E[v^2/g] E[g] <= E[v^2] as long as v^2/g rises with g (Chebyshev's association inequality), so the ratio is 1 at most;
where they follow something that has nothing to do with the losses, s, it is E[1/s] E[s], which is 1 at least. What is
added to all losses alike, as smoothed labels do, is in no gradient: v are losses above the least of the batch.

Shapes: r rows that were trained on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampler_client._pb import sampler_pb2 as pb


def evidence_of(
    stage: pb.Stage, weight_r: NDArray[np.float32], *, loss_r: NDArray[np.float32], norm_r: NDArray[np.float32] | None
) -> pb.Evidence | None:
    """The two second moments of one batch, by its gradient norms where they are known; None when these say nothing.

    Args:
        stage: what the second stage measured when it chose the batch.
        weight_r: (r,) final weights of the rows.
        loss_r: (r,) as they were trained with.
        norm_r: (r,) norms of their gradients.
    """
    value_r = np.asarray(loss_r if norm_r is None else norm_r, np.float64)
    if not len(value_r) or not np.isfinite(value_r).all():
        return None
    if norm_r is None:
        value_r = value_r - value_r.min()
    uniform = float((weight_r * value_r**2).mean())
    if uniform == 0:
        return None
    return pb.Evidence(
        rows=len(value_r),
        uniform=uniform,
        chosen=float(((weight_r * value_r) ** 2).mean()),
        by_norms=norm_r is not None,
        scored_uniform=stage.uniform,
        scored_chosen=stage.chosen,
    )
