"""Files that survive a loss of power, and the id of this boot of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from paywarden.schemas.private_files import private_opener

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Returns the id of this boot of the machine; empty if the system has none."""
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file, for this user alone, that survives a loss of power. A crash leaves the old file or the new.

    Raises OSError.
    """
    new = path.with_name(path.name + ".new")
    # A killed process may have left anything there, such as a named pipe that would be waited for.
    new.unlink(missing_ok=True)
    with open(new, "wb", opener=private_opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that files created, renamed or removed in it survive a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
