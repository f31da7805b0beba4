"""The demonstration's verdict, from readings as the processes give them: each thing that did not work is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from paywarden.ops.demo.verdict import (
    FRESH_MS_MAX,
    MetricsReading,
    SentPayments,
    WorkDone,
    require_all_done,
    trouble_of,
)
from paywarden.schemas.errors import TemporaryFailure

SENT = SentPayments(
    seconds=2.0, payments=400, answered=398, published=398, live_outcomes=12, lost=0, profile_age_p99_ms=812.0
)
STREAM: dict[str, dict[tuple[str, ...], float]] = {
    "paywarden_stream_payments_total": {(): 398.0},
    "paywarden_drift_decisions_total": {(): 398.0},
    "paywarden_outcomes_label_lag_seconds_count": {("fraud",): 5.0, ("genuine",): 7.0},
}
COMPANION: dict[str, dict[tuple[str, ...], float]] = {
    "paywarden_companion_profiles_applied_total": {(): 900.0},
    "paywarden_companion_decisions_shipped_total": {(): 398.0},
}


def reading(name: str, metrics: Mapping[str, Mapping[tuple[str, ...], float]] | None = None) -> MetricsReading:
    return MetricsReading(name, exit_status=None, missing=(), metrics=metrics or {}, last_line=f"last words of {name}")


GOOD = [reading("stream", STREAM), reading("companion", COMPANION), reading("serve")]


def with_part(part: MetricsReading) -> list[MetricsReading]:
    return [part if one.name == part.name else one for one in GOOD]


def without(part: str, metric: str) -> list[MetricsReading]:
    [one] = [one for one in GOOD if one.name == part]
    assert metric in one.metrics
    return with_part(replace(one, metrics={name: value for name, value in one.metrics.items() if name != metric}))


def test_a_demonstration_with_all_work_done_has_no_trouble() -> None:
    assert trouble_of(SENT, GOOD) == ""
    assert require_all_done(SENT, GOOD) == WorkDone(398, 900, 398, 12, 398)


@pytest.mark.parametrize("name", ["stream", "companion", "serve"])
def test_a_part_that_has_ended_is_named_with_its_last_line(name: str) -> None:
    ended = replace(reading(name), exit_status=1, missing=("does not answer",))
    with pytest.raises(TemporaryFailure) as failure:
        require_all_done(SENT, with_part(ended))
    wanted = f"demo: `paywarden {name}` has ended with exit status 1; its last log line: last words of {name}"
    assert str(failure.value) == wanted


@pytest.mark.parametrize(
    ("part", "metric", "wanted"),
    [
        ("stream", "paywarden_stream_payments_total", "0 of 398 payments were worked into profiles"),
        ("stream", "paywarden_drift_decisions_total", "drift detection has counted 0 of 398 decisions"),
        ("stream", "paywarden_outcomes_label_lag_seconds_count", "0 of 12 outcomes were joined to decisions"),
        ("companion", "paywarden_companion_decisions_shipped_total", "0 of 398 decisions were shipped"),
        ("companion", "paywarden_companion_profiles_applied_total", "no profile has come into the mirror"),
    ],
)
def test_work_that_was_not_done_is_named_with_its_part(part: str, metric: str, wanted: str) -> None:
    trouble = trouble_of(SENT, without(part, metric))
    assert trouble == f"{wanted}; the last log line of `paywarden {part}`: last words of {part}"


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (replace(SENT, answered=0, published=0), "the endpoint has answered none of 400 payments"),
        (replace(SENT, lost=3), "3 decisions were answered and are not on the topic decisions"),
        (replace(SENT, profile_age_p99_ms=None), "no payment was scored with profiles whose age is known"),
        (
            replace(SENT, profile_age_p99_ms=FRESH_MS_MAX + 1.0),
            f"profiles were {FRESH_MS_MAX + 1} ms old (99th percentile), at most {FRESH_MS_MAX} ms are wanted",
        ),
    ],
)
def test_a_demonstration_with_work_undone_is_in_trouble(sent: SentPayments, wanted: str) -> None:
    assert trouble_of(sent, GOOD).startswith(wanted)
