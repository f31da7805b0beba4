"""What Linux counts of a process."""

from __future__ import annotations

import re
from contextlib import suppress
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
    return sum(_private_kib(each.pid) for each in (parent, *parent.children()))


def _private_kib(pid: int) -> int:
    total, is_file = 0, False
    # It may have ended.
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                # The line of a mapping: addresses, permissions, offset, device, inode.
                is_file = values[3] != "0"
            elif name in ("Private_Clean:", "Private_Dirty:") and not is_file:
                total += int(values[0])
    return total
