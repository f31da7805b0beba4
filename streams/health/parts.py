"""Run the parts of a process, each in a thread of its own, until the process must end.

    main thread   ──► starts a thread for each part, waits for `stop`, waits for the threads
    a part        ──► works until `stop` is set

No part is started again within the process. After an exception nobody knows its state, so the first part that raises,
or ends before it is asked to, ends the process. The supervisor of the host's processes (systemd, Kubernetes) starts a
new one. If a part does not stop, streams/health/process_end.py ends the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from paywarden.streams.health.process_end import ProcessEnd


class Part(Protocol):
    """The work of one thread."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then finish or abandon the work in flight. Raises if it cannot go on."""

    def problems(self) -> Sequence[str]:
        """Return why it is not ready, one line each; empty if it is. Called in another thread; must not block."""

    def turns(self) -> bool:
        """Return whether it makes rounds, and does not hang. Called in another thread; must not block."""


class Periodic:
    """A part that acts every `every_s` seconds."""

    def __init__(self, every_s: float, act: Callable[[], object]) -> None:
        self._every_s, self._act = every_s, act

    def run(self, stop: threading.Event) -> None:
        """Act until `stop` is set. Raises what the act raises."""
        while not stop.wait(self._every_s):
            self._act()

    def problems(self) -> Sequence[str]:
        """Return nothing: it is ready at once."""
        return ()

    def turns(self) -> bool:
        """Return True: an act waits for a store or for Kafka, and each of them has a time limit."""
        return True


class Parts:
    """The parts of a process by name. It is the HealthReport of the process."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        self._started = self._stopping = False
        self._failure: BaseException | None = None

    def run(self, end: ProcessEnd) -> None:
        """Run all parts until `end.stop` is set, or one of them fails. Raises the first failure."""
        threads = [
            threading.Thread(target=self._work, args=(name, part, end), name=name, daemon=True)
            for name, part in self._parts.items()
        ]
        for thread in threads:
            thread.start()
        self._started = True
        end.stop.wait()
        self._stopping = True
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def live(self) -> bool:
        """Whether nothing has failed, and no part hangs."""
        return self._failure is None and (self._stopping or all(part.turns() for part in self._parts.values()))

    def problems(self) -> Sequence[str]:
        """Return why the process is not ready, one line each; empty if it is."""
        found = ["the process is stopping"] if self._stopping else []
        if not self._started:
            found.append("its parts have not started")
        return [*found, *(problem for part in self._parts.values() for problem in part.problems())]

    def _work(self, name: str, part: Part, end: ProcessEnd) -> None:
        try:
            part.run(end.stop)
        except BaseException as error:  # noqa: BLE001  # raised by `run`, in the main thread
            self._fail(error, end)
        else:
            if not end.stop.is_set():
                self._fail(RuntimeError(f"the {name} ended without being asked to"), end)

    def _fail(self, error: BaseException, end: ProcessEnd) -> None:
        if self._failure is None:
            self._failure = error
        end.begin(error)
