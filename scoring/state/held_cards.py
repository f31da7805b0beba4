"""Flags the payments of cards that this host's mirror does not hold (scoring/state/shards.py).

A gateway sends a card to a host that holds it. If two hosts of a shard are away, or a gateway has another list of
hosts, a card comes to a host without its profiles. It is scored as a card without profiles, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.models.policy.policy import CARD_NOT_HELD, unknown_flag
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.shards import CardShards, mask_of


class HeldCards:
    """Knows which cards the mirror holds. It learns of changes when `look` is called, every half second."""

    def __init__(self, shards: CardShards, keys_of: Sequence[Sequence[str]], entities: Sequence[str]) -> None:
        """`entities`: those of the plan, in order; `keys_of`: the fields that identify each."""
        self._shards = shards
        own = [place for place, name in enumerate(entities) if name in shards.entities]
        self._card = next(place for place in own if len(keys_of[place]) == 1)
        self._prefix = len(f"{entities[self._card]}:")
        self._entities = len(entities)
        self._not_known = frozenset(unknown_flag(entities[place]) for place in own)
        self._held: list[bool] | None = None

    def look(self, mirror: MirrorReader) -> None:
        """Read the mirror's note about its shards. A mirror without such a note holds everything."""
        held = mirror.shards()
        if held is None or len(held.complete) == self._shards.count:
            self._held = None
        elif held.digest != self._shards.digest:
            self._held = [False] * self._shards.count
        else:
            self._held = mask_of(held.complete, self._shards.count).tolist()

    @property
    def are_all(self) -> bool:
        """Whether the mirror holds every card."""
        return self._held is None

    def flagged(self, keys: Sequence[bytes], flags: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Returns the payments' flags, with CARD_NOT_HELD where it belongs in place of flags of unknown entities.

        `keys`: of all entities of each payment, one payment after the other.
        """
        if self._held is None:
            return flags
        prefix = self._prefix
        rows = self._shards.unheld_rows([key[prefix:] for key in keys[self._card :: self._entities]], self._held)
        if not rows:
            return flags
        flags = list(flags)
        for row in rows:
            # Nobody here knows whether the card is new.
            known = (flag for flag in flags[row] if flag not in self._not_known)
            flags[row] = (*known, CARD_NOT_HELD)
        return flags
