"""Where records begin in an outbox, for tests that append several at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from paywarden.scoring.state.outbox import OutboxWriter, framed


def starts(outbox: OutboxWriter, payloads: Sequence[bytes]) -> list[int]:
    """Where each of `payloads` will begin if they are what is appended next."""
    return list(itertools.accumulate((len(framed(each)) for each in payloads[:-1]), initial=outbox.position))


def append_all(outbox: OutboxWriter, payloads: Sequence[bytes]) -> int:
    """In one write; returns the position after them."""
    return outbox.append_frames(b"".join(map(framed, payloads)))
