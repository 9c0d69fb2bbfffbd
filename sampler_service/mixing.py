"""How much of a draw should be uniform: measured on what fresh scores say of the old ones.

With p_i = (1 - alpha) s_i / sum(s) + alpha / n the second moment of a draw's gradient is (1/n) sum f_i^2 / (n p_i),
f being the fresh norms. Rows that were drawn and scored estimate it for every alpha at once, out of sample: where
the table is stale the least lies at a large alpha, where it is fresh at a small one.

Shapes: r rows, a values of alpha.
"""

from __future__ import annotations

import numpy as np

from sampler_service.policies.two_stage import FIRST_ALPHA
from sampler_service.types import Float32, Float64

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
MEMORY = 64
"""reports over which the estimates are averaged"""
MARGIN = 0.97
"""another alpha must promise this share of the present second moment at most"""


class MixTuner:
    """Chooses alpha among ALPHAS. Not thread-safe."""

    def __init__(self, alpha: float = 0.0) -> None:
        """`alpha` stays fixed; 0: it is adapted, from FIRST_ALPHA on."""
        self.alpha = alpha or FIRST_ALPHA
        self._adapts = not alpha
        self._moment_a: Float64 = np.zeros(len(ALPHAS))
        self._seen = 0

    def add(self, probability_r: Float64, weight_r: Float32, norm_r: Float32, *, alpha: float) -> None:
        """Take in fresh scores.

        Args:
            probability_r: (r,) n p_i by the scores as they were before these, mixed with `alpha`.
            weight_r: (r,) weights that the rows were drawn with.
            norm_r: (r,) fresh norms.
            alpha: of those rates; an older one than the present, perhaps.
        """
        if not self._adapts:
            return
        share_r = (probability_r - alpha) / (1 - alpha)
        alpha_a = np.array(ALPHAS)[:, None]
        mixed_ar = (1 - alpha_a) * np.maximum(share_r, 0.0) + alpha_a
        square_r = weight_r.astype(np.float64) * norm_r.astype(np.float64) ** 2
        moment_a = (square_r / mixed_ar).mean(axis=1)
        if not np.isfinite(moment_a).all():
            return
        self._seen += 1
        self._moment_a += max(1 / self._seen, 1 / MEMORY) * (moment_a - self._moment_a)
        best = int(self._moment_a.argmin())
        if self._seen >= MEMORY // 4 and self._moment_a[best] < MARGIN * self._moment_a[ALPHAS.index(self.alpha)]:
            self.alpha = ALPHAS[best]
