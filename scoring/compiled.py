"""How compiled functions of the scoring path are made; see features/kernel.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def inlined(function: _Function) -> _Function:
    """Compile into whatever calls it, and without reference counting."""
    options: dict[str, Any] = {"_nrt": False, "forceinline": True}
    compiled: _Function = njit(cache=True, error_model="numpy", **options)(function)
    return compiled
