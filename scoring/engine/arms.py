"""Which payments the candidate of a rollout decides about: those of its share of the cards.

With the salt 000102030405060708090a0b0c0d0e0f:

    card:C118    position 0x026e3a814a45b853 =  0.95 % of the circle    the candidate's from 1 % on
    card:C1      position 0x83547b721546a521 = 51.30 %                  the champion's up to 50 %

A card's position is keyed BLAKE2b of its store key, 8 bytes, big endian. The candidate has the positions below its
share of 2^64: a card in at 1 % is in at 5 %, on every host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

BASIS_POINTS = 10_000
SALT_BYTES = 16
_CIRCLE = 1 << 64


@dataclass(frozen=True)
class Split:
    """The candidate's share of the cards, in basis points (hundredths of a percent)."""

    salt: bytes
    share: int

    def has(self, card_key: bytes) -> bool:
        """Whether the candidate decides about a card, by its store key. A payment without a card is the champion's."""
        if not card_key:
            return False
        position = int.from_bytes(blake2b(card_key, digest_size=8, key=self.salt).digest(), "big")
        return position < _CIRCLE * self.share // BASIS_POINTS

    def places(self, card_keys: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Returns the indexes of the champion's payments and of the candidate's, ascending."""
        champion: list[int] = []
        candidate: list[int] = []
        for index, key in enumerate(card_keys):
            (candidate if self.has(key) else champion).append(index)
        return champion, candidate
