"""The arm of a card: whether the champion or the candidate of a rollout decides about its payments.

With the salt 000102030405060708090a0b0c0d0e0f:

    card:C118    position 0x026e3a814a45b853 =  0.95 % of the circle    the candidate from 1 % on
    card:C1      position 0x83547b721546a521 = 51.30 %                  the champion up to 50 %

How it works:

1. A card's *position* is keyed BLAKE2b of its store key (features/profiles/keys.py), 8 bytes long and read big endian:
   a whole number from 0 to 2^64 - 1. The rollout's salt is the key. Every host computes the same position without
   asking another, and nobody without the salt can choose a card that falls into an arm.
2. The candidate's arm is the first `share` of the circle. It only grows at its end, so shares are *nested*: a card in
   at 1 % is in at 5 %.
3. All other cards stay with the champion, arm 0.

A share is a whole number of basis points (hundredths of a percent), and the arm is `basis points x 2^64 / 10,000`
positions long, rounded down. Everything is whole numbers, so that another language computes the same arms.

A retry of a payment keeps the arm that answered first: the decision cache has that answer, whatever the shares are by
then (scoring/idempotency/decision_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import Misconfigured

CIRCLE = 1 << 64
BASIS_POINTS = 10_000
"""Shares are in hundredths of a percent."""
SALT_BYTES = 16
CHAMPION, CANDIDATE = 0, 1
"""The arms of a rollout."""


@dataclass(frozen=True)
class CardSplit:
    """The circle of positions under one salt. Immutable and thread-safe."""

    salt: bytes

    def __post_init__(self) -> None:
        """Raises Misconfigured for a salt that has not SALT_BYTES bytes."""
        if len(self.salt) != SALT_BYTES:
            raise Misconfigured(f"rollout salt: wanted {SALT_BYTES} bytes, got {len(self.salt)}")

    def position(self, card_key: bytes) -> int:
        """Returns the position of a card from its store key, such as b"card:C1": 0 to CIRCLE - 1."""
        return int.from_bytes(blake2b(card_key, digest_size=8, key=self.salt).digest(), "big")

    def positions(self, card_keys: Iterable[bytes]) -> NDArray[np.uint64]:
        """Returns the positions of many cards, shape (cards,), as `position` would."""
        salt = self.salt
        digests = b"".join([blake2b(card_key, digest_size=8, key=salt).digest() for card_key in card_keys])
        return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def arms_at(positions: NDArray[np.uint64], share: int) -> NDArray[np.int8]:
    """Returns the arms of many positions, shape (cards,). `share` and what it raises: as `arm_end`."""
    arms, end = np.full(len(positions), CHAMPION, dtype=np.int8), arm_end(share)
    if end:
        # The end may be CIRCLE, which no uint64 holds.
        arms[positions <= np.uint64(end - 1)] = CANDIDATE
    return arms


def arm_end(share: int) -> int:
    """Returns the first position behind the candidate's arm, from the candidate's share in basis points.

    Raises Misconfigured for a share outside 0 to 100 %.
    """
    if not 0 <= share <= BASIS_POINTS:
        raise Misconfigured(f"share of the candidate: wanted 0 to 100 %, got {percent_text(share)}")
    return CIRCLE * share // BASIS_POINTS


def checked_steps(percents: Sequence[float]) -> tuple[int, ...]:
    """Returns the steps of a rollout in basis points: 1.0 percent is 100.

    Raises Misconfigured for a step outside (0, 100], for one finer than a hundredth of a percent, for steps that do not
    rise, and if the last one is not 100.
    """
    if not percents:
        raise Misconfigured("steps: wanted shares in percent that end with 100, got none")
    steps = []
    for percent in percents:
        share = round(percent * 100) if 0 < percent <= 100 else 0
        if abs(percent * 100 - share) > 1e-6 or share == 0:
            raise Misconfigured(
                f"steps: wanted shares above 0 and at most 100 percent, in hundredths of a percent, got {percent:g}"
            )
        steps.append(share)
    for before, after in pairwise(steps):
        if after <= before:
            raise Misconfigured(
                f"steps: wanted each above the one before, got {percent_text(after)} after {percent_text(before)}"
            )
    if steps[-1] != BASIS_POINTS:
        raise Misconfigured(f"steps: wanted 100 as the last one, got {percent_text(steps[-1])}")
    return tuple(steps)


def percent_text(share: int) -> str:
    """Returns a share in basis points as a text such as `2.5 %`."""
    return f"{share / 100:g} %"
