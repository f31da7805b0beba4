"""Keeps a SIGHUP that comes while a host starts: without a handler it would end the process.

    hold()                     first of all: a library may be built for a minute before the supervisor heeds signals
    Supervisor.heed_signals    heeds the one that came meanwhile (`held`)

The signal is not blocked instead: a thread that was made before would take it, and the process would end.
"""

from __future__ import annotations

import signal

_came = False


def hold() -> None:
    """Keep the next SIGHUP until `held`. Main thread only."""
    signal.signal(signal.SIGHUP, _note)


def held() -> bool:
    """Returns whether a SIGHUP came, and forgets it."""
    global _came
    came, _came = _came, False
    return came


def _note(*_: object) -> None:
    global _came
    _came = True
