"""Which examples scorers should look at next: those whose fresh scores take the most variance off the draws.

The model. Draws have a chance p_i that follows the known score s_i, evened out by a uniform share. Since it was
taken, a score has drifted as a random walk of its logarithm, by sigma^2 a step, so the example's part in the second
moment of a draw, E[f_i^2] / p_i, is larger by the factor exp(2 sigma^2 a_i) = 1 + 2 sigma^2 a_i + … than what the draws
were made for; a_i is the score's age. With the weight w_i = s_i^2 / p_i what it costs per step grows as w_i a_i.

A refresh takes that off not once but at every step until the example's turn comes again, about as far ahead as the
last one lies back. So what a refresh of example i is expected to take off is

    benefit_i = w_i a_i (a_i + 1) / 2,    w_i = s_i^2 / p_i,    p_i = s_i / (2 sum(s)) + 1 / (2 n),

but for a factor that is the same for all. Always taking the largest makes an example's turns come at intervals that
go as 1 / sqrt(w_i), which minimises sum(w_i a_i) at a fixed number of scores; taking the largest w_i a_i would not.

Source: scores from other processes, and their age as what limits them, are Alain et al., "Variance Reduction in SGD
by Distributed Importance Sampling", arXiv 1511.06481; the benefit is Whittle's index for a cost that grows linearly
with age (Tripathi and Modiano, "A Whittle Index Approach to Minimizing Functions of Age of Information", 2019), with
the weights that follow from importance sampling; those are ours.

Shapes: n examples.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Bool, Float32, Float64, Int64

SMOOTHING = 0.1
"""of the mean score, added to every one: an example whose gradient was zero once is looked at again, if rarely"""


def benefits(score_n: Float32, age_n: Int64) -> Float64:
    """What a fresh score of each example is expected to take off the variance of draws, (n,), in a unit of its own.

    Args:
        score_n: (n,) known scores, at least 0; NaN where there is none: those come before all others, at the mean score
            and with the largest age.
        age_n: (n,) steps between the known score and the one that a scorer could give; what is not larger
            than 0 has no benefit.
    """
    known_n = np.isfinite(score_n)
    mean = float(score_n[known_n].mean(dtype=np.float64)) if known_n.any() else 0.0
    if mean <= 0:  # nothing tells the examples apart but their ages
        mean, size_n = 1.0, np.ones(len(score_n))
    else:
        size_n = np.where(known_n, score_n, mean).astype(np.float64) + SMOOTHING * mean
    chance_n = 0.5 * size_n / size_n.sum() + 0.5 / len(size_n)
    oldest = max(1, int(age_n[known_n].max(initial=1)))
    waited_n = np.where(known_n, np.maximum(age_n, 0), oldest).astype(np.float64)
    benefit_n = size_n**2 / chance_n * waited_n * (waited_n + 1) / 2
    if not known_n.all():
        benefit_n[~known_n] = max(float(benefit_n.max()), benefit_n[~known_n][0]) * 2
    return benefit_n


def most_beneficial(benefit_n: Float64, due_n: Bool, count: int, rng: np.random.Generator) -> Int64:
    """Ids of up to `count` examples of the largest benefit among those that are due, the largest first.

    Examples of equal benefit, as all are before the first scores, come in random order: sets are often sorted.
    """
    id_r = np.flatnonzero(due_n & (benefit_n > 0))
    rng.shuffle(id_r)
    benefit_r = benefit_n[id_r]
    if count < len(id_r):
        first_r = np.argpartition(-benefit_r, count)[:count]
        id_r, benefit_r = id_r[first_r], benefit_r[first_r]
    return id_r[np.argsort(-benefit_r, kind="stable")].astype(np.int64)
