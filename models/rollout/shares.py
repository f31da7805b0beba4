"""The arm of a card: which of two or more versions decides about its payments.

With the salt 000102030405060708090a0b0c0d0e0f:

    card:C118    position 0x026e3a814a45b853 =  0.95 % of the circle    the candidate from 1 % on
    card:C1      position 0x83547b721546a521 = 51.30 %                  the champion up to 50 %

How it works:

1. A card's *position* is keyed BLAKE2b of its store key (features/profiles/keys.py), 8 bytes long and read big endian:
   a whole number from 0 to 2^64 - 1. The rollout's salt is the key. Every host computes the same position without
   asking another, and nobody without the salt can choose a card that falls into an arm.
2. Candidate i of n owns the part of the circle that starts at i/n. Its arm is the first `share` of the circle from
   there. Arms only grow at their ends, so shares are *nested*: a card in at 1 % is in at 5 %.
3. All other cards stay with the champion, arm 0.

A share is a whole number of basis points (hundredths of a percent), and an arm is `basis points x 2^64 / 10,000`
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
"""The shares of all arms are in hundredths of a percent."""
SALT_BYTES = 16
CHAMPION, CANDIDATE = 0, 1
"""The arms of a rollout with one candidate."""


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


def arm_of(card_key: bytes, salt: bytes, shares: Sequence[int]) -> int:
    """Returns the arm of a card: 0 for the champion, i for candidate i.

    `card_key`: the card's store key. `shares`: each candidate's share in basis points. Raises Misconfigured as
    `arm_edges` does. A process that decides about many payments keeps a CardSplit and the edges.
    """
    return arm_at(CardSplit(salt).position(card_key), arm_edges(shares))


def arm_at(position: int, edges: Sequence[tuple[int, int]]) -> int:
    """Returns the arm of a position; `edges` are those of `arm_edges`."""
    for number, (start, end) in enumerate(edges):
        if start <= position < end:
            return number + 1
    return CHAMPION


def arms_at(positions: NDArray[np.uint64], edges: Sequence[tuple[int, int]]) -> NDArray[np.int8]:
    """Returns the arms of many positions, shape (cards,), as `arm_at` would."""
    arms = np.zeros(len(positions), dtype=np.int8)
    for number, (start, end) in enumerate(edges):
        if end > start:
            # An end may be CIRCLE, which no uint64 holds.
            arms[(positions >= np.uint64(start)) & (positions <= np.uint64(end - 1))] = number + 1
    return arms


def arm_edges(shares: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Returns the first position of each candidate's arm, and the first behind it. `shares`: basis points.

    Raises Misconfigured if there is no share, or if one does not fit into its candidate's part of the circle.
    """
    if not shares:
        raise Misconfigured("shares: wanted one for each candidate, got none")
    edges = []
    for number, share in enumerate(shares):
        start, limit = (CIRCLE * place // len(shares) for place in (number, number + 1))
        length = CIRCLE * share // BASIS_POINTS
        if share < 0 or length > limit - start:
            most = BASIS_POINTS // len(shares)
            raise Misconfigured(
                f"share of candidate {number + 1}: wanted 0 to {percent_text(most)}, got {percent_text(share)}"
            )
        edges.append((start, start + length))
    return tuple(edges)


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
