"""The first module of every command: Ctrl-C ends a command at once while its modules are imported.

To import the command line takes up to a second. A KeyboardInterrupt in the middle of it would print a traceback, or be
taken for a failure of the module that was about to be imported. This module therefore imports nothing of Paywarden at
its top. A command that is still being imported has nothing to undo.

A process that crashes leaves no core dump: it would hold cards, secrets and keys in clear, in a file of the system.

If Kafka's client was loaded, the process ends without Python's own clean-up. The client's thread may still hand an
answer to an interpreter that is being torn down. A companion that had stopped cleanly once had a segmentation fault
from that.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import sys

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Import the command line and run it."""
    # The hard limit stays: `prlimit --core` of an operator who looks for a crash allows one again.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # The first to be registered is the last to be called: threads are joined and files are written by then.
    atexit.register(_leave)
    # A shell starts background jobs with Ctrl-C ignored: that stays.
    heeds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, _end_at_once)
    # CPython answers Ctrl-C in the middle of this import with a TypeError. The client of Kafka and the console need it.
    import ssl  # noqa: F401

    from paywarden.ops.cli import main as run

    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except SystemExit as end:
        _statuses.append(0 if end.code is None else end.code)
        raise
    _statuses.append(0)


# How the command ended; None while it runs.
_statuses: list[object] = []


def _leave() -> None:
    """End the process at once if Kafka's client is loaded, and the command has ended with a status."""
    status = _statuses[-1] if _statuses else None
    if "confluent_kafka" not in sys.modules or not isinstance(status, int):
        return
    for stream in (sys.stdout, sys.stderr):
        # Its reader may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end_at_once(*_: object) -> None:
    os._exit(INTERRUPTED)
