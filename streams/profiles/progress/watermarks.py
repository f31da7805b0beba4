"""Claims: "every payment that reached Kafka before T is in the changelog's records before these offsets".

The stream makes them (streams/profiles/progress/completeness.py). A companion that has read to the offsets of a claim
knows that its mirror is complete to T: `CopyProgress`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

PREFIX = b"progress:"
"""The beginning of the changelog's keys that are no profiles."""
CLAIM_KEY = PREFIX + b"all"
"""The changelog key of claims."""

_FORMAT = 1
_ENTRY = struct.Struct("<Iq")
# A copy that is behind keeps at most this many claims.
_CLAIMS_MAX = 64


@dataclass(frozen=True)
class Claim:
    """Every payment that reached Kafka before `complete_to_ms` is in the changelog's records before `ends`.

    `ends`: for each partition of the changelog, the offset after the last of these records.
    """

    complete_to_ms: int
    ends: Mapping[int, int]

    def encoded_ends(self) -> bytes:
        """Returns the ends as bytes: the format's number, then partition (4 bytes) and offset (8 bytes) of each."""
        return bytes([_FORMAT]) + b"".join(_ENTRY.pack(*place) for place in sorted(self.ends.items()))

    def holds(self, read_to: Mapping[int, int]) -> bool:
        """Returns whether a copy that was read to these offsets has all of it."""
        return all(read_to.get(partition, 0) >= end for partition, end in self.ends.items())


def claim_of(complete_to_ms: int, ends: bytes) -> Claim | None:
    """Returns a claim as it was encoded; None for bytes of another format."""
    if not ends or ends[0] != _FORMAT or (len(ends) - 1) % _ENTRY.size:
        return None
    return Claim(complete_to_ms, dict(_ENTRY.iter_unpack(ends[1:])))


class CopyProgress:
    """The companion's side: how complete a copy of the profiles is."""

    def __init__(self) -> None:
        # Claims whose ends are not reached yet, the oldest first.
        self._claims: deque[Claim] = deque()
        self._claimed_ms = 0

    def begin_anew(self) -> None:
        """Forget everything: the copy goes back to where it was written, and reads the records behind that again."""
        self._claims.clear()
        self._claimed_ms = 0

    def claimed(self, claim: Claim, now_ms: int) -> None:
        """Note a claim that was read at `now_ms`, and counts up to then: its worker's clock may be ahead."""
        self._claims.append(replace(claim, complete_to_ms=min(claim.complete_to_ms, now_ms)))
        if len(self._claims) > _CLAIMS_MAX:
            # The copy is behind. If it kept only the newest ones, it would never reach one.
            self._claims = deque(list(self._claims)[::2])

    def complete_to_ms(self, read_to: Mapping[int, int]) -> int:
        """Returns the moment; 0 while it is not known. `read_to`: the next offset of each changelog partition."""
        for claim in reversed(self._claims):
            if claim.holds(read_to):
                self._claimed_ms = claim.complete_to_ms
                while self._claims.popleft() is not claim:
                    pass
                break
        return self._claimed_ms
