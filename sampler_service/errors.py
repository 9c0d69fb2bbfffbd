"""Errors of the service. Every one says what happened, the value, and what to do.

SamplerError
├── ConfigError         an argument the caller must change
├── NotFound            no such dataset, run, policy or session: open or join it first
├── Conflict            it exists with another configuration, or the rank is taken
├── Stale               a version, position or call that does not fit the run or the service as it was started
├── Damaged             bytes that are not what they should be: a truncated file, an image that does not decode
├── Busy                back-pressure: try again later
└── Unavailable         an actor or the service is away: retry
"""

from __future__ import annotations


class SamplerError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(SamplerError, ValueError):
    """An argument is wrong; the message names it, its value and the choices."""


class NotFound(SamplerError, LookupError):
    """A dataset, run, policy or session that is not registered."""


class Conflict(SamplerError):
    """The name or rank exists already with something that differs."""


class Stale(SamplerError):
    """A saved position or version does not fit the run as it is now, or a call the service as it was started."""


class Damaged(SamplerError):
    """Bytes of a data set or of its source are not what they should be; the message names the file and the record."""


class Busy(SamplerError):
    """Too much is waiting; the caller should back off and retry."""


class Unavailable(SamplerError):
    """A part of the service did not answer in time; the message names which."""
