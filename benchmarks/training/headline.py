"""The figures that are followed over time, out of the tables' rows.

Every figure is of one method that was named before the runs were made: the best of several, chosen afterwards, would
flatter us by their luck. A figure is missing when its runs are, and None when the runs are there and miss its
condition. "Reached" is first reached, medians over the seeds; accuracy is reached 0.2 points below the median accuracy
that shuffled runs end with.

What figures are divided by:

- Steps and seconds to shuffle's final training loss: by shuffle's whole run, at whose end that loss is by definition.
- Steps to shuffle's accuracy on the long tail: by shuffle's own steps to it. Shuffle gets there before its end, too;
  over its whole run the figure would flatter every method.
- InfoBatch's share: examples backpropagated in the whole run over shuffle's whole run, if the accuracy at the end is
  at most 0.2 points lower. Epochs that leave examples out and full ones at the end go together; what is saved is known
  only there. The rows have the other variant too, to the accuracy over shuffle's own examples to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

POINTS = 0.002
"""0.2 points of accuracy: what counts as no worse"""

OURS_LOSSLESS = "infobatch"
"""our policy that leaves examples out; its peer, `infobatch (peer)`, stands beside it"""

OURS_FAST = "two_stage"
"""our policy for fewer steps"""

OURS_ROBUST = "trimmed_loss"
"""our policy for wrong labels"""

NAIVE = ("importance", "selective_backprop")
"""our policies that prefer hard examples, wrong labels among them"""

NOTES = (
    "steps_ and seconds_: two_stage to shuffle's final training loss, over shuffle's whole run, where that loss is; "
    "seconds_cifar_cnn only where two_stage's final test accuracy is at most 0.2 points below shuffle's",
    "infobatch_backprops_: policy infobatch's share of shuffle's backpropagated examples, whole runs, only where its "
    "final test accuracy is at most 0.2 points below shuffle's; infobatch_peer_backprops_: the authors' method in "
    "process, in the same way",
    "longtail_steps: two_stage's steps over shuffle's own to the same accuracy, 0.2 points below shuffle's final one",
    "noise40_accuracy: trimmed_loss's final test accuracy less shuffle's; noise40_naive: the same of the better one of "
    "importance and selective_backprop, noise40_naive_ of each",
    "clean_overhead: seconds of policy auto over a plain DataLoader's, early in training where nothing is gained",
)


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures whose runs are there."""
    row_of = {(row["task"], row["method"]): row for row in rows}
    figures: dict[str, float | None] = {}

    def put(name: str, task: str, method: str, column: str, *, no_worse: bool = False) -> None:
        row = row_of.get((task, method))
        if row is not None:
            figures[name] = None if no_worse and not is_no_worse(row["accuracy_gap"]) else row[column]

    put("steps_mnist_mlp", "mnist_mlp-clean", OURS_FAST, "steps_to_loss")
    put("seconds_mnist_mlp", "mnist_mlp-clean", OURS_FAST, "seconds_to_loss")
    put("seconds_cifar_cnn", "cifar_cnn-clean", OURS_FAST, "seconds_to_loss", no_worse=True)
    put("cifar_cnn_accuracy_gap", "cifar_cnn-clean", OURS_FAST, "accuracy_gap")
    for name in ("mnist_mlp", "cifar_cnn"):
        for who, method in (("infobatch", OURS_LOSSLESS), ("infobatch_peer", f"{OURS_LOSSLESS} (peer)")):
            put(f"{who}_backprops_{name}", f"{name}-clean", method, "backpropagated", no_worse=True)
    put("longtail_steps", "mnist_mlp-longtail", OURS_FAST, "steps_to_accuracy")
    put("noise40_accuracy", "mnist_mlp-noise40", OURS_ROBUST, "accuracy_gap")
    for method in NAIVE:
        put(f"noise40_naive_{method}", "mnist_mlp-noise40", method, "accuracy_gap")
    naive = [figures.get(f"noise40_naive_{method}") for method in NAIVE]
    known = [gap for gap in naive if gap is not None]
    if len(known) == len(NAIVE):
        figures["noise40_naive"] = max(known)
    put("clean_overhead", "cifar_cnn_short-clean", "auto", "seconds")
    return figures


def is_no_worse(accuracy_gap: float | None) -> bool:
    """Whether a final accuracy less shuffle's is above what counts as worse; None: it has none."""
    return accuracy_gap is not None and accuracy_gap >= -POINTS - 1e-9
