"""Run the background work of the sections, each in a thread of its own.

If Kafka or a database does not answer, the work itself says so on the pages. Any other error is a bug: the log has it,
the work begins again, and the pages say so meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from paywarden.ops.console.pages import Missing, Section
from paywarden.ops.times import now_ms

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_END_S, _CLOSE_S = 5.0, 3.0
# Work that fails again and again does so at least this often. Without a failure for this long it is well.
_WELL_AFTER_MS = 60_000


class Failures:
    """The background work that has ended with an error lately, by the name of its section. Thread-safe."""

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        # Since when it fails, and when it failed last.
        self._times: dict[str, tuple[int, int]] = {}

    def note(self, name: str) -> None:
        """Note that work has ended with an error."""
        now = self._clock()
        since_ms, last_ms = self._times.get(name, (now, now))
        self._times[name] = (since_ms if now - last_ms < _WELL_AFTER_MS else now), now

    def missing(self) -> list[Missing]:
        """Returns the entries about its failures for the top of each page."""
        now = self._clock()
        return [
            Missing(
                f"The background work of the section {name}",
                since_ms,
                "it ends with an error and begins again; the operators find it in the console's log",
                "Its pages may be old, or not complete.",
            )
            for name, (since_ms, last_ms) in sorted(self._times.items())
            if now - last_ms < _WELL_AFTER_MS
        ]

    def section(self) -> Section:
        """Returns a section without pages, by which all pages say it."""
        return Section("background", "", "", (), missing=self.missing)


@contextmanager
def running(
    sections: Sequence[Section], stop: threading.Event | None = None, failures: Failures | None = None
) -> Iterator[None]:
    """Run the background work of sections while the block runs. Work that raises an error begins again.

    `failures` remembers that.

    `stop` ends the work before the block ends: while the last requests are answered, for instance. Work that goes on
    for some seconds after the block's end is left to the end of the process: it loses nothing that it confirmed.
    """
    stop, failures = stop or threading.Event(), failures or Failures()
    threads = [
        _started(section.name, partial(_again, work, stop, partial(failures.note, section.name)))
        for section in sections
        for work in section.background
    ]
    try:
        yield
    finally:
        stop.set()
        _join(threads, _END_S, "background work")
        # A database may wait for a query of a request that was cut off.
        _join([_started(section.name, section.close) for section in sections], _CLOSE_S, "the close")


def _started(name: str, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread], timeout_s: float, what: str) -> None:
    """Wait until threads end: all together have `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _log.warning("%s of the section %s did not end in %g s", what, thread.name, timeout_s)


def _again(work: Callable[[threading.Event], None], stop: threading.Event, failed: Callable[[], None]) -> None:
    while not stop.is_set():
        try:
            work(stop)
        except Exception:  # noqa: BLE001
            # The top of a thread: without it a bug would end the work without a word.
            _log.exception("background work of the console has failed, and begins again")
            failed()
            stop.wait(_RETRY_S)
        else:
            return
