"""Both comparisons together on several worlds: few alerts where nothing changed, one with its name where it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paywarden.streams.alerts.alerts import Alert, Severity, State
from tests.worlds.drift.made_decisions import MadeWorld, Shares, day_of, quiet_reference, ramp, run, told

# Few payments a day: the worlds are run by the hour, and the hour's work is what a test costs.
PAYMENTS = 1_500


def growing(day: float) -> float:
    """Traffic grows by a fifth a week, with a holiday of two days and a campaign."""
    return (1 + day / 35) * (0.4 if 5 <= day < 7 else 1.0) * (1.8 if 9 <= day < 10 else 1.0)


def raised(alerts: list[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.state is State.RAISED]


def test_growth_holidays_and_weekends_raise_hardly_any_alert() -> None:
    detection = run(MadeWorld(1, PAYMENTS, growth=growing), 12, quiet_reference())
    # The setting allows one in 30 days; here are 12.
    assert len(raised(told(detection))) <= 1


def launched(day: float) -> Shares:
    """A channel that training did not have takes half of the payments at once."""
    return (
        {"web": 0.34, "pos": 0.1, "app": 0.06, "wallet": 0.5} if day >= 2.5 else {"web": 0.74, "pos": 0.2, "app": 0.06}
    )


def shifted_kinds(day: float) -> Shares:
    return {"gift": 0.2, "goods": 0.74, "travel": 0.06} if day >= 2.5 else {"gift": 0.74, "goods": 0.2, "travel": 0.06}


@pytest.mark.parametrize(
    ("changes", "subject", "segment"),
    [
        ({"channel": launched}, "traffic", "channel=other"),
        ({"kind": shifted_kinds}, "feature:kind", "overall"),
        ({"score_added": lambda day: 1.0 if day >= 2.5 else 0.0}, "score", "overall"),
    ],
)
def test_a_sudden_change_is_told_within_a_day_after_its_name(
    changes: dict[str, Callable[[float], object]], subject: str, segment: str
) -> None:
    detection = run(MadeWorld(1, PAYMENTS, **changes), 4, quiet_reference())  # type: ignore[arg-type]
    first, *_ = found = raised(told(detection))
    assert (first.subject, first.segment) == (subject, segment)
    assert 2.5 < day_of(first.time_ms) <= 3.5
    assert {alert.subject for alert in found} <= {subject, "score", "action"}
    # The named signal has moved, and the alert says from where to where.
    assert all(not alert.unchanged_low <= alert.value <= alert.unchanged_high for alert in found)


def test_a_slow_change_that_begins_in_training_is_told_by_one_of_the_two() -> None:
    def shares(day: float) -> Shares:
        return {"web": ramp(day + 28, 0.85, 0.03, 60), "pos": 0.1, "app": ramp(day + 28, 0.05, 0.87, 60)}

    world = MadeWorld(1, PAYMENTS, channel=shares)
    detection = run(world, 14, world.reference_like(quiet_reference()))
    assert {alert.subject for alert in raised(told(detection))} == {"traffic"}
    assert max(told(detection), key=lambda alert: alert.effect).severity is Severity.CRITICAL
