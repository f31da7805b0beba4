"""Ensures at start that a worker has file descriptors for all its connections and files.

A worker that runs out of descriptors cannot begin a segment of its outbox or read a new certificate, and nobody can
connect. Every connection is therefore within a limit, and the limits and the files together are within the process's.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from contextlib import suppress

from paywarden.schemas.errors import Misconfigured

# Segments, locks, mirror, metrics, listeners, the event loop's own, standard streams: some 40, and files opened for a
# moment. Connections that are refused count for a moment, too.
FILES_RESERVE = 96


def secure_descriptors(connections: Mapping[str, int]) -> None:
    """Raise the limit of open files as far as it goes, and check that it is enough.

    `connections` says how many connections each setting allows. Raises Misconfigured with the number needed.
    """
    needed = sum(connections.values()) + FILES_RESERVE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    had = _raise_to(hard)
    if had < needed:
        parts = " + ".join(f"{setting} {count}" for setting, count in connections.items())
        raise Misconfigured(
            f"a worker needs {needed} open files ({parts} + {FILES_RESERVE} for files), and the limit is {had}: "
            "raise it (ulimit -Hn, LimitNOFILE=), or lower these settings"
        )


def _raise_to(hard: int) -> int:
    """Returns the limit that there is afterwards."""
    # Some systems call the hard limit infinite, and do not accept it.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
