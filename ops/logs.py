"""Log lines: text for people by default, JSON for machines with `--log json`.

Each JSON line is an object of ops/log_schema.json, which docs/reference/logs.md explains:

    {"time": "2026-11-27T09:30:00.125+00:00", "level": "info", "logger": "paywarden.scoring.server.worker",
     "command": "serve", "process": 4711, "message": "http listens on http://127.0.0.1:8080"}
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

SCHEMA = Path(__file__).with_name("log_schema.json")
"""The JSON Schema of a line."""
_TRACE_FIELDS = ("trace_id", "span_id")
# Every loop that tries again pauses less. Two events with equal lines that are further apart are both written.
_REPEATED_S = 120.0
# The log of the last hour therefore shows each trouble that still goes on.
_REMIND_S = 3600.0


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON. A record made with `extra={"trace_id": …}` keeps its trace."""

    def __init__(self, command: str = "") -> None:
        super().__init__()
        self._command = command

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "command": self._command,
            "process": record.process,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _TRACE_FIELDS if (value := getattr(record, name, ""))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class OnceUntilChanged(logging.Filter):
    """Drops a warning that a module repeats word for word, as each try of a loop does while a broker is away.

    The line comes again after an hour, after a pause of two minutes, or after another line of the same module.
    An error tells of an incident that has happened, and two equal ones are two.
    """

    def __init__(self) -> None:
        super().__init__()
        # By module its last line, when it was last repeated and when it was written.
        self._last: dict[str, tuple[str, float, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the line is written."""
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        # A line that cannot be formatted is the handler's to report.
        line = f"{record.msg}{record.args!r}{record.exc_info and record.exc_info[1]!r}"
        before, seen, written = self._last.get(record.name, ("", now, now))
        is_repeated = line == before and now - seen < _REPEATED_S and now - written < _REMIND_S
        self._last[record.name] = line, now, written if is_repeated else now
        return not is_repeated


def set_up_logging(form: str, command: str = "") -> None:
    """Log to stderr in `form`, "text" or "json". `command`: the running command, such as "serve"."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.addFilter(OnceUntilChanged())
    handler.setFormatter(JsonLines(command) if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # It writes a line for each request, with the address. That of a webhook may hold a secret.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
