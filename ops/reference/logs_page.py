"""The fields of a log line in JSON: docs/reference/logs.md."""

from __future__ import annotations

import json

from paywarden.ops.logs import SCHEMA
from paywarden.ops.reference.page import MADE_FROM_CODE, code, entry, prose

_EXAMPLE = """\
```console
$ paywarden --log json serve
{"time": "2026-11-27T09:30:00.125+00:00", "level": "info", "logger": "paywarden.scoring.server.worker", \
"command": "serve", "process": 4711, "message": "http listens on http://127.0.0.1:8080"}
```
"""


def logs_page() -> str:
    """Returns the page of the log line, made from its JSON Schema."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    rows = []
    for name, field in schema["properties"].items():
        kind = " ".join(map(code, field["enum"])) if "enum" in field else field["type"]
        rows.append(entry(name, (kind, "" if name in schema["required"] else "if there is one"), field["description"]))
    return "\n".join(
        [
            "# Logs\n",
            *prose(
                "Every command logs to stderr: lines for people by default, with `--log json` one JSON object a line. "
                f"`ops/log_schema.json` is its JSON Schema, for all commands. {MADE_FROM_CODE}"
            ),
            _EXAMPLE,
            *rows,
            "",
            *prose(
                "A line that a module would repeat word for word is written once, and again after an hour. New fields "
                "may come; these stay. No line holds a card, a secret or a payload. stdout is for results: addresses, "
                "tables, JSON."
            ),
        ]
    )
