"""When Python looks for garbage in a stream worker.

A batch of payments is some hundred thousand objects that all go by reference count when it ends. Python's default is to
look through the youngest of them after every 700, and through everything there is again and again while a batch grows:
measured, a third of a worker's time. What was made at the start stays, so it is set aside; and the looks come once in
a batch or so, which is often enough for the few objects that refer to each other.
"""

from __future__ import annotations

import gc

# Objects made and not yet gone before the youngest are looked through: about a batch of 2,000 payments.
_YOUNG_MAX = 100_000
# Looks at the youngest for one at those that lived on, and of these for one at everything.
_YOUNG_FOR_MIDDLE, _MIDDLE_FOR_OLD = 50, 100


def settle_collection() -> None:
    """Set aside what is there and look rarely from now on. Once, when a process has made what it works with."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, _YOUNG_FOR_MIDDLE, _MIDDLE_FOR_OLD)
