"""Options of the command line that examples share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer


def chosen_of(names: Sequence[str] | None, all_names: Iterable[str]) -> list[str]:
    """Those of `all_names` that were asked for, or all where none was.

    Raises:
        typer.BadParameter: a name that is none of them.
    """
    known = list(all_names)
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return list(names or known)
