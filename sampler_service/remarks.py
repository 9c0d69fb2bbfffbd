"""What is found out again and again is logged now and then."""

from __future__ import annotations

import logging
import time

AGAIN_S = 600.0
"""after which the same is said once more"""


class Remarks:
    """Warnings of whoever looks at the same things all the time.

    Args:
        log: where they go.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def warn(self, message: str, *args: object) -> None:
        """Log a warning, unless it was logged in the last AGAIN_S."""
        text, now = message % args, time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now < at + AGAIN_S}
        if text not in self._said:
            self._said[text] = now
            self._log.warning("%s", text)
