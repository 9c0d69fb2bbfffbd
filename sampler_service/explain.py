"""Why an example was drawn as often as it was, in sentences. Pure."""

from __future__ import annotations

import math

from sampler_service.leases import Chosen
from sampler_service.types import StratifiedDraw, Sweep
from sampler_service.views import ExampleView

_ABOUT = 0.05
"""rates this near to 1 are called even"""


def explain(
    example: ExampleView,
    chosen: Chosen | None,
    *,
    examples: int,
    num_examples: int,
    deleted: bool = False,
    loss_rank: float,
    recovered: bool = False,
) -> list[str]:
    """Sentences on what is known of an example, how it is drawn, and what that led to.

    Args:
        example: which.
        chosen: the present rates; None before the first batch.
        examples: handed out so far, of all; candidates of a second stage among them.
        num_examples: of the run that were not deleted.
        deleted: it was.
        loss_rank: share of the reported examples whose loss is lower; NaN when it was never reported.
        recovered: its counts began anew when the run was taken up again.
    """
    if deleted:
        times = "never" if not example.drawn else "once" if example.drawn == 1 else f"{example.drawn:,} times"
        return [f"It was deleted from its data set, and is drawn no more; before, that happened {times}."]
    if chosen is None:
        return ["No trainer has asked for a batch yet, so nothing was drawn."]
    since = " since the service took the run up again" if recovered else ""
    drawn = _drawn(example, examples / num_examples, since)
    return [_known(example, loss_rank), *_rate(example, chosen, num_examples), drawn]


def _known(example: ExampleView, loss_rank: float) -> str:
    if math.isnan(example.loss) and math.isnan(example.norm):
        return "No trainer has reported it yet, so it is drawn as unknown examples are."
    parts = []
    if not math.isnan(example.loss):
        lower = "hardly any" if loss_rank < 0.005 else "nearly all" if loss_rank >= 0.995 else f"{loss_rank:.0%}"
        parts.append(f"its loss was {example.loss:.3g}, higher than that of {lower} of the reported examples")
    if not math.isnan(example.norm):
        parts.append(f"its gradient had the norm {example.norm:.3g}")
    steps = "1 step" if example.age_steps == 1 else f"{example.age_steps:,.0f} steps"
    ago = "" if math.isnan(example.age_steps) else f" {steps} ago"
    return f"When it was last reported{ago}, {' and '.join(parts)}."


def _rate(example: ExampleView, chosen: Chosen, num_examples: int) -> list[str]:
    policy, rates = chosen.policy, chosen.rates
    said = [f"The policy in use is {policy}" + (f" ({chosen.reason})." if chosen.reason else ".")]
    if isinstance(rates, Sweep):
        return [*said, _turn(example, rates)]
    if isinstance(rates, StratifiedDraw) and chosen.size_k is not None:
        stratum = int(rates.stratum_n[example.example_id])
        said.append(
            f"Its cluster has {chosen.size_k[stratum] / num_examples:.2%} of the examples and gets "
            f"{rates.rate_k[stratum]:.2%} of each batch."
        )
    even = abs(example.rate - 1) <= _ABOUT
    times = "about as often" if even else f"{example.rate:.2g} times as often"
    if chosen.candidates > 1:
        said.append(
            f"It is proposed {times} as by uniform draws, as one of {chosen.candidates} candidates for each example of "
            "a batch. The trainer scores the candidates and draws from them by what it finds; the loss of what it "
            "keeps is weighted for both draws."
        )
    elif even:
        said.append("It is drawn about as often as by uniform draws.")
    else:
        said.append(
            f"It is drawn {times} as by uniform draws, and its loss is weighted by {1 / example.rate:.2g} in return."
        )
    return said


def _turn(example: ExampleView, rates: Sweep) -> str:
    """How a sweep treats it."""
    if rates.score_n is not None:
        return (
            f"It must be among the {rates.top_fraction:.0%} of highest score where its turn comes; by its present "
            f"score it is so in {example.rate:.0%} of the epochs."
        )
    if example.rate < 1:
        weight = float(rates.weight_n[example.example_id])
        return f"An epoch keeps it with probability {example.rate:.2f}, and then its loss has the weight {weight:.2f}."
    return "Every epoch visits every example once, in random order, and so this one."


def _drawn(example: ExampleView, expected: float, since: str) -> str:
    """What came of it; `expected` is how often the average example was handed out."""
    if example.drawn:
        times = "once" if example.drawn == 1 else f"{example.drawn:,} times"
        return (
            f"It was handed out {times}{since}, last in epoch {example.last_epoch}; the average example "
            f"{expected:.2g} times."
        )
    if expected * example.rate > 50 or example.rate <= 0:
        chance = "next to nothing"
    else:
        chance = f"{math.exp(-expected * example.rate):.2g}"
    return (
        f"It was never handed out{since or ' so far'}; the average example was {expected:.2g} times. Had all draws "
        f"been independent and at its present rate, the chance of that is {chance}."
    )
