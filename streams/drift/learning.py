"""What is usual of live decisions, learnt from the weeks before: what no bundle says.

A bundle's reference tells how scores, features and segments were in its training window. Which actions are taken, how
old profiles are and how often something is unknown follows from the policy and the servers, and is learnt from the
hours that evaluation keeps (streams/drift/evaluation.py), of all payments together. So are the scores of a
version that has no reference at all. At each midnight (UTC) it is learnt anew, from PAST_WEEKS at most. From the
hours alone, so after a restart it is the same.
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
from paywarden.streams.drift.counts import UNKNOWN_HIGH_RISK_AT, Binnings, Model, base_version
from paywarden.streams.drift.evaluation import PAST_WEEKS

Past = Callable[[int, int], Iterable[tuple[int, Mapping[Model, Counts]]]]
"""Hours from a time to another, none left out, each with its counts of OVERALL by model. Raises StoreUnavailable."""

_PAST_MS = PAST_WEEKS * 7 * DAY_MS
# Of one reference: its digest and the number of its signals.
_ENTRY = struct.Struct(f"<{DIGEST_SIZE}sI")
_LENGTH = struct.Struct("<I")


def counted_binning(reference: Reference) -> Binning:
    """What decisions are counted in of whose model this is the reference.

    Flags are no part of a model; a reference that knows how often they were there has its own.
    """
    return reference.binning if Kinds.QUALITY in reference.kinds else replace(reference.binning, flags=FLAGS)


class LiveReferences:
    """A reference of each version, of the kinds that its own has not; of OVERALL alone."""

    def __init__(self, own: Mapping[str, Reference], binnings: Binnings, past: Past, *, days_min: int) -> None:
        """`own`: by version. `days_min`: whole days of the past that are wanted before anything is expected."""
        self._own, self._binnings, self._past, self._days_min = own, binnings, past, days_min
        # By model, of one day.
        self._learnt: dict[Model, Reference] = {}
        self._learnt_on_ms = -1

    def nothing_of(self, version: str) -> Reference | None:
        """The version's before anything is learnt; None where its own has all kinds."""
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
        """The version's on the day of this time. Raises StoreUnavailable."""
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
        return replace(nothing, counts=total, baseline=learn_baseline(nothing.layout, total, hours))


@dataclass(frozen=True)
class _Hours:
    """Of one model; read each time they are asked for."""

    past: Past
    model: Model
    binning: Binning
    start_ms: int
    end_ms: int

    def __iter__(self) -> Iterator[TimedCounts]:
        for start_ms, counts in self.past(self.start_ms, self.end_ms):
            found = counts.get(self.model)
            yield start_ms, Counts.empty(self.binning) if found is None else found

    def from_the_first(self) -> _Hours | None:
        """From the first midnight on, after which there is something; None where there is nothing."""
        for start_ms, counts in self.past(self.start_ms, self.end_ms):
            if self.model in counts:
                return replace(self, start_ms=-(-start_ms // DAY_MS) * DAY_MS)
        return None


class FollowedLevels:
    """Of each reference float32 (signals,), moved a little by every day. Not thread-safe."""

    def __init__(self, references: Iterable[Reference]) -> None:
        self._moved = {one.digest: np.zeros(len(one.layout.signals), dtype=np.float32) for one in references}

    def of(self, reference: Reference) -> NDArray[np.float32]:
        """As of now."""
        return self._moved[reference.digest]

    def follow(self, reference: Reference, day: Block) -> None:
        """Take in a day that was held against what `of` gave."""
        self._moved[reference.digest] = followed(reference.baseline, reference.layout, self.of(reference), day)

    def to_bytes(self) -> bytes:
        """All of them."""
        parts = [_ENTRY.pack(digest, len(moved)) + moved.tobytes() for digest, moved in sorted(self._moved.items())]
        content = b"".join(parts)
        return _LENGTH.pack(len(content)) + content

    def restore(self, state: bytes) -> bytes:
        """Become what `to_bytes` was taken of; returns what is behind it. Of nothing, and of other references, new.

        Raises InvalidEvent for damaged bytes, and has then changed nothing.
        """
        moved = {digest: np.zeros_like(one) for digest, one in self._moved.items()}
        if not state:
            self._moved = moved
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
        except (struct.error, ValueError) as error:
            raise InvalidEvent("the levels of drift detection are damaged") from error
        if place != end or end > len(state):
            raise InvalidEvent("the levels of drift detection are damaged: they are cut off")
        self._moved = moved
        return state[end:]
