"""Helpers for tests that append several records at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from paywarden.scoring.state.outbox import OutboxWriter, framed


def starts(outbox: OutboxWriter, payloads: Sequence[bytes]) -> list[int]:
    """Returns where each of `payloads` will begin if they are appended next."""
    return list(itertools.accumulate((len(framed(each)) for each in payloads[:-1]), initial=outbox.position))


def append_all(outbox: OutboxWriter, payloads: Sequence[bytes]) -> int:
    """Append all in one write. Returns the position after them."""
    return outbox.append_frames(b"".join(map(framed, payloads)))
