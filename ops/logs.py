"""Log lines: text for people by default, JSON for machines with `--log json`.

Each JSON line is an object of ops/log_schema.json, which docs/reference/logs.md explains:

    {"time": "2026-11-27T09:30:00.125+00:00", "level": "info", "logger": "paywarden.scoring.server.worker",
     "command": "serve", "process": 4711, "message": "http listens on http://127.0.0.1:8080"}
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

SCHEMA = Path(__file__).with_name("log_schema.json")
"""The JSON Schema of a line."""
_TRACE_FIELDS = ("trace_id", "span_id")


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


def set_up_logging(form: str, command: str = "") -> None:
    """Log to stderr in `form`, "text" or "json". `command` is the one that runs, such as "serve"."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines(command) if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # It writes a line for each request, with the address. That of a webhook may hold a secret.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
