"""Learn from live decisions the values that no bundle has, and follow slow changes.

A bundle's reference says how scores, features and segments were in its training window. Other things depend on the
policy and the servers: which actions are taken, how old profiles are, how often something is unknown. Those are learnt
from the hours that evaluation keeps (streams/drift/drift_evaluation.py), over all payments together. The scores of a
version without a reference are learnt the same way.

    Monday 00:00 UTC   learn from at most PAST_WEEKS of hours before   valid for Monday
    Tuesday 00:00 UTC  learn again                                      valid for Tuesday

Learning uses the hours alone, so a restarted worker learns the same.

A bundle's own reference ages as well: people pay differently over the months. `FollowedLevels` moves the expected
values of features and traffic a little with every day.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.baseline import TimedCounts, empty_baseline, followed, learn_baseline
from paywarden.models.drift.binning import DIGEST_SIZE, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signal_layout import Kinds, Layout, Ranks
from paywarden.models.drift.signals import Block
from paywarden.models.policy.policy import FLAGS
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.drift.drift_counts import UNKNOWN_HIGH_RISK_AT, Binnings, Model, base_version
from paywarden.streams.drift.drift_evaluation import PAST_WEEKS

Past = Callable[[int, int], Iterable[tuple[int, Mapping[Model, Counts]]]]
"""Yields every hour between two times, each with its OVERALL counts by model. Raises StoreUnavailable."""

_PAST_MS = PAST_WEEKS * 7 * DAY_MS
# One reference in the packed levels: its digest and the number of its signals.
_ENTRY = struct.Struct(f"<{DIGEST_SIZE}sI")
_LENGTH = struct.Struct("<I")
# Levels kept for references that are not known: those of the models of late.
_KEPT_MAX = 8


def counted_binning(reference: Reference) -> Binning:
    """Return the binning in which decisions of this reference's model are counted.

    Flags belong to no model, so it has the flags of today's policy. A reference that was learnt from live decisions
    knows how often each flag was set, and keeps its own.
    """
    return reference.binning if Kinds.QUALITY in reference.kinds else replace(reference.binning, flags=FLAGS)


class LiveReferences:
    """Learns a reference for each version, of the kinds that its own reference lacks, for OVERALL alone."""

    def __init__(self, own: Mapping[str, Reference], binnings: Binnings, past: Past, *, days_min: int) -> None:
        """`own`: references of bundles by version. `days_min`: whole days needed before anything is expected."""
        self._own, self._binnings, self._past, self._days_min = own, binnings, past, days_min
        # The references learnt for one day, by model.
        self._learnt: dict[Model, Reference] = {}
        self._learnt_on_ms = -1

    def nothing_of(self, version: str) -> Reference | None:
        """Return the version's reference before anything is learnt; None if its own has all kinds."""
        model, binning = self._binnings.of(version)
        own = self._own.get(base_version(version))
        kinds = (Kinds.SCORE if own is None else Kinds(0)) | Kinds.QUALITY
        if own is not None and Kinds.QUALITY in own.kinds:
            return None
        layout = Layout(binning, (), Ranks.of_places(binning), high_risk_at=UNKNOWN_HIGH_RISK_AT, kinds=kinds)
        return Reference(
            model.version, (), UNKNOWN_HIGH_RISK_AT, kinds, Counts.empty(binning), empty_baseline(layout), layout
        )

    def of(self, version: str, time_ms: int) -> Reference | None:
        """Return the version's learnt reference for the day of this time. Raises StoreUnavailable."""
        day_ms = time_ms - time_ms % DAY_MS
        if self._learnt_on_ms != day_ms:
            self._learnt, self._learnt_on_ms = {}, day_ms
        model, _ = self._binnings.of(version)
        if model not in self._learnt:
            nothing = self.nothing_of(version)
            if nothing is None:
                return None
            self._learnt[model] = self._learn(nothing, model, day_ms)
        return self._learnt[model]

    def _learn(self, nothing: Reference, model: Model, day_ms: int) -> Reference:
        hours = _Hours(self._past, model, nothing.binning, day_ms - _PAST_MS, day_ms).from_the_first()
        if hours is None or day_ms - hours.start_ms < self._days_min * DAY_MS:
            return nothing
        total = Counts.empty(nothing.binning)
        for _, counts in hours:
            total.add(counts)
        baseline = learn_baseline(nothing.layout, total, hours)
        return replace(nothing, counts=total, baseline=baseline, start_ms=hours.start_ms, end_ms=day_ms)


