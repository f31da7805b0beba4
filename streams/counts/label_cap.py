"""Limit how many names are counted apart. A new name that finds no place waits until another name has been idle.

The caller keeps a dictionary of the names and the newest time each was seen:

    places = 2, idle_ms = 60 minutes     {m1: 12:00, m2: 12:50}
    m3 at 12:55    no place: counted together with other names
    m3 at 13:01    m1 was last seen more than 60 minutes ago, so m3 takes its place
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Name = TypeVar("_Name")


def has_place(newest_ms: Mapping[_Name, int], name: _Name, at_ms: int, *, places: int, idle_ms: int) -> bool:
    """Whether a name is counted apart or may be: a place is free, or a name unseen for `idle_ms` gives up its place."""
    return name in newest_ms or len(newest_ms) < places or min(newest_ms.values()) < at_ms - idle_ms


def take_place(newest_ms: dict[_Name, int], name: _Name, at_ms: int, *, places: int) -> None:
    """Note that a name was seen. If all places are taken, it takes the place of the name unseen for longest."""
    if name not in newest_ms and len(newest_ms) >= places:
        del newest_ms[min(newest_ms, key=newest_ms.__getitem__)]
    newest_ms[name] = max(newest_ms.get(name, 0), at_ms)
