"""Options of a command that exclude each other."""

from __future__ import annotations

import click


def at_most_one(**chosen: object) -> None:
    """Raise UsageError if the command line has more than one of these options, each named as on the command line."""
    names = [f"--{name.replace('_', '-')}" for name, value in chosen.items() if value]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)} exclude each other")


def require_with(option: str, *, is_there: object, **others: object) -> None:
    """Raise UsageError if an option stands without the option that it belongs to."""
    if not is_there and (names := [f"--{name.replace('_', '-')}" for name, value in others.items() if value]):
        raise click.UsageError(f"{names[0]} needs {option}")
