"""What Linux counts of a process."""

from __future__ import annotations

import re
from pathlib import Path

import psutil


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its children have used, in seconds."""
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def memory_kib(name: str, pid: int) -> int:
    """Return a line of /proc/PID/status: RssAnon is the private memory, VmHWM the most resident memory so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, name
    return int(found[1])


def private_kib(pid: int) -> int:
    """Return the memory that a process and its children have each for itself, without mapped files, in KiB."""
    parent = psutil.Process(pid)
    return sum(map(_private_kib, (parent, *parent.children())))


def _private_kib(process: psutil.Process) -> int:
    try:
        mappings = process.memory_maps(grouped=False)
    except psutil.NoSuchProcess:
        return 0
    # A mapping of a file has the file's path.
    held = (each.private_clean + each.private_dirty for each in mappings if not each.path.startswith("/"))
    return int(sum(held) // 1024)
