"""Run blocking work in a thread of its own, as a service of the app: started with the app, stopped with it.

The work is never started again within the process. After an exception nobody knows its state, so the process ends. The
supervisor of the host's processes (systemd, Kubernetes) starts a new one, which begins at the committed offsets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

import mode

from paywarden.schemas.errors import TemporaryFailure


class Supervised(Protocol):
    """The work that a `SupervisedThread` runs."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then finish or abandon the work in flight. Raises if it cannot go on."""

    def problems(self) -> Sequence[str]:
        """Return why it is not ready, one line each; empty if it is. Called in another thread; must not block."""

    def turns(self) -> bool:
        """Return whether it makes rounds, and does not hang. Called in another thread; must not block."""


class SupervisedThread(mode.Service):
    """The thread of one `Supervised`. If it ends before it is asked to, it calls `on_end` once.

    `on_end` is called in the event loop, with the exception.
    """

    logger = logging.getLogger("faust.services")

    def __init__(
        self,
        supervised: Supervised,
        *,
        name: str,
        stop_timeout_s: float,
        on_end: Callable[[BaseException], None],
        **options: Any,
    ) -> None:
        self._supervised, self._name = supervised, name
        self._stop_timeout_s, self._on_end = stop_timeout_s, on_end
        self._stop_event = threading.Event()
        # The exception is the result, not the future's exception, so nobody has to fetch it.
        self._ended: Future[BaseException | None] = Future()
        # A running future cannot be cancelled, though the tasks that wait for it can.
        self._ended.set_running_or_notify_cancel()
        # A daemon thread, so it does not hold up the end of the process if it does not stop in time.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        super().__init__(**options)

    def problems(self) -> Sequence[str]:
        """Return why it is not ready, one line each; empty if it is."""
        if self._thread.ident is None or self._ended.done():
            return [f"the {self._name} is not running"]
        return self._supervised.problems()

    @property
    def live(self) -> bool:
        """Whether it has not ended and does not hang."""
        return not self._ended.done() and (self._thread.ident is None or self._supervised.turns())

    async def on_start(self) -> None:
        """Start the thread."""
        loop = asyncio.get_running_loop()
        # A callback, not a task that waits: a cancelled task would never report the end.
        self._ended.add_done_callback(lambda ended: self._tell(loop, ended.result()))
        self._thread.start()

    async def on_stop(self) -> None:
        """Ask the work to stop, and wait. Raises TemporaryFailure if it does not end in time, or its own late error."""
        self._stop_event.set()
        if self._thread.ident is None:
            return
        try:
            error = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._ended)), self._stop_timeout_s)
        except TimeoutError:
            raise TemporaryFailure(
                f"the {self._name} did not stop within {self._stop_timeout_s:g} s; its work in flight is abandoned"
            ) from None
        if error is not None:
            raise error

    def _work(self) -> None:
        try:
            self._supervised.run(self._stop_event)
        except BaseException as error:  # noqa: BLE001  # handed over whole, not handled
            self._ended.set_result(error)
        else:
            self._ended.set_result(None)

    def _tell(self, loop: asyncio.AbstractEventLoop, error: BaseException | None) -> None:
        """Report the end of the work; called in its thread."""
        if not self._stop_event.is_set():
            error = error or RuntimeError(f"the {self._name} ended without being asked to")
            # The loop may be closed: the process is ending.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_end, error)
