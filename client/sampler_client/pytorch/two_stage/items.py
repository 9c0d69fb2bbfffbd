"""Collated items, whatever the DataLoader yields: brought to a device, and cut down to the examples that were kept.

Shapes: c examples of the item.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from sampler_client.errors import ConfigError


def take_rows(item: Any, index: torch.Tensor, size: int) -> Any:
    """`item` with only the rows `index` of each of its tensors, arrays and lists of `size` examples.

    Tuples, named tuples, lists and mappings are walked through; numbers, strings and None stay as they are.

    Raises:
        ConfigError: a tensor or array whose first dimension is not the batch.
    """
    if isinstance(item, torch.Tensor):
        if item.ndim == 0:
            return item
        _check(item.shape, size)
        return item[index.to(item.device)]
    if isinstance(item, np.ndarray):
        _check(item.shape, size)
        return item[index.cpu().numpy()]
    if isinstance(item, Mapping):
        taken = {key: take_rows(value, index, size) for key, value in item.items()}
        return _alike(item, taken)
    if isinstance(item, list | tuple):
        arrays = [entry for entry in item if isinstance(entry, torch.Tensor | np.ndarray)]
        fields = arrays and all(entry.ndim > 0 and len(entry) == size for entry in arrays)
        if len(item) == size and not fields:  # one entry for each example
            rows = [item[place] for place in index.tolist()]
        else:
            rows = [take_rows(entry, index, size) for entry in item]
        return type(item)(*rows) if hasattr(item, "_fields") else type(item)(rows)
    if item is None or isinstance(item, str | bytes | int | float | bool):
        return item
    raise ConfigError(
        f"two-stage selection cannot cut a {type(item).__name__} down to the examples kept; let collate_fn return "
        "tensors, arrays, lists, tuples or mappings"
    )


def to_device(item: Any, device: torch.device | None) -> Any:
    """The tensors of an item on `device`, so that the loop's own `.to(device)` finds nothing left to do."""
    if device is None or device.type == "cpu":
        return item
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        moved = {key: to_device(value, device) for key, value in item.items()}
        return _alike(item, moved)
    if isinstance(item, list | tuple):
        entries = [to_device(entry, device) for entry in item]
        return type(item)(*entries) if hasattr(item, "_fields") else type(item)(entries)
    return item


def _alike(item: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """A mapping of the same kind, such as the BatchEncoding of a tokenizer, which people read by attribute."""
    if not isinstance(item, MutableMapping):
        return values
    alike = copy.copy(item)
    alike.update(values)
    return alike


def _check(shape: tuple[int, ...], size: int) -> None:
    if not shape or shape[0] != size:
        raise ConfigError(
            f"two-stage selection found an array of shape {tuple(shape)} in a batch of {size} candidates: the first "
            "dimension must be the batch"
        )
