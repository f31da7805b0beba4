"""Run what the sections do in the background, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from paywarden.ops.console.pages import Section

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_END_S, _CLOSE_S = 5.0, 3.0


@contextmanager
def running(sections: Sequence[Section], stop: threading.Event | None = None) -> Iterator[None]:
    """Run the background work of sections while the block runs. Work that raises an error begins again.

    `stop` ends the work before the block ends: while the last requests are answered, for instance. Work that goes on
    for some seconds after the block's end is left to the end of the process: it loses nothing that it confirmed.
    """
    stop = stop or threading.Event()
    threads = [
        _started(section.name, partial(_again, work, stop)) for section in sections for work in section.background
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


def _again(work: Callable[[threading.Event], None], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            work(stop)
        except Exception:  # noqa: BLE001
            # The top of a thread: without it a bug would end the work without a word.
            _log.exception("background work of the console has failed, and begins again")
            stop.wait(_RETRY_S)
        else:
            return
