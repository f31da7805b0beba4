"""Shows the progress of long work on stderr: a bar on a terminal, elsewhere a line now and then.

    features: 131,072 of 512,000 (26%), about 1 min 12 s left
    features: 512,000 done in 1 min 40 s

Without a terminal, work of less than five seconds prints nothing. Lines come every ten seconds at first. Later the
pause before a line is a fifth of the time so far: an hour's work prints about twenty lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

FIRST_LINE_S, LINE_EVERY_S = 5.0, 10.0
_PAUSE_SHARE = 0.2
# An estimate of the time left before this share of the work is done would be a guess.
_SHARE_TO_ESTIMATE = 0.05


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show the progress of work whose size is known. The function it yields takes the size of each part done."""
    console = _console()
    if not console.is_terminal:
        lines = ProgressLines(what, total, write=_to_stderr, clock=time.monotonic)
        yield lines.advance
        lines.finish()
        return
    with _bar(console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def scan_bar(what: str) -> Iterator[Callable[[int, int | None], object]]:
    """Show a bar for a scan of a store. Yields a paywarden.features.stores.base.ScanProgress.

    Without an expected total the bar only moves.
    """
    console = _console()
    with _bar(console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count, expected: bar.update(task, completed=count, total=expected)


class ProgressLines:
    """Progress for a log or a pipe: few lines, each whole. `clock` gives seconds."""

    def __init__(self, what: str, total: int, *, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._what, self._total, self._write, self._clock = what, total, write, clock
        self._done, self._has_written = 0, False
        self._started = clock()
        self._next_line = self._started + FIRST_LINE_S

    def advance(self, count: int) -> None:
        """Note that `count` more is done. Writes a line if one is due."""
        self._done += count
        now = self._clock()
        if now < self._next_line or self._done >= self._total:
            return
        took_s, share = now - self._started, self._done / self._total
        self._next_line, self._has_written = now + max(LINE_EVERY_S, took_s * _PAUSE_SHARE), True
        said = f"{self._what}: {self._done:,} of {self._total:,} ({share:.0%})"
        if share >= _SHARE_TO_ESTIMATE:
            left_s = took_s * (1 - share) / share
            said += f", about {spoken_duration(left_s)} left"
        self._write(said)

    def finish(self) -> None:
        """Write how long the work took, if a line was written before."""
        if self._has_written:
            took = spoken_duration(self._clock() - self._started)
            self._write(f"{self._what}: {self._done:,} done in {took}")


def spoken_duration(seconds: float) -> str:
    """Returns a duration as people read it: 45 s, 1 min 12 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _bar(console: Console, *, disable: bool = False) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=disable)
