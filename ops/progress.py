"""Progress bars on stderr, where that is a terminal; elsewhere nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar for work whose size is known. Yields what is told of every part that is done."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def scan_bar(what: str) -> Iterator[Callable[[int, int | None], object]]:
    """A bar for a scan of a store. Yields a features.store.ScanProgress; without an expected total it only moves."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda count, expected: bar.update(task, completed=count, total=expected)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
