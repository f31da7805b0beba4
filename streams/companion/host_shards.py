"""Decides which profiles go into the mirror of a host that holds a part of the cards (scoring/state/shards.py).

A host whose shards have changed fills its mirror again at its next start. Meanwhile the gateway sends its cards to the
other hosts that hold them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paywarden.scoring.state.shards import CardShards, HeldShards, ShardSettings, mask_of


@dataclass(frozen=True)
class HostShards:
    """The shards of cards that a host's mirror holds, and the function that finds a profile's shard."""

    settings: ShardSettings
    cards: CardShards

    @cached_property
    def wanted(self) -> frozenset[int]:
        """The shards that the mirror is to hold. Raises Misconfigured."""
        return self.settings.wanted()

    @cached_property
    def note(self) -> HeldShards:
        """The note of a mirror that holds the wanted shards."""
        return HeldShards(self.cards.digest, self.wanted)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return mask_of(self.wanted, self.cards.count)

    def kept(self, profiles: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Returns the profiles that the mirror is to hold, of all kinds of entities."""
        found = dict(profiles)
        for key in self.skipped(found):
            del found[key]
        return found

    def skipped(self, keys: Collection[bytes | None]) -> frozenset[bytes]:
        """Returns the keys that the mirror does not take."""
        own, shards = self.cards.of_keys(keys)
        return frozenset(own[place] for place in np.flatnonzero(~self._mask[shards]).tolist())
