"""Checks a demonstration: compares each process's report with the sent payments.

paywarden: demo: the stream has ended with exit status 1; its last log line: …
paywarden: demo: drift detection has counted 0 of 3921 decisions; the last log line of the stream: …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paywarden.schemas.errors import TemporaryFailure

FRESH_MS_MAX = 3_000
"""The largest age of profiles for 99 of 100 payments, in a short run. On a quiet machine they are half a second old. A
machine with ten processes for every core makes that 2.4 s and more."""
FRESH_SHARE_MAX = 0.5
"""The same as a share of the run: without the stream they are as old as the run is long. Less is a busy machine."""

WHERE_NEXT = """
Where to look next:
  paywarden demo --keep        leaves everything running, and prints the addresses of endpoint, metrics and console
  paywarden load --help        your own load against a running endpoint
  docs/quickstart.md           the same step by step, with files of your own
  docs/operate/deploy.md       from here to two hosts behind a gateway"""
"""The last lines of a demonstration that ends."""


@dataclass(frozen=True)
class MetricsReading:
    """The health and metrics of a process.

    `exit_status` is None while it runs. `missing` says why it is not ready, and is empty when it is. `metrics` are
    values by name and by label values, in the order of the labels' names.
    """

    name: str
    exit_status: int | None
    missing: tuple[str, ...]
    metrics: Mapping[str, Mapping[tuple[str, ...], float]]
    last_line: str

    def total(self, name: str, *labels: str) -> int:
        """Returns the sum of a metric over the series whose label values include all of `labels`; 0 without any."""
        values = self.metrics.get(name, {})
        return int(sum(value for of, value in values.items() if set(labels) <= set(of)))

    def trouble(self) -> str:
        """Returns the trouble of the process itself; empty when it runs and is ready."""
        if self.exit_status is not None:
            how = f"exit status {self.exit_status}" if self.exit_status >= 0 else f"signal {-self.exit_status}"
            return f"`paywarden {self.name}` has ended with {how}; its last log line: {self.last_line}"
        if self.missing:
            reasons = "; ".join(self.missing)
            return f"`paywarden {self.name}` is not ready ({reasons}); its last log line: {self.last_line}"
        return ""


@dataclass(frozen=True)
class SentPayments:
    """Counts of the payments, answers and outcomes that the demonstration itself sent and received.

    `published` counts payments put onto their topic, `live_outcomes` the outcomes sent for live payments, and `lost`
    the decisions that were answered and are not on the topic. `seconds` is how long payments were sent.
    """

    seconds: float
    payments: int
    answered: int
    published: int
    live_outcomes: int
    lost: int
    profile_age_p99_ms: float | None


@dataclass(frozen=True)
class WorkDone:
    """Counts of the processes' work, from their own metrics."""

    stream_payments: int
    profiles_applied: int
    drift_decisions: int
    outcomes_joined: int
    decisions_shipped: int

    @classmethod
    def of(cls, readings: Sequence[MetricsReading]) -> WorkDone:
        """Read the counts from the metrics."""
        parts = {reading.name: reading for reading in readings}
        stream, companion = parts["stream"], parts["companion"]
        return cls(
            stream_payments=stream.total("paywarden_stream_payments_total"),
            profiles_applied=companion.total("paywarden_companion_profiles_applied_total"),
            drift_decisions=stream.total("paywarden_drift_decisions_total"),
            # Counts every outcome that met its decision, whichever of the two came first.
            outcomes_joined=stream.total("paywarden_outcomes_label_lag_seconds_count"),
            decisions_shipped=companion.total("paywarden_companion_decisions_shipped_total"),
        )


def trouble_of(sent: SentPayments, readings: Sequence[MetricsReading]) -> str:
    """Returns the first thing that failed, with the part to blame and its last log line; empty if nothing failed."""
    return unfinished(sent, readings) or _not_fresh(sent, readings)


def unfinished(sent: SentPayments, readings: Sequence[MetricsReading]) -> str:
    """Returns the first thing that is not done yet, as `trouble_of` does; it may still be done."""
    # A part that has ended may be why another is not ready.
    for reading in sorted(readings, key=lambda one: one.exit_status is None):
        if trouble := reading.trouble():
            return trouble
    done = WorkDone.of(readings)
    shipped, counted, joined = done.decisions_shipped, done.drift_decisions, done.outcomes_joined
    worked_in, published = done.stream_payments, sent.published
    checks = [
        ("serve", sent.answered == 0, f"the endpoint has answered none of {sent.payments} payments"),
        ("companion", shipped < sent.answered, f"{shipped} of {sent.answered} decisions were shipped"),
        ("companion", sent.lost > 0, f"{sent.lost} decisions were answered and are not on the topic decisions"),
        ("stream", worked_in < published, f"{worked_in} of {published} payments were worked into profiles"),
        ("companion", done.profiles_applied == 0, "no profile has come into the mirror"),
        ("stream", counted < sent.answered, f"drift detection has counted {counted} of {sent.answered} decisions"),
        ("stream", joined < sent.live_outcomes, f"{joined} of {sent.live_outcomes} outcomes were joined to decisions"),
    ]
    return next((_blamed(part, trouble, readings) for part, is_undone, trouble in checks if is_undone), "")


def _not_fresh(sent: SentPayments, readings: Sequence[MetricsReading]) -> str:
    age_ms = sent.profile_age_p99_ms
    if age_ms is None:
        return _blamed("companion", "no payment was scored with profiles whose age is known", readings)
    allowed_ms = max(FRESH_MS_MAX, FRESH_SHARE_MAX * sent.seconds * 1000)
    if age_ms > allowed_ms:
        trouble = f"profiles were {age_ms:.0f} ms old (99th percentile), at most {allowed_ms:.0f} ms are wanted"
        return _blamed("stream", trouble, readings)
    return ""


def _blamed(part: str, trouble: str, readings: Sequence[MetricsReading]) -> str:
    [reading] = [reading for reading in readings if reading.name == part]
    return f"{trouble}; the last log line of `paywarden {part}`: {reading.last_line}"


def require_all_done(sent: SentPayments, readings: Sequence[MetricsReading]) -> WorkDone:
    """Returns the processes' work. Raises TemporaryFailure if some of it is missing."""
    if trouble := trouble_of(sent, readings):
        raise TemporaryFailure(f"demo: {trouble}")
    return WorkDone.of(readings)


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """Returns a summary as sentences."""
    return [
        f"The endpoint answered {summary['answers']} of {summary['payments_sent']} payments, "
        f"99 of 100 of them within {summary['p99_ms']:.1f} ms.",
        f"The companion shipped {summary['decisions_shipped']} decisions; {summary['decisions_on_topic']} were read "
        "from the topic.",
        f"The stream worked {summary['stream_payments']} payments into profiles. For 99 of 100 payments the profiles "
        f"were at most {summary['profile_age_p99_ms']:.0f} ms old.",
        f"Drift detection counted {summary['drift_decisions']} decisions.",
        f"{summary['outcomes_joined']} outcomes were joined to the decisions they are about.",
    ]
