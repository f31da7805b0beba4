"""Each cause has one alert, which is named after it and clears when the change is over."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.drift.detectors import LENGTHS_MS, DetectorSettings
from paywarden.models.drift.signals import Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_watch import DriftWatch
from paywarden.streams.alerts.alerts import Alert, AlertSettings, Severity, State
from paywarden.streams.alerts.book import ATTACHED_MAX
from paywarden.streams.alerts.causes import Cause, cause_of
from tests.worlds.drift.drift_world import SIGNALS, World

FIVE_MS, HOUR_MS, DAY_MS = LENGTHS_MS
QUIET, CHANGED = 30, 40


def watch_of(signals: tuple[Signal, ...] = SIGNALS, model_version: str = "model-1") -> DriftWatch:
    return DriftWatch(model_version, signals, DetectorSettings(), AlertSettings())


def run(watch: DriftWatch, world: World, blocks: int) -> list[Alert]:
    return [alert for _ in range(blocks) for alert in watch.step(world.block())]


@cache
def _quiet(seed: int) -> tuple[World, DriftWatch]:
    world, watch = World(seed), watch_of()
    assert run(watch, world, QUIET) == []
    return world, watch


def after(change: Callable[[World], object], seed: int = 1, blocks: int = CHANGED) -> tuple[DriftWatch, list[Alert]]:
    """Return the watch, and all alerts reported after a change. The quiet before it is run once a seed."""
    world, watch = deepcopy(_quiet(seed))
    change(world)
    return watch, run(watch, world, blocks)


def names(watch: DriftWatch) -> list[tuple[str, str]]:
    return [(alert.subject, alert.segment) for alert in watch.open_alerts]


def traffic_of_de_doubles(world: World) -> None:
    world.country_weights = (0.4, 0.3, 0.3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda world: setattr(world, "score_added", 0.05), [("score", "overall")]),
        (lambda world: setattr(world, "score_added_in_de", 0.1), [("score", "country=DE")]),
        (lambda world: world.missing.add("distance"), [("feature:distance", "overall")]),
        (lambda world: world.added.update(velocity=0.1), [("feature:velocity", "overall")]),
        (lambda world: world.added_in_de.update(amount=0.1), [("feature:amount", "country=DE")]),
        (traffic_of_de_doubles, [("traffic", "country=DE")]),
        (lambda world: setattr(world, "profile_age_added", 0.2), [("profile_age", "overall")]),
    ],
)
def test_an_alert_is_named_after_what_changed_and_where(
    change: Callable[[World], object], expected: list[tuple[str, str]], seed: int
) -> None:
    watch, told = after(change, seed)
    assert names(watch) == expected
    raised = [alert for alert in told if alert.state is State.RAISED]
    assert len(raised) == 1
    # It takes two blocks that agree.
    assert raised[0].raised_ms <= (QUIET + 3) * FIVE_MS


@pytest.mark.parametrize("added", [0.05, 0.1, 0.3, 0.6])
def test_an_alert_says_in_which_block_the_change_began(added: float) -> None:
    """An enormous change seemed to have begun half an hour before it did: in an hour without any payment."""
    for seed in range(1, 4):
        _, told = after(lambda world: world.added.update(velocity=added), seed)
        assert abs(told[0].first_seen_ms - QUIET * FIVE_MS) <= FIVE_MS


def test_a_move_that_a_feature_explains_is_attached_to_its_alert() -> None:
    watch, _ = after(lambda world: world.added.update(velocity=0.1))
    assert [moved.subject for moved in watch.open_alerts[0].attached] == ["score"]


def test_stale_profiles_are_named_before_the_features_they_move() -> None:
    def profiles_go_stale(world: World) -> None:
        world.profile_age_added, world.added = 0.2, {"velocity": 0.1, "distance": 0.1}

    watch, _ = after(profiles_go_stale)
    assert names(watch) == [("profile_age", "overall")]
    assert {moved.subject for moved in watch.open_alerts[0].attached} == {
        "feature:velocity", "feature:distance", "score",
    }  # fmt: skip


def test_a_cause_found_later_renames_the_open_alert() -> None:
    world, watch = World(2), watch_of()
    run(watch, world, QUIET)
    world.score_added = 0.05
    first = run(watch, world, 3)
    world.profile_age_added = 0.2
    later = run(watch, world, 5)
    assert [(alert.state, alert.subject) for alert in first] == [(State.RAISED, "score")]
    assert [alert.state for alert in later if alert.subject == "profile_age"] == [State.ESCALATED]
    assert names(watch) == [("profile_age", "overall")]
    assert watch.open_alerts[0].alert_id == first[0].alert_id
    assert "score" in [moved.subject for moved in watch.open_alerts[0].attached]


def test_a_cause_takes_in_all_alerts_that_it_explains() -> None:
    world, watch = World(2), watch_of()
    run(watch, world, QUIET)
    world.added_in_de = {"amount": 0.2}
    run(watch, world, 3)
    traffic_of_de_doubles(world)
    run(watch, world, 3)
    world.profile_age_added = 0.2
    told = run(watch, world, 4)
    # Profiles do not move traffic.
    assert sorted(names(watch))[0] == ("profile_age", "overall")
    assert ("feature:amount", "country=DE") not in names(watch)
    assert any(alert.subject == "profile_age" and alert.state is State.ESCALATED for alert in told)


def test_two_unrelated_causes_are_two_alerts() -> None:
    def both(world: World) -> None:
        traffic_of_de_doubles(world)
        world.added = {"distance": 0.1}

    watch, _ = after(both)
    assert sorted(names(watch)) == [("feature:distance", "overall"), ("traffic", "country=DE")]
    traffic = next(alert for alert in watch.open_alerts if alert.subject == "traffic")
    # Traffic explains it, not the other feature, although features come first: the mix shows it.
    assert "feature:amount" in [moved.subject for moved in traffic.attached]


def test_traffic_that_shifts_between_segments_is_one_alert() -> None:
    signals = tuple(Signal("traffic", "share", f"country={name}") for name in ("DE", "FR", "US"))
    watch, expected, value = watch_of(signals), np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.225, 0.375])

    def step(number: int, counted: list[int], moved: NDArray[np.float64]) -> list[Alert]:
        count = np.zeros(3, dtype=np.int64)
        count[counted] = 1000
        return watch.step(
            Block(number * FIVE_MS, FIVE_MS, signals, moved, expected, np.full(3, 0.004), count, np.full(3, 9.0))
        )

    told = [alert for number in range(3) for alert in step(number, [0], value)]
    # A day later the smaller move of the others is certain, too.
    told += [alert for number in range(300, 303) for alert in step(number, [0, 1, 2], value)]
    assert names(watch) == [("traffic", "country=DE")]
    assert len(told) == 1


def test_a_feature_that_goes_wrong_hours_later_has_its_own_alert() -> None:
    world, watch = World(3), watch_of()
    run(watch, world, QUIET)
    world.missing = {"distance"}
    run(watch, world, 60)
    world.added = {"amount": 0.1}
    run(watch, world, 10)
    assert names(watch) == [("feature:distance", "overall"), ("feature:amount", "overall")]


def test_a_move_by_the_mix_alone_is_explained_by_traffic() -> None:
    # Amounts are higher in DE: with twice the traffic from there, the mean amount is higher.
    watch, _ = after(traffic_of_de_doubles)
    assert names(watch) == [("traffic", "country=DE")]
    assert "feature:amount" in [moved.subject for moved in watch.open_alerts[0].attached]


@pytest.mark.parametrize("weights", [(0.0, 0.3, 0.5), (0.9, 0.05, 0.05)])
def test_a_segment_that_dies_or_takes_over_is_one_alert_of_traffic(weights: tuple[float, ...]) -> None:
    watch, told = after(lambda world: setattr(world, "country_weights", weights), blocks=100)
    assert names(watch) == [("traffic", "country=DE")]
    assert len([alert for alert in told if alert.state is State.RAISED]) == 1


def test_traffic_explains_features_within_a_segment_that_takes_over() -> None:
    def others_come(world: World) -> None:
        world.country_weights, world.added_in_de = (0.9, 0.05, 0.05), {"velocity": 0.1}

    watch, _ = after(others_come)
    assert names(watch) == [("traffic", "country=DE")]
    assert "feature:velocity" in [moved.subject for moved in watch.open_alerts[0].attached]


def test_a_feature_of_a_segment_comes_before_the_segments_traffic() -> None:
    def both(world: World) -> None:
        traffic_of_de_doubles(world)
        world.added_in_de = {"distance": 0.1}

    watch, told = after(both)
    assert names(watch) == [("feature:distance", "country=DE")]
    assert "traffic" in [moved.subject for moved in watch.open_alerts[0].attached]
    assert len([alert for alert in told if alert.state is State.RAISED]) == 1


def test_an_alert_clears_after_a_recovery_and_can_be_raised_again() -> None:
    world, watch = World(4), watch_of()
    run(watch, world, QUIET)
    world.missing = {"distance"}
    run(watch, world, 20)
    world.missing = set()
    told = run(watch, world, 20)
    assert [alert.state for alert in told] == [State.CLEARED]
    assert told[0].time_ms == (QUIET + 20 + 12) * FIVE_MS
    assert watch.open_alerts == []
    world.missing = {"distance"}
    again = run(watch, world, 3)
    assert [alert.state for alert in again] == [State.RAISED]
    assert again[0].alert_id != told[0].alert_id


def test_hours_and_days_that_contain_a_change_do_not_raise_it_again() -> None:
    world, watch = World(4), watch_of()
    run(watch, world, QUIET)
    world.missing = {"distance"}
    run(watch, world, 20)
    world.missing = set()
    run(watch, world, 20)
    assert watch.open_alerts == []
    # Signals that the change may have moved as well are not raised, either.
    for length_ms in (HOUR_MS, DAY_MS):
        assert watch.step(_block(watch, {"feature:distance": 1e9, "score": 1e9}, 0, length_ms)) == []
    assert watch.step(_block(watch, {"score": 1e9}, DAY_MS, DAY_MS)) != []


@pytest.mark.parametrize("seed", range(4))
def test_a_value_that_hovers_about_the_limit_does_not_flap(seed: int) -> None:
    # A relative change of 0.2 may fire. This one is 0.2, give or take chance, and certain.
    rng, watch = np.random.default_rng(seed), watch_of()
    told = []
    for number in range(1_000):
        x = 6 + rng.standard_normal()
        told += watch.step(_block(watch, {"flag:unknown_card": x}, number * FIVE_MS, effect=0.2 * x / 6))
    assert [alert.state for alert in told if alert.state is not State.ESCALATED] == [State.RAISED]
    assert len(told) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_small_lasting_change_stays_open_though_blocks_look_like_chance(seed: int) -> None:
    rng, watch, told = np.random.default_rng(seed), watch_of(), []
    for number in range(1_500):
        told += watch.step(_block(watch, {"flag:unknown_card": 0.8 + rng.standard_normal()}, number * FIVE_MS))
    assert [alert.state for alert in told if alert.state is not State.ESCALATED] == [State.RAISED]


def test_a_short_lull_does_not_clear_an_alert() -> None:
    watch, told = watch_of(), []
    for number in range(200):
        x = 0.0 if number % 12 < 10 and number > 20 else 10.0
        told += watch.step(_block(watch, {"flag:unknown_card": x}, number * FIVE_MS))
    assert [alert.state for alert in told if alert.state is not State.ESCALATED] == [State.RAISED]


def test_severity_follows_how_large_a_change_is_and_only_grows() -> None:
    watch, told = watch_of(), []
    for number, effect in enumerate([0.05] * 5 + [0.15] * 5 + [0.3] * 5 + [0.05] * 5):
        told += watch.step(_block(watch, {"score": 20.0}, number * FIVE_MS, effect=effect))
    assert [(alert.state, alert.severity) for alert in told] == [
        (State.RAISED, Severity.INFO),
        (State.ESCALATED, Severity.WARNING),
        (State.ESCALATED, Severity.CRITICAL),
    ]
    assert watch.open_alerts[0].severity is Severity.CRITICAL


def test_stale_profiles_are_at_least_a_warning() -> None:
    settings = AlertSettings()
    assert settings.severity(Signal("profile_age", "location", "overall"), 0.03) is Severity.WARNING
    assert settings.severity(Signal("score", "location", "overall"), 0.03) is Severity.INFO


def test_a_snoozed_alert_escalates_when_the_snooze_is_over() -> None:
    watch, told = watch_of(), []
    for number, effect in enumerate([0.05] * 5 + [0.15] * 15):
        if number == 5:
            assert watch.book.acknowledge(watch.open_alerts[0].alert_id, by="ana", until_ms=15 * FIVE_MS)
        told += watch.step(_block(watch, {"score": 20.0}, number * FIVE_MS, effect=effect))
    assert [(alert.state, alert.time_ms // FIVE_MS) for alert in told] == [(State.RAISED, 2), (State.ESCALATED, 15)]
    assert told[1].acknowledged_by == "ana"


def test_a_snoozed_alert_that_becomes_critical_escalates_at_once() -> None:
    watch, told = watch_of(), []
    for number, effect in enumerate([0.05] * 5 + [0.3] * 5):
        if number == 5:
            watch.book.acknowledge(watch.open_alerts[0].alert_id, by="ana", until_ms=100 * FIVE_MS)
        told += watch.step(_block(watch, {"score": 20.0}, number * FIVE_MS, effect=effect))
    assert [(alert.state, alert.time_ms // FIVE_MS) for alert in told] == [(State.RAISED, 2), (State.ESCALATED, 6)]


def test_an_alert_that_is_not_open_cannot_be_acknowledged() -> None:
    assert not watch_of().book.acknowledge("00", by="ana")


def test_an_alert_about_a_signal_without_traffic_clears() -> None:
    watch = watch_of()
    for number in range(5):
        watch.step(_block(watch, {"score": 20.0}, number * FIVE_MS))
    assert names(watch) == [("score", "overall")]
    silent = _block(watch, {}, 5 * FIVE_MS)
    silent.count[:] = 0
    assert watch.step(silent) == []
    late = _block(watch, {}, 2 * DAY_MS)
    late.count[:] = 0
    assert [alert.state for alert in watch.step(late)] == [State.CLEARED]


def test_a_model_that_no_longer_decides_has_no_open_alerts() -> None:
    watch, _ = after(lambda world: world.missing.add("distance"))
    assert [alert.state for alert in watch.book.close(123)] == [State.CLEARED]
    assert watch.open_alerts == []


def test_two_models_have_their_own_alerts() -> None:
    first, second = watch_of(model_version="model-1"), watch_of(model_version="model-2")
    raised = []
    for number in range(3):
        for watch in (first, second):
            raised += watch.step(_block(watch, {"score": 20.0}, number * FIVE_MS))
    assert [alert.model_version for alert in raised] == ["model-1", "model-2"]
    assert raised[0].alert_id != raised[1].alert_id


def test_a_repeated_block_changes_nothing_and_raises_the_same_alert() -> None:
    first, second = watch_of(), watch_of()
    blocks = [_block(first, {"score": 20.0}, number * FIVE_MS) for number in range(3)]
    told = [alert for block in blocks for alert in first.step(block)]
    state = first.to_bytes()
    assert [alert for block in blocks for alert in first.step(block)] == []
    assert first.to_bytes() == state
    assert [alert for block in blocks for alert in second.step(block)] == told


def test_a_restored_watch_continues_as_the_original() -> None:
    world, watch = World(7), watch_of()
    run(watch, world, QUIET)
    traffic_of_de_doubles(world)
    run(watch, world, 10)
    watch.book.acknowledge(watch.open_alerts[0].alert_id, by="ana", until_ms=60 * FIVE_MS)
    other = watch_of()
    other.restore(watch.to_bytes())
    assert other.to_bytes() == watch.to_bytes()
    assert other.open_alerts == watch.open_alerts
    world.country_weights = (0.2, 0.3, 0.5)
    blocks = [world.block() for _ in range(40)]
    told = [alert for block in blocks for alert in watch.step(block)]
    assert told
    assert [alert for block in blocks for alert in other.step(block)] == told
    assert other.to_bytes() == watch.to_bytes()


def test_the_state_of_twelve_thousand_signals_fits_into_one_record() -> None:
    signals = tuple(Signal(f"feature:f{n % 100}", "location", f"mcc={n // 100}") for n in range(12_000))
    watch, rng = watch_of(signals), np.random.default_rng(0)
    for length_ms in LENGTHS_MS:
        for number in range(10):
            count = len(signals)
            watch.step(
                Block(
                    number * length_ms, length_ms, signals, rng.standard_normal(count), np.zeros(count), np.ones(count),
                    np.full(count, 99), rng.random(count),
                )
            )  # fmt: skip
    assert len(watch.to_bytes()) < 700_000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state[:0], "damaged or of another release"),
        (lambda state: b"\x07" + state[1:], "damaged or of another release"),
        (lambda state: state[:40], "damaged"),
        (lambda state: state[:-9], "damaged"),
        (lambda state: state[:5] + bytes(16) + state[21:], "of another model or other signals"),
        (lambda state: state[:1] + b"\xff\xff\xff\x00" + state[5:], "damaged"),
    ],
)
def test_a_damaged_state_or_one_of_other_signals_is_refused(damage: Callable[[bytes], bytes], words: str) -> None:
    watch, told = after(lambda world: world.missing.add("distance"))
    assert told
    state = watch.to_bytes()
    with pytest.raises(InvalidEvent, match=words):
        watch.restore(damage(state))
    assert watch.to_bytes() == state


def test_the_state_of_another_models_watch_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="another model"):
        watch_of(model_version="model-2").restore(watch_of().to_bytes())


def test_the_number_of_attached_moves_is_bounded() -> None:
    signals = (
        Signal("profile_age", "location", "overall"),
        *(Signal(f"feature:f{number}", "location", "overall") for number in range(200)),
    )
    watch = watch_of(signals)
    for number in range(3):
        count = len(signals)
        watch.step(
            Block(
                number * FIVE_MS, FIVE_MS, signals, np.full(count, 20.0), np.zeros(count), np.ones(count),
                np.full(count, 99), np.full(count, 9.0),
            )
        )  # fmt: skip
    assert names(watch) == [("profile_age", "overall")]
    assert len(watch.open_alerts[0].attached) == ATTACHED_MAX
    assert len(watch.open_alerts[0].members) == 201


@pytest.mark.parametrize(
    ("subject", "cause"),
    [
        ("profile_age", Cause.PROFILES),
        ("flag:mirror_stale", Cause.PROFILES),
        ("flag:unknown_card", Cause.INPUT),
        ("feature:amount", Cause.INPUT),
        ("traffic", Cause.TRAFFIC),
        ("score", Cause.SCORE),
        ("action", Cause.SCORE),
    ],
)
def test_each_subject_has_its_cause(subject: str, cause: Cause) -> None:
    assert cause_of(subject) is cause


def _block(
    watch: DriftWatch, deviations: dict[str, float], start_ms: int, length_ms: int = FIVE_MS, *, effect: float = 9.0
) -> Block:
    """Return a block in which only these subjects moved, overall, each by a number of standard deviations."""
    signals = watch.detectors.signals
    value = np.zeros(len(signals))
    for subject, deviation in deviations.items():
        places = [i for i, s in enumerate(signals) if s.subject == subject and s.segment == "overall"]
        value[places[:1]] = deviation
    count = np.full(len(signals), 1000, dtype=np.int64)
    return Block(
        start_ms, length_ms, signals, value, np.zeros(len(signals)), np.ones(len(signals)), count,
        np.full(len(signals), effect),
    )  # fmt: skip


def _blocks_in_one_country(overall_moves: bool) -> tuple[DriftWatch, list[Alert]]:
    """Return the alerts of a feature that moved in DE alone, which has half of the payments.

    Unless `overall_moves`, the value over all payments is within the range in which it counts as unchanged.
    """
    signals = tuple(
        Signal("feature:amount", "location", segment)
        for segment in ("overall", "country=DE", "country=FR", "channel=web", "channel=pos")
    )
    watch, told = watch_of(signals), []
    rng = np.random.default_rng(1)
    for number in range(6):
        value = np.array([0.53, 0.56, 0.5, 0.5, 0.5]) + np.array([0, 1, 0, 1, 1]) * rng.normal(0, 0.004, 5)
        # By chance one more segment deviates a little, the same way.
        value[4] = 0.505
        middle = np.full(5, 0.5)
        reach = np.array([0.0 if overall_moves else 0.03, 0.0, 0.0, 0.0, 0.0])
        expected = middle + np.clip(value - middle, -reach, reach)
        count = np.array([2000, 1000, 1000, 1200, 800])
        sd, effect = np.full(5, 0.004), np.where(np.abs(value - expected) > 0.01, 0.2, 0.0)
        told += watch.step(Block(number * FIVE_MS, FIVE_MS, signals, value, expected, sd, count, effect, middle, reach))
    return watch, told


@pytest.mark.parametrize("overall_moves", [True, False])
def test_an_alert_is_never_named_after_a_signal_that_has_not_moved(overall_moves: bool) -> None:
    # 5 of 18 alerts were once named like this: .5411 overall, .5411 expected.
    watch, told = _blocks_in_one_country(overall_moves)
    (raised,) = [alert for alert in told if alert.state is State.RAISED]
    assert raised.segment in (("country=DE", "overall") if overall_moves else ("country=DE",))
    assert not raised.unchanged_low <= raised.value <= raised.unchanged_high
    assert abs(raised.value - raised.expected) > 0.02
    assert [alert.alert_id for alert in watch.open_alerts] == [raised.alert_id]


def test_an_alert_says_the_expected_value_and_not_the_nearest_unchanged_one() -> None:
    block = Block(0, FIVE_MS, SIGNALS[:1], *(np.array([number]) for number in (0.56, 0.53, 0.01, 100, 0.1, 0.5, 0.03)))
    assert block.unchanged(0) == pytest.approx((0.5, 0.47, 0.53))
    assert block.joined(block).unchanged(1) == pytest.approx((0.5, 0.47, 0.53))


def test_an_alert_that_gets_worse_by_another_signal_takes_its_name_if_its_own_is_back() -> None:
    signals = (Signal("feature:amount", "location", "overall"), Signal("feature:velocity", "location", "overall"))
    watch = watch_of(signals)

    def step(number: int, amount: float, velocity: float) -> list[Alert]:
        value, expected = np.array([0.5 + amount, 0.5 + velocity]), np.full(2, 0.5)
        effect = np.array([0.08 * (amount > 0), 1.0 * (velocity > 0)])
        return watch.step(
            Block(number * FIVE_MS, FIVE_MS, signals, value, expected, np.full(2, 0.002), np.full(2, 1000), effect)
        )

    told = [alert for number in range(3) for alert in step(number, 0.03, 0.0)]
    assert [(alert.subject, alert.severity) for alert in told] == [("feature:amount", Severity.INFO)]
    # It is back, but not for long enough to clear, when the other one moves far more.
    told = [alert for number in range(3, 7) for alert in step(number, 0.0, 0.1)]
    assert [(alert.subject, alert.state, alert.severity) for alert in told] == [
        ("feature:velocity", State.ESCALATED, Severity.CRITICAL)
    ]
    assert told[0].value - told[0].expected == pytest.approx(0.1)
    assert [moved.subject for moved in told[0].attached] == ["feature:amount"]
