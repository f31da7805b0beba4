"""The page of one alert: the change, its certainty, its probable cause, other events, and a text to hand over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paywarden.ops.alert_text import LOOK_AT, in_words, size_of, values_of
from paywarden.ops.console.inbox.segments import SegmentCounts
from paywarden.ops.console.inbox.store import AlertRow, AlertStore, Happened, snoozed_until_ms
from paywarden.ops.console.pages import Page, Shown, Visit, not_found
from paywarden.ops.console.people.people import Role
from paywarden.ops.console.rendering.charts import Histogram, Line, bin_labels, histogram, line, shares
from paywarden.ops.console.rendering.templates import time_text
from paywarden.ops.console.rendering.words import what_moved, where
from paywarden.streams.alerts.events import alert_subject

# The time line shows events this long before and after the change began.
_AROUND_MS = 3 * 3_600_000
_MOVED_MAX = 20
# Decimal logarithms of evidence beyond the required evidence.
_VERY_SURE = 2.0
# The meaning of the numbers of a score or a feature: models/drift/signal_layout.py.
_VALUES = {
    "location": "the mean place of these payments among usual ones, from 0, the lowest, to 1",
    "spread": "their mean distance from the middle of usual ones, from 0 to 1",
}

ACT_ROLES = frozenset({Role.ANALYST, Role.LEAD, Role.MODEL_OWNER})
"""The roles that may acknowledge, snooze, assign and comment."""

DURATIONS = ("30m", "1h", "4h", "1d", "3d", "7d")
"""How long an alert may be snoozed from a page."""

Happenings = Callable[[int, int], Sequence[Happened]]
"""Returns the events between two times: rollouts, promotions."""

Samples = Callable[[str], tuple[Sequence[str], Sequence[str]] | None]
"""Returns ids of payments of an alert's segment from before and after the change; None until they were looked for."""


Segments = Callable[[str], Sequence[SegmentCounts]]
"""Returns where the payments of an alert moved most, by the alert's id."""

Meanings = Callable[[str], str]
"""Returns the meaning of a feature, in the catalogue's words; empty for a feature that it does not have."""


@dataclass(frozen=True)
class SegmentChart:
    """Then and now in a segment, by a sample of decisions."""

    segment: str
    before_count: int
    now_count: int
    chart: Histogram


@dataclass(frozen=True)
class Moved:
    """A signal that moved with the alert."""

    subject: str
    signal: str
    segment: str
    value: float
    deviation: float


