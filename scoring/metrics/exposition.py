"""The metrics of all workers as text, rendered by a process at most once a second.

To render takes some milliseconds, which the payments of a worker wait for when somebody asks its port. The admin
process (scoring/server/admin.py) has no payments: a scraper should ask that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from paywarden.scoring.metrics.shared_metrics import render

# The text is rendered again when it is older than this.
RENDER_EVERY_S = 1.0


class MetricsRenderer:
    """Renders the metrics in `directory`, at most once a second."""

    def __init__(self, directory: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._now_s = directory, now_s
        self._text, self._rendered_at = b"", -RENDER_EVERY_S

    def text(self) -> bytes:
        """Returns a text that is at most RENDER_EVERY_S old."""
        now = self._now_s()
        if now - self._rendered_at >= RENDER_EVERY_S:
            self._text, self._rendered_at = render(self._directory), now
        return self._text
