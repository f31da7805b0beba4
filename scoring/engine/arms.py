"""Chooses the payments that the candidate of a rollout decides about: those of its share of the cards.

models/rollout/shares.py gives a card its arm: a card that is in at 1 % is in at 5 %, too, on every host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from paywarden.models.rollout.shares import CardSplit, arm_end


@dataclass(frozen=True)
class ArmSplit:
    """The candidate's share of the cards, in basis points (hundredths of a percent)."""

    salt: bytes
    share: int

    def has(self, card_key: bytes) -> bool:
        """Whether the candidate decides about a card, by its store key. A payment without a card is the champion's."""
        return bool(card_key) and self._split.position(card_key) < self._end

    def places(self, card_keys: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Returns the indexes of the champion's payments and of the candidate's, ascending."""
        champion: list[int] = []
        candidate: list[int] = []
        for index, key in enumerate(card_keys):
            (candidate if self.has(key) else champion).append(index)
        return champion, candidate

    @cached_property
    def _split(self) -> CardSplit:
        return CardSplit(self.salt)

    @cached_property
    def _end(self) -> int:
        return arm_end(self.share)
