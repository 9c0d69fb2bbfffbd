"""A sampling service for deep-learning training. Start with `sampler.py`."""

__version__ = "0.1.0"
