"""Whether a demonstration has shown what it is for: each process is asked what it has done, and that is held against
what was sent.

    paywarden: demo: the stream has ended with exit status 1; its last log line: …
    paywarden: demo: drift detection has counted 0 of 3921 decisions; the last log line of the stream: …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paywarden.schemas.errors import TemporaryFailure

FRESH_MS_MAX = 3_000
"""At most so old may profiles be, for 99 of 100 payments. On a quiet machine they are half a second old. A machine with
ten processes for every core makes that 2.4 s; without the stream they are as old as the run is long."""


@dataclass(frozen=True)
class MetricsReading:
    """What a process says about itself, and what is known of it.

    `exit_status`: None while it runs. `missing`: why it is not ready, empty when it is. `metrics`: values by name and
    by label values, in the order of the labels' names.
    """

    name: str
    exit_status: int | None
    missing: tuple[str, ...]
    metrics: Mapping[str, Mapping[tuple[str, ...], float]]
    last_line: str

    def total(self, name: str, *labels: str) -> int:
        """A metric, added up over the label values that hold all of `labels`; 0 where there is none."""
        values = self.metrics.get(name, {})
        return int(sum(value for of, value in values.items() if set(labels) <= set(of)))

    def trouble(self) -> str:
        """What is wrong with the process itself; empty when it runs and is ready."""
        if self.exit_status is not None:
            how = f"exit status {self.exit_status}" if self.exit_status >= 0 else f"signal {-self.exit_status}"
            return f"`paywarden {self.name}` has ended with {how}; its last log line: {self.last_line}"
        if self.missing:
            reasons = "; ".join(self.missing)
            return f"`paywarden {self.name}` is not ready ({reasons}); its last log line: {self.last_line}"
        return ""


@dataclass(frozen=True)
class Sent:
    """What the demonstration itself has done and seen.

    `published`: payments put onto their topic. `live_outcomes`: outcomes sent of payments that were decided here.
    `lost`: decisions that were answered and are not on the topic.
    """

    payments: int
    answered: int
    published: int
    live_outcomes: int
    lost: int
    profile_age_p99_ms: float | None


@dataclass(frozen=True)
class WorkDone:
    """What the processes say they have done."""

    stream_payments: int
    profiles_applied: int
    drift_decisions: int
    outcomes_joined: int
    decisions_shipped: int

    @classmethod
    def of(cls, readings: Sequence[MetricsReading]) -> WorkDone:
        """By their metrics."""
        parts = {reading.name: reading for reading in readings}
        stream, companion = parts["stream"], parts["companion"]
        return cls(
            stream_payments=stream.total("paywarden_stream_payments_total"),
            profiles_applied=companion.total("paywarden_companion_profiles_applied_total"),
            drift_decisions=stream.total("paywarden_drift_decisions_total"),
            # Of every outcome that met a decision, whichever of the two came first.
            outcomes_joined=stream.total("paywarden_outcomes_label_lag_seconds_count"),
            decisions_shipped=companion.total("paywarden_companion_decisions_shipped_total"),
        )


def trouble_of(sent: Sent, readings: Sequence[MetricsReading]) -> str:
    """The first thing that did not work, with the part that is to blame and its last log line; empty if all did."""
    return unfinished(sent, readings) or _not_fresh(sent, readings)


def unfinished(sent: Sent, readings: Sequence[MetricsReading]) -> str:
    """As `trouble_of`, of what may still come."""
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


def _not_fresh(sent: Sent, readings: Sequence[MetricsReading]) -> str:
    age_ms = sent.profile_age_p99_ms
    if age_ms is None:
        return _blamed("companion", "no payment was scored with profiles whose age is known", readings)
    if age_ms > FRESH_MS_MAX:
        trouble = f"profiles were {age_ms:.0f} ms old (99th percentile), at most {FRESH_MS_MAX} ms are wanted"
        return _blamed("stream", trouble, readings)
    return ""


def _blamed(part: str, trouble: str, readings: Sequence[MetricsReading]) -> str:
    [reading] = [reading for reading in readings if reading.name == part]
    return f"{trouble}; the last log line of `paywarden {part}`: {reading.last_line}"


def require_all_done(sent: Sent, readings: Sequence[MetricsReading]) -> WorkDone:
    """What was done. Raises TemporaryFailure if that is not all."""
    if trouble := trouble_of(sent, readings):
        raise TemporaryFailure(f"demo: {trouble}")
    return WorkDone.of(readings)


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """A summary as sentences."""
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
