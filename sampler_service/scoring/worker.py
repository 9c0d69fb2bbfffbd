"""A scorer's model: takes published weights strictly, reads records, runs forward, and checks what comes out.

Shapes: r rows, d sketch length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.factories import find_factory
from sampler_service.scoring import Scoring
from sampler_service.types import Float32, Int64, Scored


def make_scorer(factory: str, dataset: str, num_examples: int, sketch_dim: int) -> ModelScorer:
    """What scores a dataset, by the operator's factory.

    Raises:
        ConfigError: the factory does not score this dataset, or what it returns does not fit it.
    """
    scoring = find_factory("--scoring", factory)(dataset)
    if scoring is None:
        raise ConfigError(f"{factory} returned None: dataset {dataset!r} is not scored here")
    if not isinstance(scoring, Scoring):
        raise ConfigError(f"{factory} returned a {type(scoring).__name__}, expected a Scoring or None")
    known = len(scoring.records) if hasattr(scoring.records, "__len__") else num_examples
    if known < num_examples:  # they may have grown since the run was opened
        raise ConfigError(
            f"the records of {factory} are {known}, dataset {dataset!r} has {num_examples} examples; record i must be "
            "example i of the trainer's dataset"
        )
    return ModelScorer(scoring, sketch_dim)


class ModelScorer:
    """A `scorers.RowScorer` over a torch model.

    Args:
        scoring: the operator's.
        sketch_dim: d, length of the sketches of the default scorer.
    """

    def __init__(self, scoring: Scoring, sketch_dim: int) -> None:
        from torch.utils.data import default_collate

        from sampler_client.pytorch.two_stage.scorer import LastLayerScorer

        self.batch_size = scoring.batch_size
        self._sketch_dim = sketch_dim
        self._model = scoring.model
        self._records = scoring.records
        self._collate = scoring.collate_fn or default_collate
        self._score = scoring.scorer or LastLayerScorer(scoring.model, sketch_dim=sketch_dim)

    def load(self, weights: bytes) -> None:
        """Take a safetensors file; every key of the model must be there, in its shape, and no other.

        Raises:
            ConfigError: it is none, or does not fit; the model keeps what it had.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        from sampler_client.pytorch.projection import unwrapped

        try:
            tensors = load(weights)
        except SafetensorError as error:
            raise ConfigError(f"{len(weights)} bytes are no safetensors file: {error}") from error
        model = unwrapped(self._model)
        wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        _check_fit(
            {name: tuple(value.shape) for name, value in tensors.items()},
            {name: tuple(value.shape) for name, value in wanted.items()},
        )
        model.load_state_dict(tensors, strict=True)
        self._model.eval()  # in training mode a forward pass would move the statistics of batch norms

    def score(self, example_ids: Int64) -> Scored:
        """Read, collate, and run forward.

        Raises:
            ConfigError: the scorer returned something else than one score for each record.
            Exception: what records, collate function or scorer raise.
        """
        import torch
        from torch.utils._pytree import tree_map

        from sampler_client.pytorch.two_stage.scorer import Scores

        ids = example_ids.tolist()
        many = getattr(self._records, "__getitems__", None)
        item = self._collate(many(ids) if many is not None else [self._records[i] for i in ids])
        device = next((value.device for value in self._model.parameters()), None)
        if device is not None and device.type != "cpu":
            item = tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, item)
        with torch.no_grad():
            scores = self._score(item)
        if not isinstance(scores, Scores):
            scores = Scores(norms=scores)
        return Scored(
            norms=_array(scores.norms, "norms", len(ids)),
            sketches=None
            if scores.sketches is None
            else _array(scores.sketches, "sketches", len(ids), self._sketch_dim),
        )


def _array(values: Any, what: str, *shape: int) -> Float32:
    """float32 on the CPU, of this shape."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array = np.asarray(values, np.float32)
    if array.shape != shape:
        raise ConfigError(f"the scorer returned {what} of shape {array.shape}, expected {shape}")
    return array


Shapes = Mapping[str, tuple[int, ...]]


def _check_fit(given: Shapes, wanted: Shapes) -> None:
    """Raise ConfigError, naming the first keys at fault, unless the weights are those of the model."""
    faults = [
        _first("lack", sorted(wanted.keys() - given.keys())),
        _first("have, unknown to the model,", sorted(given.keys() - wanted.keys())),
        _first(
            "have of another shape",
            [
                f"{name} {given[name]}, the model's is {wanted[name]}"
                for name in sorted(given.keys() & wanted.keys())
                if given[name] != wanted[name]
            ],
        ),
    ]
    words = "; they ".join(filter(None, faults))
    if words:
        raise ConfigError(
            f"the published weights don't fit the scoring model: they {words}. Let the scoring factory build the model "
            "as the trainer does"
        )


def _first(what: str, names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}"
