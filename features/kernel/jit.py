"""Decorators for compiled functions. Machine code is kept between starts: features/kernel/machine_code.py.

    @inlined      a short function that only compiled code calls: it becomes part of its caller
    @compiled()   any other function

Compiled code takes its constants from compiled sources alone: the files of this package, and files that import this
module. A changed constant in another file would not be seen. A test checks where each one comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

from paywarden.features.kernel.machine_code import KeptCode, source_of

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(*, releases_gil: bool = False, makes_arrays: bool = False) -> Callable[[_Function], _Function]:
    """Compile a function.

    `releases_gil`: other threads run Python while it works; it takes some 100 ns a call. `makes_arrays`: the function
    makes arrays, for instance from addresses. Without it numba does not count references: counting the arrays that one
    function hands to another, atomically, took two thirds of the kernel's time.
    """
    options: dict[str, Any] = {} if makes_arrays else {"_nrt": False}
    return lambda function: _made(function, nogil=releases_gil, **options)


def inlined(function: _Function) -> _Function:
    """Compile a function into its callers: a call that hands on three arrays takes longer than most of these run."""
    return _made(function, _nrt=False, forceinline=True)


def _made(function: _Function, **options: Any) -> _Function:
    assert source_of(function), (
        f"{function.__code__.co_filename} must import the decorator from paywarden.features.kernel.jit"
    )
    # Division by zero gives what NumPy gives. Where that is not wanted, the function looks first.
    dispatcher: Any = njit(error_model="numpy", **options)(function)
    dispatcher._cache = KeptCode(function)
    made: _Function = dispatcher
    return made
