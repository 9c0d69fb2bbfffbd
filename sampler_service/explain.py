"""Why an example was drawn as often as it was, in sentences. Pure."""

from __future__ import annotations

import math

from sampler_service.leases import Chosen
from sampler_service.types import StratifiedDraw, Sweep
from sampler_service.views import ExampleView

_ABOUT = 0.05
"""rates this near to 1 are called even"""


def explain(
    example: ExampleView, chosen: Chosen | None, *, examples: int, num_examples: int, loss_rank: float
) -> list[str]:
    """Sentences on what is known of an example, how it is drawn, and what that led to.

    Args:
        example: which.
        chosen: the present rates; None before the first batch.
        examples: handed out so far, of all.
        num_examples: of the run.
        loss_rank: share of the reported examples whose loss is lower; NaN when it was never reported.
    """
    if chosen is None:
        return ["No trainer has asked for a batch yet, so nothing was drawn."]
    return [_known(example, loss_rank), *_rate(example, chosen, num_examples), _drawn(example, examples, num_examples)]


def _known(example: ExampleView, loss_rank: float) -> str:
    if math.isnan(example.loss) and math.isnan(example.norm):
        return "No trainer has reported it yet, so it is drawn as unknown examples are."
    parts = []
    if not math.isnan(example.loss):
        parts.append(f"its loss was {example.loss:.3g}, higher than that of {loss_rank:.0%} of the reported examples")
    if not math.isnan(example.norm):
        parts.append(f"its gradient had the norm {example.norm:.3g}")
    ago = "" if math.isnan(example.age_steps) else f" {example.age_steps:,.0f} steps ago"
    return f"When it was last reported{ago}, {' and '.join(parts)}."


def _rate(example: ExampleView, chosen: Chosen, num_examples: int) -> list[str]:
    policy, rates = chosen.policy, chosen.rates
    said = [f"The policy in use is {policy}" + (f" ({chosen.reason})." if chosen.reason else ".")]
    if isinstance(rates, Sweep):
        weight = float(rates.weight_n[example.example_id])
        if example.rate < 1:
            said.append(
                f"An epoch keeps it with probability {example.rate:.2f}, and then its loss has the weight {weight:.2f}."
            )
        elif rates.score_n is None:
            said.append("Every epoch visits every example once, in random order, and so this one.")
        else:
            said.append(f"It must be among the {rates.top_fraction:.0%} of highest score where its turn comes.")
        return said
    if isinstance(rates, StratifiedDraw) and chosen.size_k is not None:
        stratum = int(rates.stratum_n[example.example_id])
        said.append(
            f"Its cluster has {chosen.size_k[stratum] / num_examples:.2%} of the examples and gets "
            f"{rates.rate_k[stratum]:.2%} of each batch."
        )
    if abs(example.rate - 1) <= _ABOUT:
        said.append("It is drawn about as often as by uniform draws.")
    else:
        said.append(
            f"It is drawn {example.rate:.2g} times as often as by uniform draws, and its loss is weighted by "
            f"{1 / example.rate:.2g} in return."
        )
    return said


def _drawn(example: ExampleView, examples: int, num_examples: int) -> str:
    expected = examples / num_examples
    if example.drawn:
        times = "once" if example.drawn == 1 else f"{example.drawn:,} times"
        return (
            f"It was handed out {times}, last in epoch {example.last_epoch}; the average example {expected:.2g} times."
        )
    if expected * example.rate > 50 or example.rate <= 0:
        chance = "next to nothing"
    else:
        chance = f"{math.exp(-expected * example.rate):.2g}"
    return (
        f"It was never handed out so far; the average example was {expected:.2g} times. Had all draws been "
        f"independent and at its present rate, the chance of that is {chance}."
    )
