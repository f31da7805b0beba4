"""An overlay in a replay: payments that profiles lack, since they lag, and that the scoring host has answered itself.

    lag 1s, one host     10:00:05.0 sees profiles of until 10:00:04.0, and each payment since then
    lag 1s, 4 hosts      … and each payment since then whose card belongs to the same host

A gateway sends a card to one host by a hash of its number. A card therefore sees all of its own last payments, and a
merchant the share that its host has answered. scoring/state/overlay does the same in serving; a test compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.history import History
from paywarden.schemas.errors import Misconfigured

HOSTS_MAX = 10_000


@dataclass(frozen=True)
class HistoryOverlay:
    """The overlay of `hosts` hosts. The others are settings of `[overlay]`."""

    hosts: int = 1
    lifetime_ms: int = 10_000
    events_max: int = 16

    @classmethod
    def read(cls, text: str, *, lifetime_ms: int, events_max: int) -> HistoryOverlay | None:
        """Returns the overlay of the number of hosts that a text names; None for `0`. Raises Misconfigured."""
        if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > HOSTS_MAX:
            raise Misconfigured(f"overlay: wanted how many hosts there are, 0 to {HOSTS_MAX}, got {text!r}")
        return cls(int(text), lifetime_ms, events_max) if int(text) else None

    @property
    def limits(self) -> NDArray[np.int64]:
        """The numbers that the kernel takes (features/kernel/pending.py)."""
        return np.array([self.lifetime_ms, self.events_max], dtype=np.int64)

    def hosts_of(self, history: History, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the host that answers each of these payments, 0 to hosts - 1; the same for all payments of a card."""
        codes = history.card.codes[rows].astype(np.uint64)
        # Fibonacci hashing: cards that follow each other go to any host.
        mixed = (codes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
        return (mixed % np.uint64(self.hosts)).astype(np.int64)
