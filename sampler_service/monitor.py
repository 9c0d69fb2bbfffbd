"""The variance ratio of the policy in use, measured on fresh reports only.

A partition made from old sketches is judged by gradients that came later, so the ratio is out of sample. All
variances are traces, of draws with replacement inside a stratum; planning without replacement does no worse.

Shapes: r rows, d sketch length, k clusters or strata, n examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampler_service.types import Bool, Float32, Float64, Int32, Sketches


class VarianceMonitor:
    """A sliding window of reported rows, and Var[policy] / Var[i.i.d.] of equal batches estimated from it.

    Estimates are for the mean parameters of the window: its rows were taken over as many steps as it spans.
    """

    def __init__(self, *, dim: int, window_rows: int = 4096, min_rows: int = 256) -> None:
        """Keep `window_rows` rows of (dim + 3) float32; answer NaN while there are fewer than `min_rows`."""
        self._sketch_rd: Float32 = np.full((window_rows, dim), np.nan, np.float32)
        self._norm_r: Float32 = np.full(window_rows, np.nan, np.float32)
        self._weight_r: Float32 = np.zeros(window_rows, np.float32)
        self._cluster_r: Int32 = np.full(window_rows, -1, np.int32)
        self._min_rows = min_rows
        self._rows_seen = 0
        self.version = 0
        """rises with every change of the window"""

    def reset(self) -> None:
        """Forget the window: clusters or rates changed their meaning."""
        self._rows_seen = 0
        self.version += 1

    def add(self, *, sketch_rd: Sketches | None, norm_r: Float32, cluster_r: Int32, weight_r: Float32) -> None:
        """Take rows that were drawn with probability 1 / (n weight) and reported since.

        Args:
            sketch_rd: (r, d) fresh sketches, or None when the trainer sends none.
            norm_r: (r,) gradient norms, NaN where unknown; used only where there are no sketches.
            cluster_r: (r,) cluster in the partition that drew the row; negative when it had none.
            weight_r: (r,) weights 1 / (n p_i) the rows were drawn with; 1 for a sweep.
        """
        window = len(self._weight_r)
        slot_r = (self._rows_seen + np.arange(len(weight_r))) % window
        slot_r, last = slot_r[-window:], slice(-window, None)
        self._sketch_rd[slot_r] = np.nan if sketch_rd is None else sketch_rd[last]
        self._norm_r[slot_r] = norm_r[last]
        self._cluster_r[slot_r] = cluster_r[last]
        self._weight_r[slot_r] = weight_r[last]
        self._rows_seen += len(weight_r)
        self.version += 1

    @property
    def num_rows(self) -> int:
        """Rows in the window."""
        return min(self._rows_seen, len(self._weight_r))

    def window(self) -> Window:
        """A copy of the rows, to reduce while others come in."""
        rows = slice(0, self.num_rows)
        return Window(
            sketch_rd=self._sketch_rd[rows].copy(),
            norm_r=self._norm_r[rows].copy(),
            weight_r=self._weight_r[rows].copy(),
            cluster_r=self._cluster_r[rows].copy(),
            min_rows=self._min_rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The rows of a monitor at one moment."""

    sketch_rd: Float32
    """NaN where the trainer sent none"""
    norm_r: Float32
    weight_r: Float32
    cluster_r: Int32
    min_rows: int
    """fewer say nothing"""

    def ratio_to_iid(
        self, *, size_k: Float64 | None = None, rate_k: Float64 | None = None, batch_size: int | None = None
    ) -> float:
        """Var[policy] / Var[i.i.d.] of batches of the same size; NaN while there is too little to tell.

        Args:
            size_k: N_k of the partition, for a stratified policy.
            rate_k: q_k, the share of a batch drawn from each stratum. Without these two the policy is the one
                that drew the rows with their weights.
            batch_size: rows B of a global batch. Given it, the ratio holds for the integer counts of systematic
                allocation; without it for B q_k rows of a stratum, integer or not, which flatters strata with B q_k
                far from an integer (12-fold in one case measured).
        """
        sketch_rd, weight_r = self.sketch_rd.astype(np.float64), self.weight_r.astype(np.float64)
        known_r = np.isfinite(sketch_rd).all(axis=1)
        if size_k is not None and rate_k is not None:
            cluster_r = self.cluster_r
            known_r &= (cluster_r >= 0) & (cluster_r < len(size_k)) & (weight_r > 0.0)
            if np.count_nonzero(known_r) < self.min_rows:
                return np.nan
            strata = _strata(sketch_rd[known_r], cluster_r[known_r], weight_r[known_r], np.asarray(size_k, np.float64))
            return _stratified_ratio(strata, np.asarray(rate_k, np.float64), batch_size)
        if np.count_nonzero(known_r) >= self.min_rows:
            return _weighted_ratio(sketch_rd[known_r], weight_r[known_r])
        return self._ratio_of_norms()

    def _ratio_of_norms(self) -> float:
        """Without sketches ||gbar||^2 is unknown; taken for 0, the ratio is nearer to 1 than the truth."""
        square_r = self.norm_r.astype(np.float64) ** 2
        known_r: Bool = np.isfinite(square_r)
        if np.count_nonzero(known_r) < self.min_rows:
            return np.nan
        weight_r = self.weight_r[known_r].astype(np.float64)
        return _ratio(float(np.mean(weight_r**2 * square_r[known_r])), float(np.mean(weight_r * square_r[known_r])))


def effective_sample_size(probability_n: Float64) -> float:
    """1 / sum p_i^2 of probabilities that sum to 1: n for uniform draws, 1 for a single example."""
    return 1.0 / float(probability_n @ probability_n)


