"""Keys in files of hex digits: one reader, so that no message ever repeats a word of such a file."""

from __future__ import annotations

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular

# Far more than any key. A larger file is no key's.
_BYTES_MAX = 4096


def read_hex_key(setting: str, path: str) -> bytes:
    """Returns the bytes in a file of hex digits; none if it holds anything else.

    Raises Misconfigured, naming the setting, if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return bytes.fromhex(file.read(_BYTES_MAX).decode("ascii").strip())
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {path}: {error.strerror}") from error
    except ValueError:
        return b""
