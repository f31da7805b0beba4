"""End a process in order, and within a time limit.

    SIGTERM or SIGINT ──┐
                        ├─► `stop` is set, the countdown begins ─► the process ends by itself, or the watch ends it
    a part has failed ──┘

An orderly stop can hang: a library may swallow a cancellation, a store may not answer, a thread may not return. A
separate thread therefore watches the time. At the deadline it writes one line to stderr and ends the process with exit
status 1, whatever the other threads do.

The watch does not depend on the main thread: the interpreter's C code writes the number of a signal to a pipe, and the
thread reads that pipe.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

from paywarden.schemas.errors import PaywardenError

_log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# The time limit until the settings are read.
TIMEOUT_S: Final = 20.0
# The time limit after the work is done: the interpreter joins threads and closes clients.
TIDY_UP_S: Final = 2.0
# Wakes the watch because the deadline has changed. It is not the number of a signal.
_WAKE_UP: Final = b"\0"
_STDERR: Final = 2


class ProcessEnd:
    """A context around all the work of a process. Enter it once, in the main thread.

    An error that leaves the block ends the process with one line on stderr and exit status 1.
    """

    def __init__(self, name: str, exit_now: Callable[[int], object] = os._exit) -> None:
        """`name` names the process in messages. Tests replace `exit_now`."""
        self.stop = threading.Event()
        """Set when the process must end."""
        self.timeout_s = TIMEOUT_S
        """How long the end may take in seconds, from the first signal or failure."""
        self._name, self._exit_now = name, exit_now
        self._failure: BaseException | None = None
        self._deadline: float | None = None
        self._is_done = self._is_told = False
        self._lock = threading.Lock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._watch_thread = threading.Thread(target=self._watch, name="process-end", daemon=True)

    def __enter__(self) -> ProcessEnd:
        self._watch_thread.start()
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _on_first_signal)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # A cancellation is not an Exception, but here it counts as a failure.
        has_failed = error is not None and not isinstance(error, SystemExit | KeyboardInterrupt)
        self.begin(error if has_failed else None)
        # The failure is told within the time limit of the end: on a busy machine that takes longer than to tidy up.
        self._tell_failure()
        self.work_is_done()
        if has_failed:
            sys.exit(1)

    def begin(self, failure: BaseException | None = None) -> None:
        """Begin the end. Only the first `failure` is reported. Any thread may call this."""
        with self._lock:
            is_first = failure is not None and self._failure is None
            self._failure = self._failure or failure
            if self._deadline is None:
                self._deadline = time.monotonic() + self.timeout_s
        self.stop.set()
        self._wake_up()
        # Here and not where the end is told: the log may wait for its reader, and the watch must not.
        if is_first and not isinstance(failure, PaywardenError):
            _log.error("a bug ended the %s", self._name, exc_info=failure)

    def work_is_done(self) -> None:
        """Note that only threads and clients remain to be closed. They get 2 s, and a timeout is not reported."""
        with self._lock:
            self._is_done = True
            deadline = time.monotonic() + TIDY_UP_S
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        self._wake_up()

    def _wake_up(self) -> None:
        # If the pipe is full, the thread is awake already.
        with suppress(BlockingIOError):
            os.write(self._writer, _WAKE_UP)

    def _watch(self) -> None:
        signals_seen = 0
        while True:
            wait_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._reader], [], [], wait_s)[0]:
                break
            signals = [number for number in os.read(self._reader, 64) if number in SIGNALS]
            signals_seen += len(signals)
            if signals_seen > 1:
                # A second signal ends the main thread, unless it is stuck.
                self._exit_now(128 + signals[-1])
                return
            if signals:
                self.begin()
        self._end()

    def _end(self) -> None:
        if self._failure is None and not self._is_done:
            _write_line(
                f"paywarden: the {self._name} did not stop within {self.timeout_s:g} s and is ended; "
                "its work in flight is abandoned"
            )
        self._tell_failure()
        self._exit_now(0 if self._failure is None and self._is_done else 1)

    def _tell_failure(self) -> None:
        with self._lock:
            is_told, self._is_told = self._is_told, True
        failure = self._failure
        if is_told or failure is None:
            return
        if isinstance(failure, PaywardenError):
            _write_line(f"paywarden: {failure}")
        else:
            _write_line(f"paywarden: a bug ended the {self._name}: {_described(failure)}")


def _on_first_signal(_: int, __: FrameType | None) -> None:
    """Restore the default handlers: a second signal ends the process at once. The watch has seen the first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _described(error: BaseException) -> str:
    """Returns the error's type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _write_line(line: str) -> None:
    """Write a line to stderr, unless its pipe stays full for 1 s: that must not delay the end."""
    if select.select([], [_STDERR], [], 1.0)[1]:
        os.write(_STDERR, f"{line}\n".encode())
