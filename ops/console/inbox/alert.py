"""The page of one alert: the change, its certainty, its probable cause, other events, and a text to hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paywarden.ops.alert_text import LOOK_AT, in_words, size_of, values_of
from paywarden.ops.console.charts import Histogram, bin_labels, histogram, line, shares
from paywarden.ops.console.inbox.alert_store import AlertRow, AlertStore, Happened, snoozed_until_ms
from paywarden.ops.console.inbox.segments import SegmentCounts
from paywarden.ops.console.inbox.stakes import AlertSample
from paywarden.ops.console.page_rows import Page, Shown, Visit, address, not_found
from paywarden.ops.console.people import Role
from paywarden.ops.console.rendering import time_text
from paywarden.ops.console.words import what_moved, where
from paywarden.streams.alerts.alert_events import alert_subject

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


class AlertPage:
    """The page. `happenings`: the events between two times: rollouts, promotions. `sample`: of an alert's payments.

    `meaning`: of a feature, in the catalogue's words; empty for a feature that it does not have.
    """

    def __init__(
        self,
        store: AlertStore,
        url: Callable[[], str],
        happenings: Callable[[int, int], Sequence[Happened]] = lambda *_: (),
        sample: Callable[[str], AlertSample | None] = lambda _: None,
        meaning: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._store, self._url, self._happenings, self._sample, self._meaning = store, url, happenings, sample, meaning

    def page(self) -> Page:
        """Return the page, for the section of the inbox."""
        return Page("/inbox/{alert_id}", self.show, "All about an alert")

    def show(self, visit: Visit) -> Shown:
        """Show an alert, by its id or the beginning of its id."""
        alert_id = visit.path["alert_id"]
        found = self._store.find(alert_id)
        if found is None:
            alert_ids = self._store.ids_beginning(alert_id) if len(alert_id) >= 4 else []
            found = self._store.find(alert_ids[0]) if len(alert_ids) == 1 else None
        if found is None:
            raise not_found(f"alert {alert_id}")
        row, record = found
        return Shown("inbox/alert.html", self._view(row, record, visit), _moved(row))

    def _view(self, row: AlertRow, record: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
        first, last = row.first_seen_ms - _AROUND_MS, row.raised_ms + _AROUND_MS
        near = self._store.near(first, last, but=row.alert_id)
        timeline = [
            Happened(row.first_seen_ms, "began", "", "the change began about then"),
            *self._store.states(row.alert_id),
            *(
                Happened(event.time_ms, event.kind, event.by, _said(event.what))
                for event in self._store.events(alert_subject(row.alert_id))
            ),
            *self._happenings(first, last),
            *(Happened(one.raised_ms, "another alert", "stream", _moved(one)) for one in near),
        ]
        timeline.sort(key=lambda happened: happened.time_ms)
        sample = self._sample(row.alert_id)
        is_training = record["comparison"] == "training"
        kind, _, name = row.subject.partition(":")
        was_name = "in training" if is_training else "expected"
        has_places = kind in ("feature", "score") and not is_training
        numbers = _numbers(record)
        sentences, size, values, certainty = in_words(numbers), size_of(numbers), values_of(numbers), _certainty(record)
        moved = record["moved"][:_MOVED_MAX]
        return {
            "alert": row,
            "meaning": self._meaning(name) if kind == "feature" else "",
            "sentences": sentences,
            "size": size,
            "numbers": values,
            "value_means": _VALUES.get(row.signal, "") if has_places else "",
            "certainty": certainty,
            "window_start_ms": record["window_start_time_ms"],
            "window_end_ms": record["window_end_time_ms"],
            "reference_count": record["reference_count"],
            "compared_with": _compared_with(record, is_training=is_training),
            "look_at": LOOK_AT.get(row.cause, ""),
            "why": _why(record, moved),
            "was_name": was_name,
            "chart": _chart(record, was_name),
            "by_segment": _segment_charts(sample.segments if sample is not None else ()),
            "over_time": line("The size of the change over time", self._store.values(row.alert_id)),
            "features": [one for one in moved if one["subject"].startswith("feature:")],
            "others": [one for one in moved if not one["subject"].startswith("feature:")],
            "flags": record["flags"],
            "near": near,
            "timeline": timeline,
            "before": sample.before if sample is not None else (),
            "after": sample.after if sample is not None else (),
            "is_sampled": sample is not None,
            "decisions_link": _decisions_link(record),
            "hand_over": self._hand_over(row, sentences, f"{size}; {values}; {certainty}", timeline),
            "may_act": visit.person.may(ACT_ROLES),
            "durations": DURATIONS,
        }

    def _hand_over(self, row: AlertRow, sentences: Sequence[str], numbers: str, timeline: Sequence[Happened]) -> str:
        """Return a summary for a person who takes over."""
        lines = [
            f"Alert {row.alert_id}: {row.severity}, {row.state}. {self._url()}/inbox/{row.alert_id}",
            f"What moved: {_moved(row)}. {' '.join(sentences)}".rstrip(),
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


def _moved(row: AlertRow) -> str:
    return f"{what_moved(row.subject, row.signal)} in {where(row.segment)}"


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with infinities where JSON has null, as the functions of the terminal read it."""
    numbers = ("value", "threshold", "current", "expected", "evidence")
    return {**record, **{name: float("inf") for name in numbers if record[name] is None}}


def _chart(record: Mapping[str, Any], was_name: str) -> Histogram | None:
    was, now = record["reference_histogram"], record["current_histogram"]
    if was is None or now is None or len(was["counts"]) != len(now["counts"]):
        return None
    before, after = (shares([*one["counts"], one["missing"]]) for one in (was, now))
    return histogram("Payments by range", bin_labels(was["edges"]), before, after, was_name)


def _segment_charts(counted: Sequence[SegmentCounts]) -> list[dict[str, Any]]:
    charts = [
        (one, histogram(f"Decisions in {one.segment} by range", one.labels, shares(one.before), shares(one.now)))
        for one in counted
    ]
    return [
        {"segment": one.segment, "before_count": sum(one.before), "now_count": sum(one.now), "chart": chart}
        for one, chart in charts
        if chart is not None
    ]


def _compared_with(record: Mapping[str, Any], *, is_training: bool) -> str:
    """Return the reference of the newest window: how many payments, and of which time."""
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


def _why(record: Mapping[str, Any], moved: Sequence[Mapping[str, Any]]) -> str:
    """Return why the alert is named after this cause, in a sentence."""
    explained = [one["subject"] for one in moved if one["subject"] != record["subject"]]
    known = {
        "profiles": "Stored profiles or the mirror are behind or unknown, which moves features and scores.",
        "input": "A field of the payments or a feature itself has moved.",
        "traffic": "Other payments come than before: the mix has moved, and the model is as it was.",
        "score": "The scores or actions have moved, and no feature or traffic that we count explains it.",
        "outcome": "The outcomes of the payments have moved: the model is right more or less often than before.",
    }.get(record["cause"], "No cause is known.")
    if not explained:
        return known
    names = ", ".join(dict.fromkeys(map(what_moved, explained[:3])))
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
    first, last = (time_text(record[f"window_{end}_time_ms"], "%Y-%m-%dT%H:%M") for end in ("start", "end"))
    kind, _, name = record["subject"].partition(":")
    return address("/decisions", {"from": first, "to": last, "flag": name if kind == "flag" else ""})
