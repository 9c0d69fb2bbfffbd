"""Messages as JSON-safe values, for scripts and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message


def plain(value: Any) -> Any:
    """A message, or values with messages among them, as dictionaries, lists, numbers and texts.

    With all fields of a message, and None for NaN and infinity, which JSON has not. (Protobuf's own JSON writes both,
    and whole numbers of 64 bits, as texts.)
    """
    if isinstance(value, Message):
        return {
            field.name: plain(getattr(value, field.name))
            for field in value.DESCRIPTOR.fields
            if not field.has_presence or value.HasField(field.name)
        }
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
