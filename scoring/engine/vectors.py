"""The features of a chunk's payments, from the mirror's profiles and the overlay's pending payments, by the kernel.

payments ─► profiles of the mirror ─► + pending payments of this host ─► one row of features each, and its flags
                     └─► profiles of neighbours, for features two hops away ─┘
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import ABSENT, AMOUNT, KNOWN, UNKNOWN
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.models.policy.policy import MIRROR_ABSENT, OVERLAY_ABSENT, PROFILE_UNREADABLE, UNKNOWN_RATE, unknown_flag
from paywarden.scoring.metrics.worker import ScoringMetrics, StageTimes
from paywarden.scoring.requests.fast_requests import ROWS_MAX as READ_MAX
from paywarden.scoring.requests.payments import CheckedPayments
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
        *,
        metrics: ScoringMetrics,
        stages: StageTimes,
        overlay: Overlay | None = None,
        held_cards: HeldCards | None = None,
    ) -> None:
        """Without `overlay`, payments see the mirror's profiles alone. It must have room for ROWS_MAX payments.

        Without `held_cards` the mirror is taken to hold every card. The mirror is not opened yet.
        """
        plan = engine.plan
        self._engine, self._settings, self._stages, self._metrics = engine, mirror, stages, metrics
        self._overlay, self._held_cards = overlay, held_cards
        self.mirror: MirrorReader | None = None
        self.mirror_is_foreign = False
        """Whether there is a mirror that was filled for another identity key."""
        self.mirror_lacks_index = False
        """Whether there is a mirror in which features two hops away would find no neighbours."""
        self._entities = entities = plan.entity_count
        self.rows: NDArray[np.int64] = np.zeros((ROWS_MAX, plan.row_width), dtype=np.int64)
        """The attributes of the chunk's payments."""
        self.vectors: NDArray[np.float32] = np.empty((ROWS_MAX, plan.feature_count), dtype=np.float32)
        """The features of the chunk's payments."""
        self.hops = Hops(engine, self.rows)
        """What neighbours say about the chunk's payments."""
        self._no_presence = np.zeros(ROWS_MAX * entities, dtype=np.uint8)
        self._fill_from_nothing = engine.bind(
            self.rows,
            self._no_presence,
            np.zeros(0, dtype=np.uint8),
            np.zeros(ROWS_MAX * entities + 1, dtype=np.int64),
            self.vectors,
        )
        self._fill_from_mirror = self._fill_from_nothing
        self.unknown_flags = {
            bytes(pattern): tuple(
                unknown_flag(name)
                for name, presence in zip(plan.entity_names, pattern, strict=True)
                if presence == UNKNOWN
            )
            for pattern in itertools.product((ABSENT, UNKNOWN, KNOWN), repeat=entities)
        }
        """The flags of a payment, by ABSENT, UNKNOWN or KNOWN of each of its entities."""
        # For each combination: the hit and miss counters it increments.
        self._lookup_counters = {
            pattern: [
                metrics.mirror_lookups[name, "hit" if presence == KNOWN else "miss"]
                for name, presence in zip(plan.entity_names, pattern, strict=True)
                if presence != ABSENT
            ]
            for pattern in self.unknown_flags
        }

    @property
    def usual_flags(self) -> list[tuple[str, ...]]:
        """The flags that payments have while nothing is wrong, and while only the overlay is absent."""
        usual = list(self.unknown_flags.values())
        if self._overlay is not None:
            usual += [(*flags, OVERLAY_ABSENT) for flags in usual]
        return usual

    def open(self) -> bool:
        """Open the mirror, or a new mirror that has replaced it. Returns False when there is none that can be used."""
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
            self._fill_from_mirror = self._engine.bind(
                self.rows, mirror.presence, mirror.states, mirror.bounds, self.vectors, self.hops.values
            )
            self.hops.open(mirror)
        self.mirror_lacks_index = not self.hops.is_served_by(self.mirror)
        if self.mirror_lacks_index:
            # All neighbours would count as missing, and no answer would say so.
            self.close()
            return False
        if self._held_cards is not None:
            self._held_cards.look(self.mirror)
        if self._overlay is not None:
            self._overlay.look(self.mirror, self._settings.path, self.rows, self.vectors, self.hops.values)
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
        return "the mirror is not complete yet" if self._look_up_nothing() == 0 else ""

    def fill(self, payments: CheckedPayments) -> tuple[list[tuple[str, ...]], int]:
        """Fill `vectors` with the features of at most ROWS_MAX payments.

        Returns the payments' flags, and the time to which the mirror is complete, in ms (0: unknown).
        """
        count, keys = len(payments), payments.keys
        self.rows[:count] = payments.rows
        flags, complete_to_ms = self._fill(payments, keys, count)
        if self._held_cards is not None and self.mirror is not None:
            flags = self._held_cards.flagged(keys, flags)
        for row in np.flatnonzero(payments.rows[:, AMOUNT] < 0).tolist():
            flags[row] = (*flags[row], UNKNOWN_RATE)
        return flags, complete_to_ms

    def _fill(self, payments: CheckedPayments, keys: Sequence[bytes], count: int) -> tuple[list[tuple[str, ...]], int]:
        mirror = self.mirror
        if mirror is None:
            return self._fill_without_mirror(keys, count)
        try:
            complete_to_ms = mirror.look_up(keys)
            if self._stages.is_timed:
                self._stages.lap("look_up", count)
            unreadable = self.hops.fill(count)
        except MirrorAbsent:
            return self._fill_without_mirror(keys, count)
        entities = self._entities
        presence = mirror.found
        patterns = [presence[at : at + entities] for at in range(0, len(keys), entities)]
        self._count_lookups(patterns)
        if self._overlay is not None:
            flags = self._fill_with_overlay(self._overlay, mirror, payments, patterns)
        else:
            flags = [self.unknown_flags[pattern] for pattern in patterns]
            try:
                self._fill_from_mirror(count)
            except UnreadableProfile:
                flags = self._fill_one_by_one(mirror, flags, count)
        for row in unreadable:
            flags[row] = _with_unreadable(flags[row])
        if self._stages.is_timed:
            self._stages.lap("vector", count)
        return flags, complete_to_ms

    def _fill_with_overlay(
        self, overlay: Overlay, mirror: MirrorReader, payments: CheckedPayments, patterns: list[bytes]
    ) -> list[tuple[str, ...]]:
        """Fill vectors from profiles and pending payments; returns the flags. `patterns`: who is in the mirror."""
        count, entities, known = len(payments), self._entities, self.unknown_flags
        if not overlay.is_open:
            overlay.note_unused(count)
            flags = [known[pattern] for pattern in patterns]
            try:
                self._fill_from_mirror(count)
            except UnreadableProfile:
                flags = self._fill_one_by_one(mirror, flags, count)
            return [(*payment_flags, OVERLAY_ABSENT) for payment_flags in flags]
        unreadable: list[int] = []
        try:
            is_sure = overlay.fill(payments.keys, payments.ids, mirror.snapshot)
        except UnreadableProfile:
            is_sure, unreadable = self._fill_one_by_one_with_overlay(overlay, mirror, count)
        presence = overlay.folded(mirror.found)
        if presence is not mirror.found:
            patterns = [presence[at : at + entities] for at in range(0, len(presence), entities)]
        flags = [known[pattern] for pattern in patterns]
        for row in unreadable:
            flags[row] = (*flags[row], PROFILE_UNREADABLE)
        return flags if is_sure else [(*payment_flags, OVERLAY_ABSENT) for payment_flags in flags]

    def _fill_one_by_one_with_overlay(
        self, overlay: Overlay, mirror: MirrorReader, count: int
    ) -> tuple[bool, list[int]]:
        """Do as `_fill_one_by_one`. Returns whether pending payments were seen, and the payments that are flagged."""
        entities, unreadable = self._entities, []
        for row in range(count):
            presence = mirror.presence[row * entities : (row + 1) * entities]
            try:
                overlay.fill_one(row, presence)
            except UnreadableProfile:
                unreadable.append(row)
                presence[presence == KNOWN] = UNKNOWN
                self.hops.forget(row)
                overlay.fill_one(row, presence)
        return overlay.is_sure, unreadable

    def _fill_one_by_one(self, mirror: MirrorReader, flags: list[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
        """Fill vectors one at a time, as a profile cannot be read. That payment is scored as if it had no profiles."""
        entities = self._entities
        for row in range(count):
            items = slice(row * entities, (row + 1) * entities)
            presence = mirror.presence[items]
            bounds = mirror.bounds[items.start : items.stop + 1]
            attributes, vector = self.rows[row : row + 1], self.vectors[row : row + 1]
            hops = self.hops.values[row : row + 1]
            try:
                self._engine.fill_vectors(attributes, presence, mirror.states, bounds, vector, hops)
            except UnreadableProfile:
                flags[row] = (*flags[row], PROFILE_UNREADABLE)
                presence[presence == KNOWN] = UNKNOWN
                self.hops.forget(row)
                self._engine.fill_vectors(attributes, presence, mirror.states, bounds, vector, hops)
        return flags

    def _fill_without_mirror(self, keys: Sequence[bytes], count: int) -> tuple[list[tuple[str, ...]], int]:
        self._no_presence[: len(keys)] = [UNKNOWN if key else ABSENT for key in keys]
        self._fill_from_nothing(count)
        return [(MIRROR_ABSENT,)] * count, 0

    def _look_up_nothing(self) -> int:
        assert self.mirror is not None
        try:
            return self.mirror.look_up(())
        except MirrorAbsent:
            return 0

    def _count_lookups(self, patterns: Sequence[bytes]) -> None:
        # A chunk has only a few different patterns.
        for pattern in set(patterns):
            count = patterns.count(pattern)
            for counter in self._lookup_counters[pattern]:
                counter.add(count)


def _with_unreadable(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a payment's flags with PROFILE_UNREADABLE, where it stands for a payment's own profiles, too."""
    if PROFILE_UNREADABLE in flags:
        return flags
    last = flags[-1:] if OVERLAY_ABSENT in flags[-1:] else ()
    return (*flags[: len(flags) - len(last)], PROFILE_UNREADABLE, *last)
