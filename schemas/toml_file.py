"""A file of settings, people or a description, as TOML.

toml_file(Path("people.toml"), "the people")     its tables; or "cannot read the people people.toml: …" in one line
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular


def toml_file(path: Path, what: str) -> dict[str, Any]:
    """Returns the content of a TOML file. `what`: its name in errors. Raises Misconfigured."""
    try:
        return tomllib.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise Misconfigured(f"cannot read {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{path} is not TOML: {error}") from error
