"""Keys in files of hex digits: one reader, so that no message ever repeats a word of such a file."""

from __future__ import annotations

from pathlib import Path

from paywarden.schemas.errors import Misconfigured


def read_hex_key(setting: str, path: str) -> bytes:
    """Returns the bytes in a file of hex digits; none if it holds anything else.

    Raises Misconfigured, naming the setting, if the file cannot be read.
    """
    try:
        return bytes.fromhex(Path(path).read_text(encoding="ascii").strip())
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {path}: {error.strerror}") from error
    except ValueError:
        return b""
