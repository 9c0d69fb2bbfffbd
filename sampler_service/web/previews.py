"""What an example looks like: the operator's source of thumbnails and texts, or else the records that are held.

sampler-service up --previews my_package.previews:of

def of(dataset: str):
    images = np.load(f"/data/{dataset}.npy", mmap_mode="r")
    return lambda example_id: images[example_id]
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sampler_service.errors import ConfigError

THUMBNAIL = 128
"""pixels of the longer side that are sent, at most"""

LOOK_AGAIN_S = 10.0
"""after which a dataset without previews is looked at again"""

TEXT = 2000
"""characters that are sent, at most"""


@dataclass(frozen=True, slots=True)
class Preview:
    """What is sent to a browser."""

    media_type: str
    data: bytes


Source = Callable[[int], Any]
"""example_id -> a text, an encoded image (bytes), a PIL image, or an array of uint8: (h, w), (h, w, 3) or (h, w, 4)"""

Looks = Callable[[str], Source | None]
"""(dataset) -> its source; None: there is nothing to see of this dataset"""


class Previews:
    """Previews of all datasets, made when they are asked for.

    Args:
        factories: the first one that has a source for a dataset counts.
    """

    def __init__(self, *factories: Looks) -> None:
        self._factories = factories
        self._sources: dict[str, tuple[Source | None, float]] = {}
        self._lock = threading.Lock()

    def has(self, dataset: str) -> bool:
        """Whether there is a source. One that fails says why when it is asked for a preview."""
        try:
            return self._source(dataset) is not None
        except Exception:  # whatever the operator's code raises
            return True

    def of(self, dataset: str, example_id: int) -> Preview | None:
        """The preview of an example, or None when its dataset has no previews.

        Raises:
            ConfigError: the operator's source failed, or gave what can't be shown.
        """
        try:
            source = self._source(dataset)
            return None if source is None else _preview(source(example_id))
        except Exception as error:  # whatever the operator's code raises
            raise ConfigError(
                f"the preview of example {example_id} of {dataset!r} failed: {type(error).__name__}: {error}"
            ) from error

    def _source(self, dataset: str) -> Source | None:
        with self._lock:  # a factory may read for long: once is enough
            source, until = self._sources.get(dataset, (None, 0.0))
            if source is None and time.monotonic() > until:  # it may be ingested meanwhile
                source = next((found for make in self._factories if (found := make(dataset)) is not None), None)
                self._sources[dataset] = source, time.monotonic() + LOOK_AGAIN_S
            return source


def _preview(shown: Any) -> Preview:
    if isinstance(shown, str):
        return Preview("text/plain; charset=utf-8", shown[:TEXT].encode())
    if isinstance(shown, bytes):
        shown = Image.open(io.BytesIO(shown))
    elif isinstance(shown, np.ndarray):
        if shown.dtype != np.uint8 or shown.ndim not in (2, 3):
            raise TypeError(f"an array of {shown.dtype} {shown.shape}; uint8 (h, w), (h, w, 3) or (h, w, 4) is needed")
        shown = Image.fromarray(shown)
    if not isinstance(shown, Image.Image):
        raise TypeError(f"a {type(shown).__name__}; a text, an image or an array is needed")
    # A copy: the image is the operator's, and `thumbnail` works in place.
    image = shown.copy() if shown.mode in ("L", "RGB", "RGBA") else shown.convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return Preview("image/png", encoded.getvalue())
