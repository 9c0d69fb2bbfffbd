"""Random generators made from a position, so that there is no generator state to save."""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the randomness is for; streams of one position are independent."""

    ORDER = 1
    KEEP = 2
    STRATA = 3
    DRAW = 4
    SCORES = 5
    PLACES = 6


def position_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """64 bits for one rank's choices at one step, made elsewhere."""
    digest = hashlib.blake2b(struct.pack("<QQQQ", seed, epoch, step, rank), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(stream: Stream, *, seed: int, epoch: int, position: int = 0) -> np.random.Generator:
    """The generator of one purpose at one place: `position` examples into the epoch.

    The seed comes last because it alone may exceed 32 bits, and SeedSequence joins the 32-bit words of its
    list: anywhere else a long seed would collide with another position's words.
    """
    return np.random.default_rng([stream, epoch, position, seed])
