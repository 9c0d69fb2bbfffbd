"""How examples choose a learning rate: the ones that are tried, and the seed of the runs that they are judged by."""

from __future__ import annotations

RATES = (0.02, 0.05, 0.1, 0.2)
"""that are tried where an example names none of its own"""
TUNING_SEED = 1_000_003
"""no run of a comparison has it"""
