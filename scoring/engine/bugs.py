"""Logs bugs that must not end a worker, once for each place in the code."""

from __future__ import annotations

import logging
import traceback

from paywarden.scoring.requests.trace_context import ids_of

_log = logging.getLogger(__name__)


class BugLog:
    """Logs a bug once for each place that raises it. It never logs the error's text, which may quote a request."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, int]] = set()

    def note(self, error: Exception, doing: str, caller: bytes = b"", trace: bytes = b"") -> None:
        """Log the bug with its traceback. `doing` completes "bug while ...", as in "scoring"; `caller` asked for it.

        `trace` is the request's trace (scoring/requests/trace_context.py), whose ids the line then has.
        """
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error).__name__, frames[-1].filename, frames[-1].lineno or 0)
        if place not in self._seen:
            self._seen.add(place)
            lines = "".join(traceback.format_list(frames))
            whose = f" for {caller.decode(errors='replace')}" if caller else ""
            _log.error("bug while %s%s: %s at\n%s", doing, whose, type(error).__name__, lines, extra=ids_of(trace))
