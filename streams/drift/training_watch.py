"""Compare each week of a model's decisions with its training window, and find the subjects that moved away.

The detectors find a change against expectations that follow features and traffic. A change that is slow enough is
followed to its end. This comparison follows nothing:

    day    web    expected by the baseline   in training   this comparison
    1      74 %   74 %                       74 %
    30     51 %   53 %                       74 %          raised, info: psi 0.22
    45     40 %   42 %                       74 %          escalated, critical: psi 0.51

1. At midnight the day's row of cells (models/drift/training_distance.py) joins those of the last six days. Their sum is
   compared with the training window. The first comparison is after a whole week.
2. A subject has moved if its PSI, beyond the natural distance between weeks, reaches `psi_info`, and if `outside_min`
   of the payments are not where they were; of a number, twice as many. A feature that moved very far in training
   itself, such as the time since a card was first seen, is left to the baseline.
3. Moved subjects form groups: the traffic of each dimension, the features, the score. A group has one alert in the
   version's book (streams/alerts/book.py), named after the subject that moved most in it. A feature or score that
   moved by the mix of a dimension alone is attached to the alert of that traffic; a score that moved with features, to
   theirs.
4. As long as an alert of the baseline says the same at no lesser severity, none is raised.
5. An open alert escalates, is repeated a few times, and clears when all of its group is back under half of `psi_info`.
   A new reference, and a model that no longer decides, clear it, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import OVERALL
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signals import FEATURE_PREFIX, TRAFFIC
from paywarden.models.drift.training_distance import WINDOW_DAYS, Distances, Subjects, chance_psi
from paywarden.models.metrics.distances import psi
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_records import Histograms
from paywarden.streams.alerts.alerts import Alert, Comparison, MovedSignal, Severity, State, rank_of
from paywarden.streams.alerts.book import ATTACHED_MAX, AlertBook, is_snoozed, is_worse
from paywarden.streams.alerts.causes import dimension_of, is_foreign
from paywarden.streams.drift.drift_settings import TrainingComparisonSettings

CountArray = NDArray[np.int64]
DISTRIBUTION = "distribution"
"""The statistic of an alert about a whole histogram: the share of payments that have moved."""
FEATURES, SCORE = "features", "score"
# An alert is over below this share of psi_info.
_QUIET_SHARE = 0.5
# For a number, this many times `outside_min` of the payments must have moved. A shift with a PSI of 0.2 moves a sixth.
_ORDERED_TIMES = 2
# A number must lie this many times as far away as any week of training did. Profiles of a large merchant give all its
# payments nearly one value, which wanders. Two months of training hold few independent values of it, so later weeks lie
# further away by chance.
_NATURAL_TIMES = 2
# Weeks of the training window that lie this far from it say that a feature is a clock: it leaves the window by itself.
_CLOCK_PSI = 1.0
# A warning and a critical alert need this many times `outside_min` of the payments outside.
_WARNING_TIMES, _CRITICAL_TIMES = 2, 4
# The mix explains a move if less than this share of its PSI is left once the mix is taken into account.
_LEFT_MAX = 0.5
# A segment with fewer payments in the reference is taken to be like all payments.
_SEGMENT_PAYMENTS_MIN = 200
_ZLIB_LEVEL = 1
# All rows of a week of one model and its alerts are some 100 kB.
_STATE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True)
class Week:
    """The decisions of the days up to `end_ms`, compared with the training window. Arrays have shape (subjects,).

    `beyond`: the PSI beyond the natural distance. `newest`: the counts of the last day, with all segments.
    """

    start_ms: int
    end_ms: int
    row: CountArray
    distances: Distances
    beyond: NDArray[np.float64]
    newest: Counts


class TrainingWatch:
    """The comparison of one model version with its reference. Not thread-safe."""

    def __init__(self, version: str, reference: Reference, settings: TrainingComparisonSettings) -> None:
        self.version, self.reference, self._settings = version, reference, settings
        self._subjects = Subjects(reference.binning, reference.feature_names)
        self._then = self._subjects.row(reference.counts)
        # The rows of the last days, by the start of the day.
        self._days: dict[int, CountArray] = {}
        self._since_ms = 0
        # How far the newest week lies from the training window beyond its natural distance: the furthest of each group.
        self.distances: dict[str, float] = {}

    def step(self, day_ms: int, counts: Counts, book: AlertBook) -> list[Alert]:
        """Take a day's counts; return the alerts that were raised, escalated, repeated or cleared.

        `book`: the open alerts of this version. A day that was taken before changes nothing.
        """
        if self._days and day_ms <= max(self._days):
            return []
        self._since_ms = self._since_ms or day_ms
        self._days[day_ms] = self._subjects.row(counts)
        first_ms = day_ms - (WINDOW_DAYS - 1) * DAY_MS
        self._days = {day: row for day, row in self._days.items() if day >= first_ms}
        if self._since_ms > first_ms:
            return []
        return self._judge(self._week(first_ms, day_ms + DAY_MS, counts), book)

    def is_idle(self, end_ms: int) -> bool:
        """Whether no day of the week before `end_ms` has a decision."""
        return not self._days or max(self._days) + WINDOW_DAYS * DAY_MS < end_ms

    def histograms(self, alert: Alert) -> Histograms | None:
        """Return the histograms of the reference and of the week; None for traffic, which has no edges."""
        number, binning = self._number_of(alert), self.reference.binning
        then, now = self._subjects.of(self._then, number), self._subjects.of(self._sum(), number)
        if alert.subject == SCORE:
            return Histograms.of_score(binning, then, now)
        if alert.subject == TRAFFIC:
            return None
        feature = self.reference.feature_names.index(alert.subject.removeprefix(FEATURE_PREFIX))
        return Histograms.of_feature(binning, feature, then, now)

    def _sum(self) -> CountArray:
        return np.asarray(sum(self._days.values()), dtype=np.int64)

    def _week(self, start_ms: int, end_ms: int, newest: Counts) -> Week:
        row = self._sum()
        distances = self._subjects.distances(self._then, row)
        chance = [
            chance_psi(len(then), int(then.sum()), count)
            for then, count in (
                (self._subjects.of(self._then, number), count) for number, count in enumerate(distances.count.tolist())
            )
        ]
        natural = np.array(chance)
        if self.reference.natural is not None:
            times = np.where(self._subjects.is_ordered, _NATURAL_TIMES, 1)
            natural = np.maximum(natural, times * self.reference.natural.psi_of(distances.count))
        is_compared = (distances.count >= self._settings.payments_min) & ~self._is_clock
        beyond = np.where(is_compared, distances.psi - natural, 0.0)
        return Week(start_ms, end_ms, row, distances, beyond, newest)

    @cached_property
    def _is_clock(self) -> NDArray[np.bool_]:
        """A mask of the features that left the training window's own range while it lasted, (subjects,)."""
        subjects = self._subjects.all
        natural = self.reference.natural.psi if self.reference.natural is not None else np.zeros(len(subjects))
        is_feature = np.array([subject.name.startswith(FEATURE_PREFIX) for subject in subjects])
        return np.asarray(is_feature & (natural >= _CLOCK_PSI))

    def by_group(self, book: AlertBook) -> dict[str, Alert]:
        """Return the open alerts of this comparison, by group."""
        return {self._group_of(self._number_of(alert)): alert for alert in book.of(Comparison.TRAINING)}

    def _judge(self, week: Week, book: AlertBook) -> list[Alert]:
        moved, quiet = self._moved(week)
        distances: dict[str, float] = {}
        for number, beyond in enumerate(week.beyond.tolist()):
            group = self._group_of(number)
            distances[group] = max(beyond, distances.get(group, beyond))
        self.distances = distances
        before, known = dict(book.open), self.by_group(book)
        groups = self._groups(week, moved)
        for group, members in groups.items():
            alert = known.get(group)
            if alert is not None:
                book.put(self._followed(alert, members, week))
            elif members and not self._is_told(members[0], week, book.of(Comparison.BASELINE)):
                book.put(self._raised(group, members, week))
        for group, alert in known.items():
            if not groups.get(group):
                # Nothing of its group is over the limit; it clears once the group is quiet.
                number = self._number_of(alert)
                before[alert.alert_id] = newer = replace(alert, **self._naming(number, [number], week))
                book.put(newer)
                if number in quiet:
                    del book.open[alert.alert_id]
        return book.changes(before, week.end_ms)

    def _moved(self, week: Week) -> tuple[list[int], list[int]]:
        """Return the numbers of the subjects that have moved, the furthest first, and of the quiet subjects."""
        settings = self._settings
        outside_min = np.where(self._subjects.is_ordered, _ORDERED_TIMES, 1) * settings.outside_min
        has_moved = (week.beyond >= settings.psi_info) & (week.distances.outside >= outside_min)
        quiet = np.flatnonzero(week.beyond < _QUIET_SHARE * settings.psi_info).tolist()
        furthest = np.argsort(-week.beyond, kind="stable")
        return [number for number in furthest.tolist() if has_moved[number]], quiet

    def _groups(self, week: Week, moved: list[int]) -> dict[str, list[int]]:
        """Return the moved subjects by group, the furthest first. Explained subjects belong to the group behind it."""
        groups: dict[str, list[int]] = {}
        of_traffic = [number for number in moved if self._subjects.all[number].name == TRAFFIC]
        for number in of_traffic:
            groups[self._group_of(number)] = [number]
        # Features before the score, which they explain.
        others = sorted(set(moved) - set(of_traffic), key=lambda number: (number == 0, moved.index(number)))
        for number in others:
            cause = next((one for one in of_traffic if self._mix_explains(week, number, one)), None)
            if cause is not None:
                groups[self._group_of(cause)].append(number)
            elif number == 0 and FEATURES in groups:
                groups[FEATURES].append(number)
            else:
                groups.setdefault(self._group_of(number), []).append(number)
        return groups

    def _group_of(self, number: int) -> str:
        subject = self._subjects.all[number]
        if subject.name == TRAFFIC:
            return f"{TRAFFIC}:{subject.dimension}"
        return FEATURES if subject.name.startswith(FEATURE_PREFIX) else SCORE

    def _number_of(self, alert: Alert) -> int:
        dimension = dimension_of(alert.segment) if alert.subject == TRAFFIC else ""
        return next(
            number
            for number, subject in enumerate(self._subjects.all)
            if (subject.name, subject.dimension) == (alert.subject, dimension)
        )

    def _mix_explains(self, week: Week, number: int, traffic: int) -> bool:
        """Whether a feature or the score moved because the traffic of a dimension did.

        Either the segments are as they were and only their shares differ, or one segment came or went and nothing
        changed outside it.
        """
        place = [subject.name for subject in self._subjects.all].index(TRAFFIC)
        names = self._subjects.segments[traffic - place]
        segments = [self.reference.binning.segments.index(name) for name in names]
        shares = self._subjects.of(week.row, traffic).astype(np.float64)
        now = self._subjects.of(week.row, number)
        mixed = np.zeros(len(now))
        for segment, share in zip(segments, shares, strict=True):
            mixed += share * self._shape(segment, number)
        then = self._subjects.of(self._then, number)
        if psi(mixed / mixed.sum() * then.sum(), now) < _LEFT_MAX * psi(then, now):
            return True
        foreign = self._most_moved(week, traffic)
        return self._foreign_explains(week, number, segments[foreign], *self._shares_at(week, traffic, foreign))

    def _shape(self, segment: int, number: int) -> NDArray[np.float64]:
        """Return how a subject was distributed over its bins in a segment of the reference."""
        inside = self._subjects.of(self._subjects.row(self.reference.counts, segment), number)
        if inside.sum() < _SEGMENT_PAYMENTS_MIN:
            inside = self._subjects.of(self._then, number)
        return np.asarray(inside / max(int(inside.sum()), 1), dtype=np.float64)

    def _foreign_explains(self, week: Week, number: int, segment: int, value: float, expected: float) -> bool:
        if not is_foreign(value, expected):
            return False
        of, row = self._subjects.of, self._subjects.row
        then = of(row(self.reference.counts), number) - of(row(self.reference.counts, segment), number)
        whole = of(row(week.newest), number)
        now = whole - of(row(week.newest, segment), number)
        return bool(psi(then, now) < _LEFT_MAX * psi(of(self._then, number), whole))

    def _most_moved(self, week: Week, traffic: int) -> int:
        """Return which value of a dimension has the largest part in the PSI of its traffic."""
        then, now = (_shares(self._subjects.of(row, traffic)) for row in (self._then, week.row))
        floor = 0.5 / max(int(week.distances.count[traffic]), 1)
        then, now = np.maximum(then, floor), np.maximum(now, floor)
        return int(np.argmax((now - then) * np.log(now / then)))

    def _shares_at(self, week: Week, traffic: int, place: int) -> tuple[float, float]:
        """Return the share of a value of a dimension in the week and in training."""
        return tuple(float(_shares(self._subjects.of(row, traffic))[place]) for row in (week.row, self._then))  # type: ignore[return-value]

    def _severity(self, week: Week, number: int) -> Severity:
        """Return how bad a move is: by its PSI, and by the share of payments that would have to move.

        The PSI of a value that training never saw is large from its first payments on.
        """
        settings, beyond, outside = self._settings, week.beyond[number], week.distances.outside[number]
        if beyond >= settings.psi_critical and outside >= _CRITICAL_TIMES * settings.outside_min:
            return Severity.CRITICAL
        is_warning = beyond >= settings.psi_warning and outside >= _WARNING_TIMES * settings.outside_min
        return Severity.WARNING if is_warning else Severity.INFO

    def _is_told(self, number: int, week: Week, others: Sequence[Alert]) -> bool:
        """Whether an open alert of the baseline says at least as much about this subject."""
        subject, severity = self._subjects.all[number], self._severity(week, number)
        for alert in others:
            names = {alert.subject, *(moved.subject for moved in alert.attached)}
            same = subject.name in names
            if subject.name == TRAFFIC:
                same = alert.subject == TRAFFIC and dimension_of(alert.segment) == subject.dimension
            if same and rank_of(alert.severity) >= rank_of(severity):
                return True
        return False

    def _naming(self, number: int, members: Iterable[int], week: Week) -> dict[str, Any]:
        """Return the fields of an alert that is named after this subject."""
        subject, distances = self._subjects.all[number], week.distances
        statistic, segment = DISTRIBUTION, OVERALL
        value, expected = float(distances.outside[number]), 0.0
        attached = [self._attached(member, week) for member in members if member != number]
        if subject.name == TRAFFIC:
            place = self._most_moved(week, number)
            names = self._subjects.segments[number - len(self._subjects.all) + len(self._subjects.segments)]
            statistic, segment = "share", names[place]
            value, expected = self._shares_at(week, number, place)
            attached += self._of_segment(week, segment, value, expected)
        return {
            "subject": subject.name,
            "statistic": statistic,
            "segment": segment,
            "slack_ms": WINDOW_DAYS * DAY_MS // 2,
            "length_ms": week.end_ms - week.start_ms,
            "effect": float(distances.psi[number]),
            "effect_min": float(distances.psi[number] - week.beyond[number]) + self._settings.psi_info,
            "value": value,
            "expected": expected,
            "count": int(distances.count[number]),
            "evidence": 0.0,
            "evidence_min": 0.0,
            "shift": 0.0,
            "window_start_ms": week.start_ms,
            "window_end_ms": week.end_ms,
            "last_counted_ms": week.end_ms,
            "outside": float(distances.outside[number]),
            "attached": tuple(attached[:ATTACHED_MAX]),
        }

    def _attached(self, number: int, week: Week) -> MovedSignal:
        subject = self._subjects.all[number]
        return MovedSignal(subject.name, DISTRIBUTION, OVERALL, float(week.distances.psi[number]), 0.0)

    def _of_segment(self, week: Week, segment: str, value: float, expected: float) -> list[MovedSignal]:
        """Return the score within a segment that has grown, if it is not as the reference's score is."""
        place = self.reference.binning.segments.index(segment)
        now = week.newest.scores[place]
        if value <= expected or now.sum() < _SEGMENT_PAYMENTS_MIN:
            return []
        then = self.reference.counts.scores[place]
        if then.sum() < _SEGMENT_PAYMENTS_MIN:
            then = self.reference.counts.scores[0]
        moved = float(psi(then, now)) - chance_psi(len(now), int(then.sum()), int(now.sum()))
        return [MovedSignal(SCORE, DISTRIBUTION, segment, moved, 0.0)] if moved >= self._settings.psi_info else []

    def _raised(self, group: str, members: list[int], week: Week) -> Alert:
        # A digest, so a day that is evaluated again raises the same alert.
        name = "\0".join((self.version, self.reference.digest.hex(), group, str(week.end_ms)))
        return Alert(
            alert_id=hashlib.sha256(f"training\0{name}".encode()).hexdigest()[:16],
            model_version=self.version,
            state=State.RAISED,
            severity=self._severity(week, members[0]),
            time_ms=week.end_ms,
            first_seen_ms=week.start_ms,
            raised_ms=week.end_ms,
            comparison=Comparison.TRAINING,
            **self._naming(members[0], members, week),
        )

    def _followed(self, alert: Alert, members: list[int], week: Week) -> Alert:
        """Return an open alert whose group still has moved as it is now. It may be due to be repeated."""
        named, settings = self._number_of(alert), self._settings
        number = named if named in members else members[0]
        severity = max((self._severity(week, number), alert.severity), key=rank_of)
        newer = replace(alert, **self._naming(number, members, week), severity=severity)
        due_ms = alert.time_ms + settings.remind_days * DAY_MS * 2**alert.reminders
        is_due = week.end_ms >= due_ms and alert.reminders < settings.reminders_max
        if is_due and not (is_worse(alert, newer) or alert.held_back or is_snoozed(newer, week.end_ms)):
            return replace(newer, reminders=alert.reminders + 1)
        return newer

    def to_dict(self) -> dict[str, Any]:
        """Return the state for JSON and `restore`."""
        days = {str(day): base64.b64encode(row.astype("<i8").tobytes()).decode() for day, row in self._days.items()}
        return {
            "reference": self.reference.digest.hex(),
            "since_ms": self._since_ms,
            "days": days,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `to_dict`. Raises ValueError, KeyError or TypeError for damaged states."""
        days = {int(day): np.frombuffer(base64.b64decode(row), "<i8") for day, row in state["days"].items()}
        if any(len(row) != self._subjects.cells for row in days.values()):
            raise ValueError("the rows are of other subjects")
        self._days = {day: row.astype(np.int64) for day, row in days.items()}
        self._since_ms = int(state["since_ms"])


def pack(watches: Mapping[str, TrainingWatch]) -> bytes:
    """Return the state of all versions, for `unpack`; empty if there is nothing to keep."""
    states = {version: watch.to_dict() for version, watch in sorted(watches.items())}
    text = json.dumps(states, separators=(",", ":"), sort_keys=True)
    return zlib.compress(text.encode(), _ZLIB_LEVEL) if states else b""


def unpack(
    state: bytes, reference_of: Callable[[str], Reference | None], settings: TrainingComparisonSettings
) -> dict[str, TrainingWatch]:
    """Return what `pack` was called on, without the versions that have another reference now, or none.

    Raises InvalidEvent for damaged bytes.
    """
    watches: dict[str, TrainingWatch] = {}
    try:
        for version, fields in json.loads(_inflated(state)).items() if state else ():
            reference = reference_of(version)
            if reference is not None and reference.digest.hex() == fields["reference"]:
                watches[version] = TrainingWatch(version, reference, settings)
                watches[version].restore(fields)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidEvent("the state of the comparison with training is damaged") from error
    return watches


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(counts / max(int(counts.sum()), 1), dtype=np.float64)


def _inflated(state: bytes) -> bytes:
    """Raises ValueError for a state that is cut off or larger than any can be."""
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(state, _STATE_BYTES_MAX)
    if not decompressor.eof:
        raise ValueError("the state is cut off")
    return text
