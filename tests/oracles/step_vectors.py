"""The vectors of a chunk, one step at a time from Python: the oracle of their part in the compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import ABSENT, AMOUNT, KNOWN, UNKNOWN
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.models.policy.policy import MIRROR_ABSENT, OVERLAY_ABSENT, PROFILE_UNREADABLE, UNKNOWN_RATE
from paywarden.scoring.engine.vectors import Vectors
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics, StageTimes
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.overlay.overlay import Overlay
from tests.oracles.mirror_reading import KeyLookUp
from tests.oracles.step_overlay import StepOverlay


class StepVectors(Vectors):
    """A scorer's vectors that are filled by keys. An overlay must be a StepOverlay."""

    def __init__(
        self,
        engine: FeatureEngine,
        mirror: MirrorSettings,
        rows: NDArray[np.int64],
        *,
        metrics: ScoringMetrics,
        stages: StageTimes,
        overlay: Overlay | None,
        held_cards: HeldCards | None,
    ) -> None:
        super().__init__(engine, mirror, rows, overlay=overlay, held_cards=held_cards)
        self._steps = cast(StepOverlay | None, overlay)
        self._stages = stages
        self._keys: KeyLookUp | None = None
        # For each combination: the hit and miss counters it increments.
        self._lookup_counters = {
            pattern: [
                metrics.mirror_lookups[name, "hit" if presence == KNOWN else "miss"]
                for name, presence in zip(engine.plan.entity_names, pattern, strict=True)
                if presence != ABSENT
            ]
            for pattern in self.unknown_flags
        }

    def open(self) -> bool:
        """See Vectors."""
        is_open = super().open()
        if self.mirror is None:
            self._keys = None
        elif self._keys is None or self._keys.reader is not self.mirror:
            self._keys = KeyLookUp(self.mirror)
        if self.mirror is not None and self._steps is not None:
            self._steps.look_beside(self.mirror, self._settings.path, self.rows, self.vectors, self.hops.values)
        return is_open

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
            assert self._keys is not None
            complete_to_ms = self._keys.look_up(keys)
            if self._stages.is_timed:
                self._stages.lap("look_up", count)
            unreadable = self.hops.fill(count)
        except MirrorAbsent:
            return self._fill_without_mirror(keys, count)
        entities = self._entities
        presence = self._keys.found
        patterns = [presence[at : at + entities] for at in range(0, len(keys), entities)]
        self._count_lookups(patterns)
        if self._steps is not None:
            flags = self._fill_with_overlay(self._steps, mirror, payments, patterns)
        else:
            flags = [self.unknown_flags[pattern] for pattern in patterns]
            try:
                self._fill_from_mirror(mirror, count)
            except UnreadableProfile:
                flags = self._fill_one_by_one(mirror, flags, count)
        for row in unreadable:
            flags[row] = _with_unreadable(flags[row])
        if self._stages.is_timed:
            self._stages.lap("vector", count)
        return flags, complete_to_ms

    def _fill_from_mirror(self, mirror: MirrorReader, count: int) -> None:
        items = count * self._entities
        self._engine.fill_vectors(
            self.rows[:count], mirror.presence[:items], mirror.states, mirror.bounds[: items + 1], self.vectors[:count],
            self.hops.values[:count],
        )  # fmt: skip

    def _fill_with_overlay(
        self, overlay: StepOverlay, mirror: MirrorReader, payments: CheckedPayments, patterns: list[bytes]
    ) -> list[tuple[str, ...]]:
        """Fill vectors from profiles and pending payments; returns the flags. `patterns`: who is in the mirror."""
        count, entities, known, keys = len(payments), self._entities, self.unknown_flags, self._keys
        assert keys is not None
        if not overlay.is_open:
            overlay.note_unused(count)
            flags = [known[pattern] for pattern in patterns]
            try:
                self._fill_from_mirror(mirror, count)
            except UnreadableProfile:
                flags = self._fill_one_by_one(mirror, flags, count)
            return [(*payment_flags, OVERLAY_ABSENT) for payment_flags in flags]
        unreadable: list[int] = []
        try:
            is_sure = overlay.fill(payments.keys, payments.ids, keys.snapshot)
        except UnreadableProfile:
            is_sure, unreadable = self._fill_one_by_one_with_overlay(overlay, mirror, count)
        presence = overlay.folded(keys.found)
        if presence is not keys.found:
            patterns = [presence[at : at + entities] for at in range(0, len(presence), entities)]
        flags = [known[pattern] for pattern in patterns]
        for row in unreadable:
            flags[row] = (*flags[row], PROFILE_UNREADABLE)
        return flags if is_sure else [(*payment_flags, OVERLAY_ABSENT) for payment_flags in flags]

    def _fill_one_by_one_with_overlay(
        self, overlay: StepOverlay, mirror: MirrorReader, count: int
    ) -> tuple[bool, list[int]]:
        """Do as `_fill_one_by_one`. Returns whether pending payments were seen, and the payments that are flagged."""
        entities, unreadable = self._entities, []
        overlay.begin_one_by_one()
        for row in range(count):
            presence = mirror.presence[row * entities : (row + 1) * entities]
            try:
                overlay.fill_one(row, presence)
            except UnreadableProfile:
                unreadable.append(row)
                presence[presence == KNOWN] = UNKNOWN
                self.hops.forget(row)
                overlay.fill_one(row, presence)
        return overlay.count(count), unreadable

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
        self.fill_without_mirror(keys)
        return [(MIRROR_ABSENT,)] * count, 0

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
