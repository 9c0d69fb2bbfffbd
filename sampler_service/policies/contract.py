"""What every policy promises, and the rule for setting one aside. Shapes: n examples."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Protocol

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.types import NEVER, NO_CLUSTER, Bool, Int64, Rates, Sweep, TableView

Kind = Literal["sweep", "draw"]

_WORDS = {
    "loss": "losses",
    "norm": "gradient norms",
    "cluster": "clustered sketches",
    "reference_loss": "reference losses",
    "alignment": "sketches that were compared with held-out ones",
}


class Policy(Protocol):
    """A rule that turns what is known about the examples into rates.

    A policy is a frozen dataclass of its hyper-parameters, checked when it is made. It promises:

    - `rates` is pure: no clock, no generator, no state; the same view gives the same rates.
    - Rates are finite and cover every example of the view; examples of which nothing is known get rates too.
    - Rates follow the examples, not their row numbers: permuting the view permutes the rates.
    - Keep and draw probabilities are positive: no example is lost for ever, unless its score keeps it out.
    - When `unbiased`, the weights undo the rates. For draws the expected value of sum(w_i g_i) / b over a
      batch is the mean gradient; for sweeps the expected value of sum(w_i g_i) over an *epoch* is the sum
      over all examples.
    """

    name: ClassVar[str]
    """How a run asks for the policy."""
    needs: ClassVar[frozenset[str]]
    """Columns without which the policy is blind: some of loss, norm, cluster, reference_loss, alignment."""
    kind: ClassVar[Kind]
    """What it returns when it does not stand aside."""
    min_coverage: ClassVar[float]
    """Default share of examples with fresh columns below which a run shuffles instead."""

    @property
    def unbiased(self) -> bool:
        """Whether the weights undo the rates (see above)."""
        ...

    def rates(self, view: TableView, *, progress: float) -> Rates:
        """Rates for every example of `view`; `progress` is the share of the planned epochs done, 0 … 1."""
        ...

    def aside(self, view: TableView) -> str:
        """Why `rates` would return plain shuffling for this view, in words; "" when the policy acts."""
        ...


def shuffled(num_examples: int) -> Sweep:
    """Every example once, weight 1: the rates of plain shuffling."""
    return Sweep(keep_n=np.ones(num_examples), weight_n=np.ones(num_examples, dtype=np.float32))


def known(view: TableView, need: str) -> Bool:
    """(n,) bool: which examples have the column `need`."""
    if need == "cluster":
        return view.cluster_n != NO_CLUSTER
    if need == "reference_loss":
        reference_n = view.reference_loss_n
        return np.zeros(len(view), dtype=bool) if reference_n is None else np.isfinite(reference_n)
    if need == "alignment":
        alignment_n = view.alignment_n
        return np.zeros(len(view), dtype=bool) if alignment_n is None else np.isfinite(alignment_n)
    return np.isfinite(view.loss_n if need == "loss" else view.norm_n)


def steps(view: TableView, need: str) -> Int64:
    """(n,) trainer steps at which the column `need` was taken, NEVER where it was not."""
    step_n = view.step_n
    if need in ("norm", "cluster", "alignment") and view.gradient_step_n is not None:
        step_n = view.gradient_step_n
    if need == "alignment" and view.alignment_step is not None:
        return np.minimum(step_n, view.alignment_step)  # of the sketch that was compared, not of one that came later
    return step_n


def coverage(view: TableView, needs: frozenset[str], *, max_age: int | None) -> float:
    """Share of examples, 0 … 1, that have every needed column from a report at most `max_age` steps old.

    `max_age=None` accepts any age. A reference loss has no age. Without needs the coverage is 1.
    """
    ready_n = np.ones(len(view), dtype=bool)
    for need in needs:
        ready_n &= known(view, need)
        if max_age is not None and need != "reference_loss":
            step_n = steps(view, need)
            ready_n &= (step_n != NEVER) & (view.step - step_n <= max_age)
    return float(ready_n.mean())


def choose(
    policy: Policy, view: TableView, *, min_coverage: float | None, max_age: int | None, progress: float
) -> tuple[Rates, str]:
    """The policy's rates and "", or shuffling's rates and the reason in words.

    Args:
        min_coverage: share of examples whose columns must be fresh; None takes the policy's own default.
        max_age: in trainer steps; None accepts any age.
        progress: share of the run's planned epochs done, 0 … 1.
    """
    wanted = policy.min_coverage if min_coverage is None else min_coverage
    fresh = coverage(view, policy.needs, max_age=max_age)
    if fresh < wanted:
        what = " and ".join(_WORDS[need] for need in sorted(policy.needs))
        # Rounded away from each other, so that the sentence never says "50 % …, needs 50 %".
        have, need = math.floor(100 * fresh), math.ceil(100 * wanted)
        return shuffled(len(view)), f"shuffle: {have} % of {what} are fresh, {policy.name} needs {need} %"
    rates = policy.rates(view, progress=progress)
    why = policy.aside(view) if isinstance(rates, Sweep) else ""
    return rates, f"shuffle: {why}" if why else ""


def check_within(policy: str, option: str, value: float, interval: str, *, whole: bool = False) -> None:
    """Raise ConfigError unless `value` lies in `interval`, written as in mathematics: "[0, 1)", "(0, inf)", and is a
    `whole` number if it must be one."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ConfigError(f"policy {policy!r}: option {option!r} must lie in {interval}, got {value!r}")
    if whole and value != int(value):
        raise ConfigError(f"policy {policy!r}: option {option!r} must be a whole number, got {value!r}")
