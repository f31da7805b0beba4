"""So many names counted apart and no more: a name that comes when all places are taken waits until one is idle.

What is known is one dictionary, name by name the newest time it was seen, which its owner keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Name = TypeVar("_Name")


def has_place(newest_ms: Mapping[_Name, int], name: _Name, at_ms: int, *, places: int, idle_ms: int) -> bool:
    """Whether a name is or may be counted apart: there is a place, or one not seen for `idle_ms` gives its own."""
    return name in newest_ms or len(newest_ms) < places or min(newest_ms.values()) < at_ms - idle_ms


def take_place(newest_ms: dict[_Name, int], name: _Name, at_ms: int, *, places: int) -> None:
    """Note that a name was seen; where all places are taken, it takes that of the one not seen for longest."""
    if name not in newest_ms and len(newest_ms) >= places:
        del newest_ms[min(newest_ms, key=newest_ms.__getitem__)]
    newest_ms[name] = max(newest_ms.get(name, 0), at_ms)