@dataclass(frozen=True)
class _Hours:
    """The hours of one model, read from the store each time they are iterated."""

    past: Past
    model: Model
    binning: Binning
    start_ms: int
    end_ms: int

    def __iter__(self) -> Iterator[TimedCounts]:
        for start_ms, counts in self.past(self.start_ms, self.end_ms):
            of_model = counts.get(self.model)
            yield start_ms, Counts.empty(self.binning) if of_model is None else of_model

    def from_the_first(self) -> _Hours | None:
        """Return the hours from the first midnight after the model's first hour; None if it has no hour."""
        for start_ms, counts in self.past(self.start_ms, self.end_ms):
            if self.model in counts:
                return replace(self, start_ms=-(-start_ms // DAY_MS) * DAY_MS)
        return None


class FollowedLevels:
    """For each reference a float32 array (signals,): how far expectations have moved. Not thread-safe."""

    def __init__(self, references: Iterable[Reference]) -> None:
        self._moved = {
            reference.digest: np.zeros(len(reference.layout.signals), dtype=np.float32) for reference in references
        }
        # Levels of references that are not known yet, from the restored state: their bundles may be found again.
        self._kept: dict[bytes, NDArray[np.float32]] = {}

    def add(self, reference: Reference) -> None:
        """Follow one more reference, from where a restored state left it, else from 0."""
        kept = self._kept.pop(reference.digest, None)
        fresh = np.zeros(len(reference.layout.signals), dtype=np.float32)
        self._moved.setdefault(reference.digest, kept if kept is not None and len(kept) == len(fresh) else fresh)

    def of(self, reference: Reference) -> NDArray[np.float32]:
        """Return how far a reference's expectations have moved by now, float32 (signals,)."""
        return self._moved[reference.digest]

    def follow(self, reference: Reference, day: Block) -> None:
        """Take in a day whose block was computed with the levels that `of` returned."""
        self._moved[reference.digest] = followed(reference.baseline, reference.layout, self.of(reference), day)

    def to_bytes(self) -> bytes:
        """Return all levels, for `restore`."""
        levels = sorted((self._kept | self._moved).items())
        parts = [_ENTRY.pack(digest, len(moved)) + moved.tobytes() for digest, moved in levels]
        content = b"".join(parts)
        return _LENGTH.pack(len(content)) + content

    def restore(self, state: bytes) -> bytes:
        """Restore the levels that `to_bytes` returned, and return the bytes behind them.

        With empty bytes they start again at 0. Levels of other references are kept for `add`. Raises InvalidEvent for
        damaged bytes, and has then changed nothing.
        """
        moved = {digest: np.zeros_like(levels) for digest, levels in self._moved.items()}
        kept: dict[bytes, NDArray[np.float32]] = {}
        if not state:
            self._moved, self._kept = moved, kept
            return b""
        try:
            end = _LENGTH.size + _LENGTH.unpack_from(state)[0]
            place = _LENGTH.size
            while place < end:
                digest, count = _ENTRY.unpack_from(state, place)
                place += _ENTRY.size
                values = np.frombuffer(state, np.float32, count, place)
                place += values.nbytes
                if len(moved.get(digest, ())) == count:
                    moved[digest] = values.copy()
                elif digest not in moved and len(kept) < _KEPT_MAX:
                    kept[digest] = values.copy()
        except (struct.error, ValueError) as error:
            raise InvalidEvent("the levels of drift detection are damaged") from error
        if place != end or end > len(state):
            raise InvalidEvent("the levels of drift detection are damaged: they are cut off")
        self._moved, self._kept = moved, kept
        return state[end:]
