"""Exact descent of J = sum_k N_k SSE_k by single moves, after Hartigan.

Taking row g_i out of cluster k lowers J by SSE_k + N_k ||g_i - C_k||^2, putting it into cluster l raises J by
SSE_l + N_l ||g_i - C_l||^2, both with the means before the move: it pays exactly when the second is smaller.
Both are the inner product of (g, ||g||^2, 1) with (-2 N C, N, N ||C||^2 + SSE), so the best cluster of many
rows is one FAISS search in d + 2 dimensions against k negated vectors. FAISS proposes in fp32; every
proposal is tested again in fp64 against the statistics of that moment, so no move can raise J.

Shapes: r rows visited, d sketch length, k clusters, p = d + 2.
"""

from __future__ import annotations

import numpy as np

from sampler_service.index import kernels
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.types import NO_CLUSTER, Float32, Float64, Int32, Int64

CHUNK = 64
"""rows searched against one state of the clusters: larger is quicker, but proposals go stale"""

_ROUNDING = 1e-9
"""relative gain below which a move may be rounding, and two equal clusters would trade a row for ever"""


def refine(row_rd: Float32, cluster_r: Int32, statistics: ClusterStatistics, chunk: int = CHUNK) -> int:
    """Visit every row once and move it where J falls; a row without a cluster joins where J rises least.

    A cluster is never emptied (taking out its only row saves nothing), and an empty one is filled by the
    first row that is not already at its own mean.

    Args:
        row_rd: (r, d) float32, finite.
        cluster_r: (r,) int32, 0 … k-1 or NO_CLUSTER; changed in place.
        statistics: of the whole partition, these rows included where they have a cluster; changed in place.
            Without clusters nothing happens.

    Returns:
        How many rows changed cluster, newly placed ones included.
    """
    if not len(statistics):
        return 0
    search = _MoveSearch(row_rd, statistics)
    moves = 0
    for start in range(0, len(row_rd), chunk):
        stop = min(start + chunk, len(row_rd))
        best_c = search.best_cluster(row_rd[start:stop])
        for row in start + np.flatnonzero(best_c != cluster_r[start:stop]):
            before, after = int(cluster_r[row]), int(best_c[row - start])
            row_d = row_rd[row].astype(np.float64)
            if before == NO_CLUSTER or search.pays(row_d, before, after):
                search.move(row_d, before, after)
                cluster_r[row] = after
                moves += 1
    return moves


def cost(row_d: Float64, cluster: int, statistics: ClusterStatistics) -> float:
    """SSE_k + N_k ||g - C_k||^2: the rise of J when `row_d` (d,) joins cluster k, its fall when it leaves."""
    count = int(statistics.count_k[cluster])
    if count == 0:
        return 0.0
    mean_d = statistics.sum_kd[cluster] / count
    away_d = row_d - mean_d
    sse = max(float(statistics.square_k[cluster] - count * (mean_d @ mean_d)), 0.0)
    return sse + count * float(away_d @ away_d)


class _MoveSearch:
    """The k vectors of the move test in fp32, kept in step with the fp64 statistics.

    Rows are centred and divided by their root mean square first: fp32 then spends its bits on differences.
    """

    def __init__(self, row_rd: Float32, statistics: ClusterStatistics) -> None:
        self._statistics = statistics
        total = max(int(statistics.count_k.sum()), 1)
        self._centre_d = statistics.sum_kd.sum(axis=0) / total
        spread = float(statistics.square_k.sum()) / total - float(self._centre_d @ self._centre_d)
        if spread <= 0.0 and len(row_rd):  # nothing is clustered yet, or all of it is one point
            spread = float(np.mean((row_rd - self._centre_d) ** 2)) * row_rd.shape[1]
        self._scale = 1.0 / np.sqrt(spread) if spread > 0.0 else 1.0
        self._cost_kp = np.empty((len(statistics), row_rd.shape[1] + 2), np.float32)
        self._changed = set(range(len(statistics)))

    def best_cluster(self, row_cd: Float32) -> Int64:
        """The cluster with the least cost of every row, (c,) int64, as things stand."""
        if self._changed:
            self._refresh(np.array(sorted(self._changed)))
            self._changed.clear()
        centred_cd = (row_cd - self._centre_d) * self._scale
        square_c = np.einsum("cd,cd->c", centred_cd, centred_cd)
        query_cp = np.column_stack((centred_cd, square_c, np.ones_like(square_c)))
        return kernels.largest_inner_product(query_cp.astype(np.float32), self._cost_kp)[1]

    def pays(self, row_d: Float64, before: int, after: int) -> bool:
        """Whether J falls when the row moves, in fp64 and with the statistics as they are now."""
        if self._statistics.count_k[before] <= 1:
            return False
        saved = cost(row_d, before, self._statistics)
        return cost(row_d, after, self._statistics) < saved * (1.0 - _ROUNDING)

    def move(self, row_d: Float64, before: int, after: int) -> None:
        statistics, square = self._statistics, float(row_d @ row_d)
        for cluster, sign in ((before, -1), (after, 1)):
            if cluster != NO_CLUSTER:
                statistics.count_k[cluster] += sign
                statistics.sum_kd[cluster] += sign * row_d
                statistics.square_k[cluster] += sign * square
                self._changed.add(cluster)

    def _refresh(self, cluster_m: Int64) -> None:
        """Rewrite the negated cost vectors (-2 N C, N, N ||C||^2 + SSE) of some clusters."""
        statistics = self._statistics
        count_m = statistics.count_k[cluster_m]
        divisor_m = np.maximum(count_m, 1)
        mean_md = statistics.sum_kd[cluster_m] / divisor_m[:, None]
        sse_m = statistics.square_k[cluster_m] - divisor_m * np.einsum("md,md->m", mean_md, mean_md)
        mean_md = np.where(count_m[:, None] > 0, mean_md - self._centre_d, 0.0) * self._scale
        square_m = np.einsum("md,md->m", mean_md, mean_md)
        self._cost_kp[cluster_m, :-2] = 2.0 * count_m[:, None] * mean_md
        self._cost_kp[cluster_m, -2] = -count_m
        self._cost_kp[cluster_m, -1] = -(count_m * square_m + np.maximum(sse_m, 0.0) * self._scale**2)
