"""Work in threads: the background work of the sections, values that take longer than a page may wait, and jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from paywarden.ops.console.page_rows import Missing, Section
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import PaywardenError, TemporaryFailure

_log = logging.getLogger(__name__)

Value = TypeVar("Value")
FAULT = "the console has made a fault: its log says more"
"""The text on a page about a bug in background work."""
_RETRY_S = 1.0
_END_S, _CLOSE_S = 5.0, 3.0
# Well below the 300 ms that a page may take.
_FIRST_WAIT_S = 0.15
_EFFECT = "Its pages may be old, or not complete."
# Work that fails again and again does so at least this often. Without a failure for this long it is well.
_WELL_AFTER_MS = 60_000
_JOBS_KEPT_MAX, _JOBS_WAITING_MAX = 20, 5
# How long the thread of jobs sleeps at most when nobody wants anything.
_LOOK_S = 2.0
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


class Failures:
    """The background work that has ended with an error lately: every page says so. Thread-safe."""

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        # Since when each section's work fails, and when it failed last.
        self._times: dict[str, tuple[int, int]] = {}

    def note(self, name: str) -> None:
        """Note that work has ended with an error."""
        now = self._clock()
        since_ms, last_ms = self._times.get(name, (now, now))
        self._times[name] = (since_ms if now - last_ms < _WELL_AFTER_MS else now), now

    def missing(self) -> list[Missing]:
        """Return the entries about failures for the top of each page."""
        now = self._clock()
        return [
            Missing(f"The background work of the section {name}", since_ms, FAULT, _EFFECT)
            for name, (since_ms, last_ms) in sorted(self._times.items())
            if now - last_ms < _WELL_AFTER_MS
        ]


@contextmanager
def running(
    sections: Sequence[Section], stop: threading.Event | None = None, failures: Failures | None = None
) -> Iterator[None]:
    """Run the background work of sections while the block runs. Work that raises an error begins again.

    `stop` ends the work before the block ends. Work that goes on for some seconds after the block's end is left to the
    end of the process: it loses nothing that it confirmed.
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


class Kept(Generic[Value]):
    """A value that `find` gives for a time, at most `old_ms` old while somebody asks. Thread-safe.

    A thread computes an old value again, and pages show the last one meanwhile. `found_ms`: when it was found, 0 for
    never. `trouble`: why it is not newer; "" if nothing is wrong.
    """

    def __init__(self, find: Callable[[int], Value], *, empty: Value, old_ms: int) -> None:
        self._find, self._old_ms = find, old_ms
        self.value, self.found_ms, self.trouble = empty, 0, ""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def known(self, now: int) -> Value:
        """Return the last value, and have it computed again if it is old. The first page waits a moment."""
        self.wake(now)
        self.wait(0.0 if self.found_ms else _FIRST_WAIT_S)
        return self.value

    def wake(self, now: int) -> None:
        """Have the value computed if it is old."""
        with self._lock:
            if now - self.found_ms >= self._old_ms and (self._thread is None or not self._thread.is_alive()):
                self._thread = _started("kept value", partial(self.step, now))

    def wait(self, timeout_s: float) -> None:
        """Wait until the value is computed, if it is being computed."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def step(self, now: int) -> None:
        """Find out once. An error is kept in `trouble`, and the value stays."""
        try:
            self.value, self.found_ms, self.trouble = self._find(now), now, ""
        except PaywardenError as error:
            self.trouble = str(error)
        except Exception:  # noqa: BLE001
            # The top of a thread. Without a word here pages would say that it is being found out.
            _log.exception("a value for the console's pages could not be found")
            self.trouble = FAULT


def remembered(find: Callable[[int], Value], old_ms: int) -> Callable[[int], Value]:
    """Return `find` with a memory of `old_ms`: every page asks for it. An error is not remembered."""
    known: list[tuple[int, Value]] = []

    def value(now: int) -> Value:
        if not known or not 0 <= now - known[0][0] < old_ms:
            known[:] = [(now, find(now))]
        return known[0][1]

    return value


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that a person has asked for. `done`: the share that is done. `problem`: why it failed."""

    by: str
    asked_ms: int
    state: str = WAITING
    done: float = 0.0
    problem: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in (DONE, FAILED, CANCELLED)


Asked = TypeVar("Asked", bound=Job)


class Jobs(Generic[Asked]):
    """Jobs of one kind by id, in memory: a console that starts again has none. Thread-safe. `work` is for a thread.

    One job runs at a time. The newest that are over stay to be looked at. `kind`: their name, in the plural.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._jobs: OrderedDict[str, Asked] = OrderedDict()
        self._lock, self._wake = threading.Lock(), threading.Event()

    def _run(self, job_id: str, job: Asked, now_ms: int, stop: threading.Event) -> Mapping[str, Any] | None:
        """Do a job; return the fields that its end changes, or None if it was stopped.

        It asks `_change` now and then whether somebody has cancelled the job.
        """
        raise NotImplementedError

    def _add(self, job_id: str, job: Asked) -> Asked:
        """Add a job, and return it. Raises TemporaryFailure if too many wait."""
        with self._lock:
            if sum(one.state == WAITING for one in self._jobs.values()) >= _JOBS_WAITING_MAX:
                raise TemporaryFailure(
                    f"{_JOBS_WAITING_MAX} {self._kind} wait already: cancel one of them, or ask again later"
                )
            self._jobs[job_id] = job
            over = [key for key, one in self._jobs.items() if one.is_over]
            for key in over[: max(0, len(self._jobs) - _JOBS_KEPT_MAX)]:
                del self._jobs[key]
        self._wake.set()
        return job

    def find(self, job_id: str) -> Asked | None:
        """Return a job; None if there is none of this id."""
        with self._lock:
            return self._jobs.get(job_id)

    def all(self) -> list[Asked]:
        """Return the jobs, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def cancel(self, job_id: str) -> bool:
        """End a job; return whether there was anything to end. A running one ends soon."""
        return self._change(job_id, state=CANCELLED)

    def _change(self, job_id: str, **values: Any) -> bool:
        """Change a job that is not over; return False for one that is, or that there is not."""
        with self._lock:
            found = self._jobs.get(job_id)
            if found is None or found.is_over:
                return False
            self._jobs[job_id] = replace(found, **values)
        return True

    def work(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set."""
        while not stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            while not stop.is_set() and self.step(now_ms(), stop):
                pass

    def step(self, now_ms: int, stop: threading.Event) -> bool:
        """Run the job that has waited longest, to its end or until `stop` is set; return whether there was one."""
        with self._lock:
            job_id = next((key for key, one in self._jobs.items() if one.state == WAITING), None)
        if job_id is None or not self._change(job_id, state=RUNNING):
            return False
        job = self.find(job_id)
        assert job is not None
        try:
            values = self._run(job_id, job, now_ms, stop)
        except PaywardenError as error:
            self._change(job_id, state=FAILED, problem=str(error))
        except Exception:
            # The top of the thread logs it. A job that nobody works on must not look as if it ran.
            self._change(job_id, state=FAILED, problem=FAULT)
            raise
        else:
            if values is not None:
                self._change(job_id, state=DONE, done=1.0, **values)
        return True
