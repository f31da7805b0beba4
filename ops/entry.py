"""The first module of every command: Ctrl-C ends a command at once while its modules are imported.

To import the command line takes up to a second. A KeyboardInterrupt in the middle of it would print a traceback, or be
taken for a failure of the module that was about to be imported. This module therefore imports nothing of Paywarden at
its top, and what it starts has done nothing yet that would have to be undone.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Import the command line and run it."""
    # A shell starts what runs in the background with Ctrl-C ignored: that stays.
    heeds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, _end_at_once)
    from paywarden.ops.cli import main as run

    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _end_at_once(*_: object) -> None:
    os._exit(INTERRUPTED)
