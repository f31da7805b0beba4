"""Bounds the memory of a process that runs code of others, such as the native library of a bundle nobody has tried.

    free_memory()           how much this process can still get
    bound_memory(2**34)     from now on this process gets 16 GB more at most, and is the first to go if memory runs out

Without a bound, a library that allocates without end takes the memory of everything else on the host. The kernel then
ends some process of its own choice.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

# The score of a process that the kernel ends first when memory runs out. Every process may take it.
_FIRST_TO_GO = "1000"
_KB = 1_024
# Where a container sees its own limits (control groups, version 2).
_CONTAINER = Path("/sys/fs/cgroup")


def half_of_memory() -> int:
    """Returns half of the bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def free_memory() -> int | None:
    """Returns how many bytes this process can still get, with swap; None if the system does not say.

    In a container with a limit it is the rest of the limit.
    """
    found = [of for of in (_free_of_machine(), _free_of_container()) if of is not None]
    return min(found) if found else None


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return (sizes["MemAvailable"] + sizes["SwapFree"]) * _KB
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _free_of_container() -> int | None:
    try:
        most, used = (int((_CONTAINER / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        cached = next(
            int(line.split()[1])
            for line in (_CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith("inactive_file ")
        )
        return most - used + cached
    except (OSError, ValueError, StopIteration):
        # No limit is the word "max".
        return None


def bound_memory(more_bytes: int) -> None:
    """Let this process, and each child, have at most `more_bytes` of own memory more than this process has now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _own_bytes() + more_bytes
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    # A sandbox may forbid it.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def _own_bytes() -> int:
    """Returns the bytes that the limit counts now: heap and other private memory that can be written."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) * _KB
    except (OSError, StopIteration, ValueError):
        return 0
