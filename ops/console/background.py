"""Run what the sections do in the background, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from paywarden.ops.console.pages import Section

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_END_S = 10.0


@contextmanager
def running(sections: Sequence[Section]) -> Iterator[None]:
    """Run the background work of sections while the block runs. Work that raises an error begins again."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_again, args=(work, stop), name=section.name, daemon=True)
        for section in sections
        for work in section.background
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        # All together have this long: what does not end is a daemon, and loses nothing that it confirmed.
        deadline = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.warning("background work of the section %s did not end in %.0f s", thread.name, _END_S)
        for section in sections:
            section.close()


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
