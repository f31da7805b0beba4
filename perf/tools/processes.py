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
