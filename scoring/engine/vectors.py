"""The mirror of a scorer, and its help for the compiled call where the mirror or a profile cannot be read.

profiles of the mirror ─► one cannot be read, or is of an earlier catalogue ─► `help_to_read` ─► the call goes on
                       ─► there is no mirror ─► vectors without profiles
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import ABSENT, KNOWN, STATUS_UNIT, UNKNOWN, WRONG_DIGEST
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.models.policy.policy import OVERLAY_ABSENT, unknown_flag
from paywarden.scoring.requests.fast_requests import ROWS_MAX as READ_MAX
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.neighbours.hops import Hops
from paywarden.scoring.state.overlay.overlay import Overlay

# The most payments in one call of the kernel: as many as the compiled reader takes.
ROWS_MAX = READ_MAX


class Vectors:
    """The vectors of one chunk at a time, in arrays that are made once. It is not thread-safe."""

    def __init__(
        self,
        engine: FeatureEngine,
        mirror: MirrorSettings,
        rows: NDArray[np.int64],
        *,
        overlay: Overlay | None = None,
        held_cards: HeldCards | None = None,
    ) -> None:
        """`rows`: the attributes of the chunk's payments. The mirror is not opened yet.

        Without `overlay`, payments see the mirror's profiles alone. Without `held_cards` the mirror is taken to hold
        every card.
        """
        plan = engine.plan
        self._engine, self._settings = engine, mirror
        self._overlay, self._held_cards = overlay, held_cards
        self.mirror: MirrorReader | None = None
        self.mirror_is_foreign = False
        """Whether there is a mirror that was filled for another identity key."""
        self.mirror_lacks_index = False
        """Whether there is a mirror in which features two hops away would find no neighbours."""
        self._entities = plan.entity_count
        self.rows = rows
        """The attributes of the chunk's payments."""
        self.vectors: NDArray[np.float32] = np.empty((ROWS_MAX, plan.feature_count), dtype=np.float32)
        """The features of the chunk's payments."""
        self.hops = Hops(engine, self.rows)
        """What neighbours say about the chunk's payments."""
        self.unknown_flags = {
            bytes(pattern): tuple(
                unknown_flag(name)
                for name, presence in zip(plan.entity_names, pattern, strict=True)
                if presence == UNKNOWN
            )
            for pattern in itertools.product((ABSENT, UNKNOWN, KNOWN), repeat=self._entities)
        }
        """The flags of a payment, by ABSENT, UNKNOWN or KNOWN of each of its entities."""

    @property
    def usual_flags(self) -> list[tuple[str, ...]]:
        """The flags that payments have while nothing is wrong, and while only the overlay is absent."""
        usual = list(self.unknown_flags.values())
        if self._overlay is not None:
            usual += [(*flags, OVERLAY_ABSENT) for flags in usual]
        return usual

    def open(self) -> bool:
        """Open the mirror, or a new mirror that has replaced it. Returns False when there is none that can be used."""
        if self._overlay is not None:
            self._overlay.look(self._settings.path)
        if self.mirror is not None and self.mirror.is_replaced():
            self.close()
        if self.mirror is None:
            self.mirror_lacks_index = False
            try:
                self.mirror = MirrorReader(
                    self._settings,
                    item_max=ROWS_MAX * self._entities,
                    profile_bytes_max=self._engine.profile_bytes_max,
                )
            except MirrorAbsent:
                return False
            mirror = self.mirror
            # Its profiles hash ids with another key: in them this process would recognise no id.
            self.mirror_is_foreign = mirror.identity_digest() not in ("", self._engine.plan.key.digest)
            if self.mirror_is_foreign:
                self.close()
                return False
            self.hops.open(mirror)
        self.mirror_lacks_index = not self.hops.is_served_by(self.mirror)
        if self.mirror_lacks_index:
            # All neighbours would count as missing, and no answer would say so.
            self.close()
            return False
        if self._held_cards is not None:
            self._held_cards.look(self.mirror)
        return True

    def close(self) -> None:
        """Close the mirror."""
        if self.mirror is not None:
            self.hops.close()
            self.mirror.close()
            self.mirror = None

    def missing(self) -> str:
        """Returns why payments should not come here yet, by the mirror; empty if they may."""
        path = self._settings.path
        if self.mirror is None:
            if self.mirror_is_foreign:
                return (
                    f"the mirror at {path} was filled for another identity key: set the same "
                    "[features] identity_key_file for serve, companion and stream"
                )
            if self.mirror_lacks_index:
                return (
                    f"the mirror at {path} does not find the neighbours of features two hops away: the companion makes "
                    "its index, or has another [features] catalogue"
                )
            return f"there is no mirror at {path}: is the companion running?"
        return "" if self.mirror.is_complete() else "the mirror is not complete yet"

    def fill_without_mirror(self, keys: Sequence[bytes]) -> None:
        """Fill the vectors of payments as if none of their entities were known. `keys`: of all of their entities."""
        count = len(keys) // self._entities
        presence = np.array([UNKNOWN if key else ABSENT for key in keys], dtype=np.uint8)
        nothing, bounds = np.zeros(0, dtype=np.uint8), np.zeros(len(keys) + 1, dtype=np.int64)
        self._engine.fill_vectors(self.rows[:count], presence, nothing, bounds, self.vectors[:count])

    def help_to_read(self, count: int, status: int) -> set[int]:
        """Migrate a chunk's profiles, or let the payment with the profile that `status` names have none.

        Returns the payments that have no profiles now, as one of theirs cannot be read. `presence` of the mirror says
        so, too, for the call that follows.
        """
        mirror = self.mirror
        assert mirror is not None
        unreadable = {status % STATUS_UNIT // self._entities}
        if status // STATUS_UNIT == WRONG_DIGEST:
            unreadable = self._migrate(mirror, count * self._entities)
        for row in unreadable:
            presence = mirror.presence[row * self._entities : (row + 1) * self._entities]
            presence[presence == KNOWN] = UNKNOWN
            self.hops.forget(row)
        return unreadable

    def _migrate(self, mirror: MirrorReader, item_count: int) -> set[int]:
        """Put all profiles that were found into this catalogue's shape. Returns the payments of those that cannot be.

        Most of them need it after a change of the catalogue.
        """
        bounds, parts, unreadable = mirror.bounds[: item_count + 1].tolist(), list[bytes](), set[int]()
        for item, (start, end) in enumerate(itertools.pairwise(bounds)):
            state = mirror.states[start:end].tobytes()
            try:
                known = mirror.presence[item] == KNOWN
                parts.append(self._engine.migrated(item % self._entities, state) if known else b"")
            except UnreadableProfile:
                parts.append(b"")
                unreadable.add(item // self._entities)
        states = b"".join(parts)
        mirror.states[: len(states)] = np.frombuffer(states, dtype=np.uint8)
        mirror.bounds[1 : item_count + 1] = np.cumsum(list(map(len, parts)))
        return unreadable
