"""What the demo's examples look like; the service finds it by its name:

sampler-service up --previews trainer_examples.previews:digits
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer_examples.data import load, with_duplicates


def digits(dataset: str) -> Callable[[int], NDArray[np.uint8]] | None:
    """Training images of scikit-learn's digits, or of the set with copies, dark on light; None for other datasets."""
    originals = load()
    for data in (originals, with_duplicates(originals)):
        if dataset == data.slug:
            return lambda example_id, images=data.train.tensors[0]: _picture(images[example_id, 0].numpy())
    return None


def _picture(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values (h, w) from 0 to 255, each a square that can be seen."""
    dark = (image - image.min()) / max(float(np.ptp(image)), 1e-9)
    return (255 * (1 - dark)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