@dataclass(frozen=True)
class AlertView:
    """Everything known about an alert. `meaning`: of the feature that moved. `value_means`: of its numbers."""

    alert: AlertRow
    meaning: str
    sentences: tuple[str, ...]
    size: str
    values: str
    value_means: str
    certainty: str
    window_start_ms: int
    window_end_ms: int
    reference_count: int
    compared_with: str
    look_at: str
    why: str
    was_name: str
    chart: Histogram | None
    by_segment: tuple[SegmentChart, ...]
    over_time: Line | None
    features: tuple[Moved, ...]
    others: tuple[Moved, ...]
    flags: tuple[tuple[str, float], ...]
    near: tuple[AlertRow, ...]
    timeline: tuple[Happened, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    is_sampled: bool
    decisions_link: str
    hand_over: str
    may_act: bool
    durations: tuple[str, ...] = DURATIONS


class AlertPage:
    """The page. `happenings`, `samples` and the others come from other parts of the console, where they are there."""

    def __init__(
        self,
        store: AlertStore,
        url: Callable[[], str],
        happenings: Happenings | None = None,
        samples: Samples | None = None,
        segments: Segments = lambda _: (),
        meanings: Meanings = lambda _: "",
    ) -> None:
        self._store, self._url, self._happenings, self._samples = store, url, happenings, samples
        self._segments, self._meanings = segments, meanings

    def page(self) -> Page:
        """Returns the page, for the section of the inbox."""
        return Page("/inbox/{alert_id}", self.show, "All about an alert", view=AlertView)

    def show(self, visit: Visit) -> Shown:
        """Show an alert."""
        alert_id = visit.path["alert_id"]
        found = self._store.find(alert_id)
        if found is None:
            alert_ids = self._store.ids_beginning(alert_id) if len(alert_id) >= 4 else []
            if len(alert_ids) != 1:
                raise not_found(f"alert {alert_id}")
            found = self._store.find(alert_ids[0])
            assert found is not None
        row, record = found
        view = self._view(row, record, visit)
        return Shown("inbox/alert.html", view, _moved(row.subject, row.signal, row.segment))

    def _view(self, row: AlertRow, record: Mapping[str, Any], visit: Visit) -> AlertView:
        moved = [
            Moved(one["subject"], one["signal"], one["segment"], one["value"] or 0.0, one["deviation"] or 0.0)
            for one in record["moved"][:_MOVED_MAX]
        ]
        first, last = row.first_seen_ms - _AROUND_MS, row.raised_ms + _AROUND_MS
        near = self._store.near(first, last, but=row.alert_id)
        events = [
            Happened(event.time_ms, event.kind, event.by, _said(event.what))
            for event in self._store.events(alert_subject(row.alert_id))
        ]
        around = list(self._happenings(first, last)) if self._happenings is not None else []
        around += [
            Happened(one.raised_ms, "another alert", "stream", _moved(one.subject, one.signal, one.segment))
            for one in near
        ]
        began = Happened(row.first_seen_ms, "began", "", "the change began about then")
        timeline = sorted(
            [began, *self._store.states(row.alert_id), *events, *around], key=lambda happened: happened.time_ms
        )
        sampled = None if self._samples is None else self._samples(row.alert_id)
        before, after = sampled or ((), ())
        is_training = record["comparison"] == "training"
        kind, _, name = row.subject.partition(":")
        has_places = kind in ("feature", "score") and not is_training
        view_values = values_of(_numbers(record))
        sentences = tuple(in_words(_numbers(record)))
        size = size_of(_numbers(record))
        certainty = _certainty(record)
        return AlertView(
            alert=row,
            meaning=self._meanings(name) if kind == "feature" else "",
            sentences=sentences,
            size=size,
            values=view_values,
            value_means=_VALUES.get(row.signal, "") if has_places else "",
            certainty=certainty,
            window_start_ms=record["window_start_time_ms"],
            window_end_ms=record["window_end_time_ms"],
            reference_count=record["reference_count"],
            compared_with=_compared_with(record, is_training=is_training),
            look_at=LOOK_AT.get(row.cause, ""),
            why=_why(record, moved),
            was_name="in training" if is_training else "expected",
            chart=_chart(record),
            by_segment=tuple(_segment_charts(self._segments(row.alert_id))),
            over_time=line(self._store.values(row.alert_id)),
            features=tuple(one for one in moved if one.subject.startswith("feature:")),
            others=tuple(one for one in moved if not one.subject.startswith("feature:")),
            flags=tuple((one["flag"], one["share"]) for one in record["flags"]),
            near=tuple(near),
            timeline=tuple(timeline),
            before=tuple(before),
            after=tuple(after),
            is_sampled=sampled is not None,
            decisions_link=_decisions_link(record),
            hand_over=self._hand_over(row, sentences, f"{size}; {view_values}; {certainty}", timeline),
            may_act=visit.person.may(ACT_ROLES),
        )

    def _hand_over(self, row: AlertRow, sentences: Sequence[str], numbers: str, timeline: Sequence[Happened]) -> str:
        """Returns a summary for a person who takes over."""
        lines = [
            f"Alert {row.alert_id}: {row.severity}, {row.state}. {self._url()}/inbox/{row.alert_id}",
            f"What moved: {_moved(row.subject, row.signal, row.segment)}. {' '.join(sentences)}".rstrip(),
            f"Since about {time_text(row.first_seen_ms)} UTC. Cause: {row.cause or 'not known'}.",
            f"{numbers}.",
            f"{row.affected:,} of {row.payments:,} payments of the newest window are affected.",
            f"Assigned to {row.assigned_to or 'nobody'}; seen by {row.acknowledged_by or 'nobody'}.",
            "What happened:",
        ]
        lines += [
            f"- {time_text(one.time_ms)} {one.kind.replace('_', ' ')}{f' by {one.by}' if one.by else ''}"
            f"{f': {one.text}' if one.text else ''}"
            for one in timeline
        ]
        return "\n".join(lines)


def _moved(subject: str, signal: str, segment: str) -> str:
    return f"{what_moved(subject, signal)} in {where(segment)}"


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record with infinities where JSON has null, as the functions of the terminal read it."""
    numbers = ("value", "threshold", "current", "expected", "evidence")
    return {**record, **{name: float("inf") for name in numbers if record[name] is None}}


def _chart(record: Mapping[str, Any]) -> Histogram | None:
    was, now = record["reference_histogram"], record["current_histogram"]
    if was is None or now is None or len(was["counts"]) != len(now["counts"]):
        return None
    before, after = (shares([*one["counts"], one["missing"]]) for one in (was, now))
    return histogram(bin_labels(was["edges"]), before, after)


def _segment_charts(counted: Sequence[SegmentCounts]) -> Iterator[SegmentChart]:
    for one in counted:
        chart = histogram(one.labels, shares(one.before), shares(one.now))
        if chart is not None:
            yield SegmentChart(one.segment, sum(one.before), sum(one.now), chart)


def _compared_with(record: Mapping[str, Any], *, is_training: bool) -> str:
    """Returns the reference of the newest window: how many payments, and of which time."""
    of_what = "of the model's training" if is_training else "that say what is usual"
    first, last = record["reference_start_time_ms"], record["reference_end_time_ms"]
    when = f", {time_text(first)} to {time_text(last)} UTC" if first and last else ""
    return f"{record['reference_count']:,} payments {of_what}{when}"


def _certainty(record: Mapping[str, Any]) -> str:
    evidence, enough = record["evidence"], record["evidence_threshold"]
    if not enough:
        return "how certain it is, is not said"
    text = "more than any number" if evidence is None else f"10^{evidence:.1f}"
    how = "very sure" if evidence is None or evidence >= enough + _VERY_SURE else "sure enough to tell"
    return f"{how}: the evidence is {text} to 1, and 10^{enough:.1f} to 1 is enough"


def _why(record: Mapping[str, Any], moved: Sequence[Moved]) -> str:
    """Returns why the alert is named after this cause, in a sentence."""
    explained = [one for one in moved if one.subject != record["subject"]]
    known = {
        "profiles": "Stored profiles or the mirror are behind or unknown, which moves features and scores.",
        "input": "A field of the payments or a feature itself has moved.",
        "traffic": "Other payments come than before: the mix has moved, and the model is as it was.",
        "score": "The scores or actions have moved, and no feature or traffic that we count explains it.",
        "outcome": "The outcomes of the payments have moved: the model is right more or less often than before.",
    }.get(record["cause"], "No cause is known.")
    if not explained:
        return known
    names = ", ".join(dict.fromkeys(what_moved(one.subject) for one in explained[:3]))
    more = f" and {len(explained) - 3} more" if len(explained) > 3 else ""
    return f"{known} It explains what moved with it since then: {names}{more}."


def _said(what: Mapping[str, str]) -> str:
    parts = [f"to {what['to']}"] if what.get("to") else []
    if until_ms := snoozed_until_ms(what):
        parts.append(f"until {time_text(until_ms)} UTC")
    if what.get("note"):
        parts.append(what["note"])
    return ", ".join(parts)


def _decisions_link(record: Mapping[str, Any]) -> str:
    from urllib.parse import urlencode

    window = {"from": _iso(record["window_start_time_ms"]), "to": _iso(record["window_end_time_ms"])}
    kind, _, name = record["subject"].partition(":")
    return f"/decisions?{urlencode({**window, **({'flag': name} if kind == 'flag' else {})})}"


def _iso(time_ms: int) -> str:
    return time_text(time_ms).replace(" ", "T")
