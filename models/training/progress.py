"""How training and backtests report their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Entered with what begins and its number of trainings; what it yields is told how many more are done.
TrainingProgress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@contextmanager
def no_progress(_what: str, _steps: int) -> Iterator[Callable[[int], object]]:
    """A Progress that nobody sees."""
    yield lambda _count: None