def tau(probability_n: Float64) -> float:
    """sqrt(n sum p_i^2): 1 for uniform draws; what Katharopoulos & Fleuret (arXiv 1803.00942) gate on."""
    return float(np.sqrt(len(probability_n) / effective_sample_size(probability_n)))


def _weighted_ratio(sketch_rd: Float64, weight_r: Float64) -> float:
    """(E_p[w^2 ||g||^2] - ||gbar||^2) / (E_p[w ||g||^2] - ||gbar||^2), with an unbiased ||gbar||^2."""
    square_r = np.einsum("rd,rd->r", sketch_rd, sketch_rd)
    rows, sum_d = len(weight_r), weight_r @ sketch_rd
    second_moment = float(np.mean(weight_r**2 * square_r))
    mean_square = (float(sum_d @ sum_d) - rows * second_moment) / (rows * (rows - 1))
    return _ratio(second_moment - mean_square, float(np.mean(weight_r * square_r)) - mean_square)


@dataclass(frozen=True, slots=True)
class _Strata:
    """What the window says of each stratum; unknown ones have share 0."""

    share_k: Float64
    """N_k / N over the known strata, sums to 1."""
    mean_kd: Float64
    variance_k: Float64
    """V_k, with Bessel's correction."""
    noise_k: Float64
    """Expected squared error of the mean."""


def _strata(sketch_rd: Float64, cluster_r: Int32, weight_r: Float64, size_k: Float64) -> _Strata | None:
    """Moments of the strata with at least two rows in the window; None if the others hold over a tenth of all."""
    num_strata = len(size_k)
    weight_k = np.bincount(cluster_r, weight_r, num_strata)
    part_r = weight_r / weight_k[cluster_r]  # sums to 1 in each stratum
    spread_k = np.bincount(cluster_r, part_r**2, num_strata)  # Var[mean] / V; 1 / rows for equal weights
    known_k = (np.bincount(cluster_r, minlength=num_strata) >= 2) & (spread_k < 1.0) & (size_k > 0)
    share_k = np.where(known_k, size_k, 0.0) / size_k.sum()
    if share_k.sum() < 0.9:
        return None
    mean_kd = np.zeros((num_strata, sketch_rd.shape[1]))
    np.add.at(mean_kd, cluster_r, part_r[:, None] * sketch_rd)
    away_rd = sketch_rd - mean_kd[cluster_r]
    scatter_k = np.bincount(cluster_r, part_r * np.einsum("rd,rd->r", away_rd, away_rd), num_strata)
    variance_k = scatter_k / np.where(known_k, 1.0 - spread_k, 1.0)
    return _Strata(share_k / share_k.sum(), mean_kd, variance_k, variance_k * spread_k)


def _stratified_ratio(strata: _Strata | None, rate_k: Float64, batch_size: int | None) -> float:
    """sum_k s_k^2 V_k / q_k over sum_k s_k (V_k + ||C_k - gbar||^2), with s_k = N_k / N."""
    if strata is None:
        return np.nan
    share_k, mean_kd, noise_k = strata.share_k, strata.mean_kd, strata.noise_k
    # Rates of the known strata among themselves, as the shares are.
    rate_k = np.where(share_k > 0, rate_k, 0.0)
    rate_k = rate_k / rate_k.sum()
    # Both squared means carry the noise of the stratum means; its expectation is taken off.
    mean_d = share_k @ mean_kd
    square_k = np.einsum("kd,kd->k", mean_kd, mean_kd) - noise_k
    mean_square = float(mean_d @ mean_d - share_k**2 @ noise_k)
    iid = float(share_k @ (strata.variance_k + square_k)) - mean_square
    policy = float((share_k**2 / np.where(share_k > 0, rate_k, 1.0)) @ strata.variance_k)
    if batch_size is not None:
        policy += batch_size * _rounding_variance(strata, rate_k, batch_size)
    return _ratio(policy, iid)


def _rounding_variance(strata: _Strata, rate_k: Float64, batch_size: int) -> float:
    """Variance of a batch's mean because its counts m_k are integers around B q_k.

    The batch is sum_k m_k y_k with y_k = s_k C_k / (B q_k), and systematic sampling in random order rounds each B q_k
    up with the probability of its fraction f_k while the total stays B. Hajek's variance for such a sample (Annals of
    Mathematical Statistics 35, 1964) is sum_k f_k (1 - f_k) ||y_k - y||^2, y the mean with the same factors.
    """
    count_k = batch_size * np.where(strata.share_k > 0, rate_k, 1.0)
    fraction_k = count_k - np.floor(count_k)
    rounded_k = (strata.share_k > 0) & (fraction_k > 1e-9) & (fraction_k < 1.0 - 1e-9)
    factor_k = np.where(rounded_k, fraction_k * (1.0 - fraction_k), 0.0)
    total, strata_rounded = float(factor_k.sum()), int(np.count_nonzero(rounded_k))
    if strata_rounded < 2:
        return 0.0
    value_k = strata.share_k / count_k
    value_kd = value_k[:, None] * strata.mean_kd
    away_kd = value_kd - factor_k @ value_kd / total
    scatter = float(factor_k @ np.einsum("kd,kd->k", away_kd, away_kd))
    noise = float((factor_k * value_k**2 * (1.0 - factor_k / total)) @ strata.noise_k)
    return max(scatter - noise, 0.0) * strata_rounded / (strata_rounded - 1)


def _ratio(policy: float, iid: float) -> float:
    return policy / iid if iid > 0.0 and policy >= 0.0 else np.nan
