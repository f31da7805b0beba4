"""The decorators of compiled functions. features/kernel/toolkit/machine_code.py keeps the machine code between starts.

    @inlined      for a short function that only compiled code calls: it becomes part of its caller
    @compiled()   for any other function

Compiled code takes its constants from compiled sources alone: the files of this package, and files that import this
module. After a change of a constant in another file, the kept machine code would still hold the old number. A test
checks where each constant comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit
from numba.core.types import unliteral

from paywarden.features.kernel.toolkit.machine_code import KeptCode, source_of

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(*, releases_gil: bool = False, makes_arrays: bool = False) -> Callable[[_Function], _Function]:
    """Compile a function.

    `releases_gil` lets other threads run Python during the call; it costs about 100 ns a call.
    `makes_arrays` is for a function that makes arrays, for instance from addresses. Without it numba does not count
    references. Counting them atomically, for each array passed to another function, took two thirds of the kernel's
    time.
    """
    options: dict[str, Any] = {} if makes_arrays else {"_nrt": False}
    return lambda function: _made(function, nogil=releases_gil, **options)


def inlined(function: _Function) -> _Function:
    """Compile a function into its callers. A call with three arrays takes longer than most of these functions run."""
    return _made(function, _nrt=False, forceinline=True)


def _made(function: _Function, **options: Any) -> _Function:
    assert source_of(function), (
        f"{function.__code__.co_filename} must import the decorator from paywarden.features.kernel.toolkit.jit"
    )
    # Division by zero gives inf or NaN, as in NumPy. A function that wants something else checks first.
    dispatcher: Any = njit(error_model="numpy", **options)(function)
    dispatcher._cache = KeptCode(function)
    dispatcher.get_call_template = _for_any_value(dispatcher.get_call_template)
    made: _Function = dispatcher
    return made


def _for_any_value(template_of: Callable[..., Any]) -> Callable[..., Any]:
    """Make compiled callers that give a constant call the code for any value.

    numba would compile the function once more for each constant: `read_columns` nine times more. An inlined function
    sees the constant all the same, as soon as it is part of its caller.
    """
    return lambda args, kws: template_of([*map(unliteral, args)], {name: unliteral(kws[name]) for name in kws})
