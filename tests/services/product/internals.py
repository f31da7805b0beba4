"""Values of fields that are no settings (schemas/settings.py, `internal`), for the processes that a test starts.

A file `internals.json` beside a configuration file has them by section. A process that
is a fork of the template reads it; one that starts `afresh` does not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paywarden.schemas.settings import Source

FILE = "internals.json"
_section = Source.section


def install() -> None:
    """Let `Source.section` of this process read the file, too."""
    Source.section = section  # type: ignore[method-assign, assignment]


def write(folder: Path, values: Mapping[str, Mapping[str, float | str]]) -> None:
    """Write the file beside the configuration of this folder."""
    (folder / FILE).write_text(json.dumps(values), encoding="utf-8")


def section(self: Source, name: str, settings_type: type[Any]) -> Any:
    """Return the settings of a section, with the internal values of the file."""
    settings, file = _section(self, name, settings_type), self.folder / FILE
    if not file.exists():
        return settings
    return dataclasses.replace(settings, **json.loads(file.read_text(encoding="utf-8")).get(name, {}))
