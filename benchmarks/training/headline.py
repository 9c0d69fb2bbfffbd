"""The figures that are followed over time, out of the tables' rows.

Every figure is of one method that was named before the runs were made: the best of several, chosen afterwards, would
flatter us by their luck. Exceptions: what has the method in its name, `infobatch_backprops_`, whose second budget was
added after the first one's runs, and `noise40_naive`, the better of two that it stands against. A figure is missing
when its runs are, and None when the runs are there and miss its condition. "Reached" is first reached, medians over the
seeds; what runs end with are means. Accuracy is reached 0.2 points below the mean accuracy that shuffled runs end with.
What is about a training loss is of the learning rates that are best for it, of either method; all else is of those that
are best for accuracy.

What figures are divided by:

- Steps and seconds to shuffle's final training loss: by shuffle's whole run, at whose end that loss is by definition.
- Steps to shuffle's accuracy on the long tail: by shuffle's own steps to it. Shuffle gets there before its end, too;
  over its whole run the figure would flatter every method.
- Share of backpropagated examples: whole runs over shuffle's whole run, if the accuracy at the end is at most 0.2
  points lower. two_stage has half of the steps for it, or else 0.6 of them, with a learning rate that falls as much
  sooner; InfoBatch leaves examples out of epochs. Shuffle with as few steps stands beside them: what it loses is what
  these save.
- Backpropagated examples until shuffle's accuracy is first reached: over shuffle's whole run, for all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.training.methods import SHORTER

POINTS = 0.002
"""0.2 points of accuracy: what counts as no worse"""

OURS_FAST = "two_stage"
"""our policy for fewer steps, with unbiased weights: lossless in InfoBatch's sense, too"""

SAVERS = {"policy_": "infobatch", "peer_": "infobatch (peer)"}
"""methods that leave examples out of a whole run, by their place in a figure's name"""

FIRST = {"two_stage": OURS_FAST, "infobatch_peer": "infobatch (peer)", "shuffle": "shuffle"}
"""methods of which is said when they first reach shuffle's accuracy, likewise"""

OURS_ROBUST = "trimmed_loss"
"""our policy for wrong labels"""

OURS_HARD = "selective_backprop"
"""our policy that prefers hard examples and has no weights: it stands beside two_stage on the long tail, where it did
what two_stage, which was named before the runs, did not"""

NAIVE = ("importance", "selective_backprop")
"""our policies that prefer hard examples, wrong labels among them"""

NOTES = (
    "steps_ and seconds_: two_stage to shuffle's final training loss, over shuffle's whole run, where that loss is; "
    "seconds_cifar_cnn only where the same runs' final test accuracy is at most 0.2 points below shuffle's",
    "infobatch_backprops_: examples backpropagated by two_stage, our lossless policy, in a run of half the steps, or "
    "else of 0.6 of them, over those of shuffle's whole run; infobatch_peer_backprops_, infobatch_policy_backprops_: "
    "the same of InfoBatch in process, whose last epoch is a full one, and of our policy of that name, which prunes "
    "in epochs that begin before 7/8 of the run. All only where the final test accuracy is at most 0.2 points below "
    "shuffle's; shuffle_accuracy_gap_, two_stage_accuracy_gap_: what either loses with half and with 0.6 of the "
    "steps. Candidates that are only scored do not count, they are among forwarded",
    "backprops_to_accuracy_: examples backpropagated until shuffle's final test accuracy less 0.2 points is first had, "
    "over those of shuffle's whole run, for every method alike",
    "longtail_steps: two_stage's steps over shuffle's own to the same accuracy, 0.2 points below shuffle's final one; "
    "longtail_steps_selective_backprop: the same of that policy, which was put beside it after the runs were seen",
    "noise40_accuracy: trimmed_loss's final test accuracy less shuffle's; noise40_naive: the same of the better one of "
    "importance and selective_backprop, noise40_naive_ of each; of those that did not stand aside in every run",
    "clean_overhead: seconds of policy auto over a plain DataLoader's, early in training where nothing is gained: the "
    "median of three pairs of runs, from seconds_least to seconds_most in the rows",
)


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures whose runs are there."""
    row_of = {(row["task"], row["method"]): row for row in rows}
    figures: dict[str, float | None] = {}

    def put(name: str, task: str, method: str, column: str, *, no_worse: str = "") -> None:
        row = row_of.get((task, method))
        if row is not None:
            figures[name] = None if no_worse and not is_no_worse(row[no_worse]) else row[column]

    put("steps_mnist_mlp", "mnist_mlp-clean", OURS_FAST, "steps_to_loss")
    put("seconds_mnist_mlp", "mnist_mlp-clean", OURS_FAST, "seconds_to_loss")
    put("seconds_mnist_mlp_opened", "mnist_mlp-clean", OURS_FAST, "seconds_to_loss_opened")
    put("seconds_cifar_cnn", "cifar_cnn-clean", OURS_FAST, "seconds_to_loss", no_worse="fitted_accuracy_gap")
    put("cifar_cnn_accuracy_gap", "cifar_cnn-clean", OURS_FAST, "fitted_accuracy_gap")
    for name in ("mnist_mlp", "cifar_cnn"):
        for who, method in SAVERS.items():
            put(f"infobatch_{who}backprops_{name}", f"{name}-clean", method, "backpropagated", no_worse="accuracy_gap")
        for shorter, share in SHORTER.items():
            for method in ("shuffle", OURS_FAST):
                put(f"{method}_accuracy_gap_{name}_{share:g}", f"{name}-clean", method + shorter, "accuracy_gap")
        for who, method in FIRST.items():
            put(f"backprops_to_accuracy_{name}_{who}", f"{name}-clean", method, "backprops_to_accuracy_of_run")
    put("longtail_steps", "mnist_mlp-longtail", OURS_FAST, "steps_to_accuracy")
    put(f"longtail_steps_{OURS_HARD}", "mnist_mlp-longtail", OURS_HARD, "steps_to_accuracy")
    put("noise40_accuracy", "mnist_mlp-noise40", OURS_ROBUST, "accuracy_gap")
    for method in NAIVE:
        if not row_of.get(("mnist_mlp-noise40", method), {}).get("same_runs_as"):  # it stood aside, and shuffled
            put(f"noise40_naive_{method}", "mnist_mlp-noise40", method, "accuracy_gap")
    put("clean_overhead", "cifar_cnn_short-clean", "auto", "seconds")
    return figures | _of_several(row_of, figures)


def _of_several(
    row_of: Mapping[tuple[str, str], dict[str, Any]], figures: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Figures that are the least or the most of more than one run's."""
    found: dict[str, float | None] = {}
    for name in ("mnist_mlp", "cifar_cnn"):
        tried = [row_of[key] for end in SHORTER if (key := (f"{name}-clean", OURS_FAST + end)) in row_of]
        enough = [row["backpropagated"] for row in tried if is_no_worse(row["accuracy_gap"])]
        if tried:
            found[f"infobatch_backprops_{name}"] = min(enough, default=None)
    naive = [gap for method in NAIVE if (gap := figures.get(f"noise40_naive_{method}")) is not None]
    if naive:
        found["noise40_naive"] = max(naive)
    return found


def is_no_worse(accuracy_gap: float | None) -> bool:
    """Whether a final accuracy less shuffle's is above what counts as worse; None: it has none."""
    return accuracy_gap is not None and accuracy_gap >= -POINTS - 1e-9
