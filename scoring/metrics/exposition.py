"""The metrics of all workers as text, made by one process and read by the others.

    worker   /metrics ─► SharedRendering.text ─ one byte into the pipe ─► admin process: MetricsRenderer.publish
                               ▲                                                │ at most once a second
                               └───────────── metrics.txt ◄─────────────────────┘

To render takes some milliseconds, which payments would wait for. A worker therefore does not render: it asks the admin
process, and sends the text that this has written. A text that is younger than FRESH_S is sent as it is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.file_state import read_regular
from paywarden.scoring.metrics.shared_metrics import render

# The text is created again when it is older than this.
RENDER_EVERY_S = 1.0
# A worker asks for a new text when the last one is older than this. It is more than RENDER_EVERY_S, because two clocks
# never agree: the admin process must not take a text for fresh that the worker takes for old.
FRESH_S = 1.5
# How long a worker waits for the admin process, and how often it looks. Old metrics are never sent: a scraper must see
# that there are none.
_PATIENCE_S = 2.0
_LOOK_S = 0.01
_NAME = "metrics.txt"


class RenderingAbsent(TemporaryFailure):
    """The admin process has written no metrics yet, or is being started again."""


class MetricsRenderer:
    """Renders the metrics in `directory`, at most once a second. For the admin process."""

    def __init__(self, directory: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._now_s = directory, now_s
        self._text, self._rendered_at = b"", -RENDER_EVERY_S
        self._published_at = self._rendered_at

    def text(self) -> bytes:
        """Returns a text that is at most RENDER_EVERY_S old."""
        now = self._now_s()
        if now - self._rendered_at >= RENDER_EVERY_S:
            self._text, self._rendered_at = render(self._directory), now
        return self._text

    def publish(self) -> None:
        """Write the text for the workers, in one step."""
        text = self.text()
        if self._published_at != self._rendered_at:
            new = self._directory / f"{_NAME}.new"
            # As secret as /metrics may be: `[auth] metrics_need_token`.
            with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(text)
            new.replace(self._directory / _NAME)
            self._published_at = self._rendered_at


class SharedRendering:
    """The metrics text that the admin process rendered. For a worker; used in its event loop only."""

    def __init__(self, directory: Path, demand_fd: int) -> None:
        """`demand_fd`: the writing end of the pipe to the admin process; it must not block."""
        self._path, self._demand_fd = directory / _NAME, demand_fd
        self._text: bytes | None = None
        self._state: tuple[int, int] | None = None
        self._waiting: asyncio.Future[bytes] | None = None
        # When the admin process was asked, and which text was there then.
        self._asked_at = 0.0
        self._old: tuple[int, int] | None = None

    def text(self) -> bytes | asyncio.Future[bytes]:
        """Returns the text, or a future of it. The future raises RenderingAbsent when the admin process has none."""
        if self._waiting is not None:
            return self._waiting
        if self._look():
            assert self._text is not None, "a text is there"
            return self._text
        loop = asyncio.get_running_loop()
        self._waiting, self._asked_at, self._old = loop.create_future(), loop.time(), self._state
        # A full pipe, or one without a reader: the admin process has been asked, or is gone.
        with suppress(OSError):
            os.write(self._demand_fd, b"?")
        loop.call_later(_LOOK_S, self._look_again)
        return self._waiting

    def _look_again(self) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        assert waiting is not None, "someone waits"
        # A text that was written since is as good as a fresh one, if this worker was too busy to look earlier.
        is_there = self._look() or self._state != self._old
        if not is_there and loop.time() - self._asked_at < _PATIENCE_S:
            loop.call_later(_LOOK_S, self._look_again)
            return
        self._waiting = None
        if is_there and self._text is not None:
            waiting.set_result(self._text)
        else:
            waiting.set_exception(RenderingAbsent("the metrics are not rendered: the admin process is being started"))

    def _look(self) -> bool:
        """Read the text if it is a new one. Returns whether the text is fresh."""
        try:
            status = self._path.stat()
            state = status.st_ino, status.st_mtime_ns
            if state != self._state:
                self._text, self._state = read_regular(self._path), state
        except OSError:
            return False
        # After the clock was set back, a text seems to come from the future. It is not fresh for ever.
        return abs(time.time() - status.st_mtime) <= FRESH_S
