"""Something that blocks, run in a thread of its own as a service of the app: started with it, stopped with it.

It is never started again within the process. What has raised is in a state that nobody knows; the process ends,
and whoever supervises processes on the host (systemd, Kubernetes) starts a new one from what is committed.
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
    """What a `SupervisedThread` runs."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then finish or abandon what is in flight. Raises when it cannot go on."""

    def problems(self) -> Sequence[str]:
        """Why it is not ready, one line each; empty when it is. Asked from another thread, and must not block."""


class SupervisedThread(mode.Service):
    """The thread of one `Supervised`. It reports once, by `on_end`, if it ends before it is asked to.

    `on_end` is called in the event loop, with what was raised.
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
        # With what was raised; as a value, which nobody has to fetch.
        self._ended: Future[BaseException | None] = Future()
        # One that runs cannot be cancelled, as those who wait for it can.
        self._ended.set_running_or_notify_cancel()
        # A daemon: one that does not stop in time must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        super().__init__(**options)

    def problems(self) -> Sequence[str]:
        """Why it is not ready."""
        if self._thread.ident is None or self._ended.done():
            return [f"the {self._name} is not running"]
        return self._supervised.problems()

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.done()

    async def on_start(self) -> None:
        """Start the thread."""
        loop = asyncio.get_running_loop()
        # Not a task that waits: a task can be cancelled, and then nobody would hear of the end.
        self._ended.add_done_callback(lambda ended: self._tell(loop, ended.result()))
        self._thread.start()

    async def on_stop(self) -> None:
        """Ask it to stop and wait. Raises TemporaryFailure when it does not end in time, and what it raised late."""
        self._stop_event.set()
        if self._thread.ident is None:
            return
        try:
            error = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._ended)), self._stop_timeout_s)
        except TimeoutError:
            raise TemporaryFailure(
                f"the {self._name} did not stop within {self._stop_timeout_s:g} s; what it had in flight is abandoned"
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
        """Called in the thread, at its end."""
        if not self._stop_event.is_set():
            error = error or RuntimeError(f"the {self._name} ended without being asked to")
            # The loop may be closed: the process is ending.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_end, error)
