"""Models whose per-example gradients are known exactly, for the variance benchmark.

Gradients of linear layers are outer products, so the Gram matrix of all per-example gradients is exact
without forming any of them: <g_i, g_j> = sum over layers of (a_i . a_j)(delta_i . delta_j).

Shapes: n examples, f inputs of a layer (bias included), o outputs, d sketch length, b batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sampler_service.types import Float32, Float64, Int64

Layer = tuple[Float64 | Float32, Float64 | Float32]
"""inputs (n, f) with a column of ones, and output gradients (n, o), of one linear layer"""


@dataclass(frozen=True)
class Gradients:
    """Per-example gradients at one parameter vector, as factors of the linear layers."""

    layers: list[Layer]

    def gram(self) -> Float64:
        """(n, n) inner products of the exact gradients."""
        gram_nn = np.zeros((len(self.layers[0][0]),) * 2)
        for a, delta in self.layers:
            gram_nn += (a @ a.T) * (delta @ delta.T)
        return gram_nn

    def rows(self) -> Float32:
        """(n, p) the exact gradients themselves: for small models only."""
        parts = [np.einsum("nf,no->nfo", a, delta).reshape(len(a), -1) for a, delta in self.layers]
        return np.hstack(parts).astype(np.float32)

    def sketch(self, dim: int, seed: int) -> Float32:
        """(n, d) Khatri-Rao sketches, d^-1/2 sum over layers of (P a) o (Q delta), P and Q Gaussian."""
        rng, total_nd = np.random.default_rng(seed), 0.0
        for a, delta in self.layers:
            left_nd = a @ rng.standard_normal((a.shape[1], dim)).astype(a.dtype)
            total_nd = total_nd + left_nd * (delta @ rng.standard_normal((delta.shape[1], dim)))
        return np.asarray(total_nd / np.sqrt(dim), np.float32)


class RandomFeatures:
    """Binary softmax classifier on random ReLU features, labels from a random ReLU teacher (no noise).

    Setting of Faghri et al. (arXiv 2007.04532), after Mei and Montanari (arXiv 1908.05355): rows of all
    random weights have norm 1, inputs are standard normal; the teacher's threshold is its median, so that no
    seed is easy because one class is rare. Duplicates: the last r n examples are copies of the first five.
    """

    def __init__(self, num_examples: int, *, hidden: int = 1000, redundancy: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 1])
        input_ni = rng.standard_normal((num_examples, 100))
        teacher_no = np.maximum(input_ni @ _unit_rows(rng, 100, 100).T, 0.0) @ _unit_rows(rng, 2, 100).T
        excess_n = teacher_no[:, 1] - teacher_no[:, 0]
        label_n = (excess_n > np.median(excess_n)).astype(np.float64)
        if redundancy > 0:
            copies = round(redundancy * num_examples)
            source_n = np.arange(num_examples)
            source_n[num_examples - copies :] = np.arange(copies) % 5
            input_ni, label_n = input_ni[source_n], label_n[source_n]
        feature_nf = np.maximum(input_ni @ _unit_rows(rng, hidden, 100).T, 0.0)
        self.feature_nf = np.column_stack((feature_nf, np.ones(num_examples)))
        self.label_n = label_n
        self._weight_fo = np.zeros((hidden + 1, 2))
        self._weight_fo[:-1] = _unit_rows(rng, 2, hidden).T
        self._rng = rng

    def __len__(self) -> int:
        return len(self.label_n)

    def train(self, steps: int, *, rate: float, batch: int = 10, decay: float = 1e-4) -> None:
        """Plain SGD on i.i.d. batches."""
        for _ in range(steps):
            index_b = self._rng.integers(0, len(self), batch)
            gradient_fo = self.feature_nf[index_b].T @ self._delta(index_b) / batch
            self._weight_fo -= rate * (gradient_fo + decay * self._weight_fo)

    def accuracy(self) -> float:
        logit_no = self.feature_nf @ self._weight_fo
        return float(np.mean((logit_no[:, 1] > logit_no[:, 0]) == (self.label_n > 0.5)))

    def gradients(self) -> Gradients:
        """Without the weight decay, which is the same for every example."""
        return Gradients([(self.feature_nf, self._delta(np.arange(len(self))))])

    def _delta(self, index_b: Int64) -> Float64:
        logit_bo = self.feature_nf[index_b] @ self._weight_fo
        excess_b = 1.0 / (1.0 + np.exp(logit_bo[:, 0] - logit_bo[:, 1])) - self.label_n[index_b]
        return np.column_stack((-excess_b, excess_b))


class Perceptron:
    """A ReLU network under softmax cross-entropy, two hidden layers, SGD with momentum on shuffled epochs."""

    def __init__(self, input_nf: Float32, label_n: Int64, hidden: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 2])
        self._input_nf, self._label_n = input_nf, label_n
        widths = [input_nf.shape[1], hidden, hidden, int(label_n.max()) + 1]
        self._weights = []
        for inputs, outputs in pairwise(widths):
            bound = 1.0 / np.sqrt(inputs)  # torch's initialisation of a linear layer
            weight_fo = rng.uniform(-bound, bound, (inputs + 1, outputs))
            self._weights.append(weight_fo.astype(np.float32))
        self._velocity = [np.zeros_like(weight) for weight in self._weights]
        self._rng = rng
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._label_n)

    def train(self, steps: int, *, rate: float, batch: int = 128, momentum: float = 0.5, decay: float = 5e-4) -> None:
        for _ in range(steps):
            if len(self._order) < batch:
                self._order = self._rng.permutation(len(self))
            index_b, self._order = self._order[:batch], self._order[batch:]
            layers = self._layers(index_b)
            for (a, delta), weight, velocity in zip(layers, self._weights, self._velocity, strict=True):
                velocity *= momentum
                velocity += a.T @ delta / np.float32(batch) + np.float32(decay) * weight
                weight -= np.float32(rate) * velocity

    def accuracy(self) -> float:
        *_, (_, delta) = self._layers(np.arange(len(self)))
        return float(np.mean(delta[np.arange(len(self)), self._label_n] > -0.5))

    def gradients(self) -> Gradients:
        """Without the weight decay, which is the same for every example."""
        return Gradients([(a.astype(np.float64), g.astype(np.float64)) for a, g in self._layers(np.arange(len(self)))])

    def _layers(self, index_b: Int64) -> list[tuple[Float32, Float32]]:
        """Inputs and output gradients of every layer, for the sum of the losses."""
        ones_b1 = np.ones((len(index_b), 1), np.float32)
        inputs = [np.hstack((self._input_nf[index_b], ones_b1))]
        for weight in self._weights[:-1]:
            inputs.append(np.hstack((np.maximum(inputs[-1] @ weight, 0.0), ones_b1)))
        logit_bo = inputs[-1] @ self._weights[-1]
        delta = np.exp(logit_bo - logit_bo.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(index_b)), self._label_n[index_b]] -= 1.0
        deltas = [delta]
        for a, weight in zip(inputs[:0:-1], self._weights[:0:-1], strict=True):
            deltas.append((deltas[-1] @ weight[:-1].T) * (a[:, :-1] > 0))
        return list(zip(inputs, deltas[::-1], strict=True))


def images(path: Path | None, count: int) -> tuple[str, Float32, Int64]:
    """The first `count` MNIST images of a Parquet file, or scikit-learn's digits when there is no such file.

    Returns:
        the name of the data, pixels (n, f) float32 standardised as a whole, labels (n,) int64.
    """
    if path is not None and path.exists():
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=["image", "label"]).slice(0, count)
        pixel_nf = np.stack(table["image"].to_numpy()).astype(np.float32)
        name, label_n = "mnist", table["label"].to_numpy()
    else:
        from sklearn.datasets import load_digits

        pixel_nf, label_n = load_digits(return_X_y=True)
        pixel_nf, name = np.asarray(pixel_nf, np.float32), "digits"
    pixel_nf = (pixel_nf - pixel_nf.mean()) / pixel_nf.std()
    return name, pixel_nf, np.asarray(label_n, np.int64)


def _unit_rows(rng: np.random.Generator, rows: int, columns: int) -> Float64:
    weight = rng.standard_normal((rows, columns))
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)
