"""Planning: rates in, the rows of every rank at every step out. Pure numpy; start with `plan.py`."""

from __future__ import annotations

from sampler_service.planning.plan import Planner

__all__ = ["Planner"]
