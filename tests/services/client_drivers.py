"""The drivers of our clients (ops/clients), ready to run: the programs that tests and benchmarks talk to.

ops/clients/SPECIFICATION.md says what a driver reads and prints.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from tests.checkout import CHECKOUT

CLIENTS = CHECKOUT / "ops" / "clients"
_ANSWER_TIMEOUT_S = 120.0


def _python(kind: str) -> Sequence[str]:
    # -S: no package but the standard library's, as where Paywarden is not installed.
    return [sys.executable, "-S", str(CLIENTS / "python" / "driver.py"), kind]


DRIVERS: Mapping[str, Callable[[], Sequence[str]]] = {
    "python": lambda: _python("threads"),
    "python-asyncio": lambda: _python("asyncio"),
}
"""How to run each client's driver, by the client's name. A function raises ServiceMissing where a tool is missing."""


class Driver:
    """A running driver. Leaving the `with` block ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        # All that it has printed.
        self.printed: list[str] = []
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *, timeout_s: float = _ANSWER_TIMEOUT_S, **line: Any) -> dict[str, Any]:
        """Send a line, and returns the line that answers it."""
        self.tell(**line)
        return self._next(self._answers, timeout_s)

    def tell(self, **line: Any) -> None:
        """Send a line without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Returns the answer to the next line that was told."""
        return self._next(self._answers, timeout_s)

    def event(self) -> dict[str, Any]:
        """Returns the next event, which may be there already."""
        return self._next(self._events, _ANSWER_TIMEOUT_S)

    def drop_events(self) -> None:
        """Forget the events so far."""
        while not self._events.empty():
            self._events.get()

    def _next(self, lines: queue.Queue[dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        found = lines.get(timeout=timeout_s)
        assert "ended" not in found, f"the driver has ended: {''.join(self._errors)[-2000:]}"
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self.printed.append(text)
            line = json.loads(text)
            (self._events if "event" in line else self._answers).put(line)
        self._readers[1].join()
        for lines in (self._answers, self._events):
            lines.put({"ended": True})

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += self._process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for reader in self._readers:
            reader.join()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
