"""Figures as scalars in TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath

from sampler_client.errors import ConfigError


class TensorBoardWriter:
    """Writes the figures of a FigureLogger into a folder that TensorBoard reads.

    Args:
        log_dir: of the event files; the one that the training's own curves go to shows both together.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"TensorBoardWriter needs tensorboard ({error}); pip install 'gradient-sampler[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(fspath(log_dir))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Add a scalar per figure, and make sure that they can be seen: they come seldom."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
