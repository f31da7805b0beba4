"""Files that survive a loss of power, and this boot of the machine: its id and its clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

from paywarden.schemas.private_files import private_opener

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Returns the id of this boot of the machine; empty if the system has none."""
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


def boot_ms() -> int:
    """Returns the milliseconds since the machine's start, with those in which it was suspended.

    Nobody sets this clock: a window that keeps a promise goes by it, and not by the time of day.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


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
