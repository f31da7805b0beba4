"""How training and backtests report their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Called with the name of a piece of work and its number of steps. The context yields a function that is called with the
# number of further steps done.
TrainingProgress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@contextmanager
def no_progress(_what: str, _steps: int) -> Iterator[Callable[[int], object]]:
    """A TrainingProgress that shows nothing."""
    yield lambda _count: None
