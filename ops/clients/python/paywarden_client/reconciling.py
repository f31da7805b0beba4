"""When a payment that was decided in the service's place is asked about again. Pure.

    stand-in ── 1 s ─► ask ── 2 s ─► ask ── 4 s ─► … ── 30 s ─► ask … until 540 s have passed

The service remembers a decision for ten minutes. Beyond that a repeated payment would be decided anew, so the client
gives up a minute earlier.
"""

from __future__ import annotations

FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 1000.0, 30_000.0
GIVE_UP_MS = 540_000.0


def next_due_ms(asked: int, since_ms: float) -> float | None:
    """Returns when to ask next, in milliseconds since the stand-in; None to give up.

    `asked` is how often the payment was asked about since, and `since_ms` when the last answer failed (0 at first).
    """
    due_ms = since_ms + min(FIRST_PAUSE_MS * 2.0 ** min(asked, 10), LONGEST_PAUSE_MS)
    return None if due_ms > GIVE_UP_MS else due_ms
