"""Detectors: their false alarm rate, and how soon they fire after a change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.drift.detectors import DAY_MS, LENGTHS_MS, Detectors, DetectorSettings, budget
from paywarden.models.drift.signals import Block, Signal

Floats = NDArray[np.float64]
FIVE_MS, HOUR_MS, _ = LENGTHS_MS
BLOCKS_A_DAY = DAY_MS // FIVE_MS
SIGNALS = (
    *(Signal("score", f"share_{number}", "overall") for number in range(4)),
    *(Signal(f"feature:f{number}", "location", "overall") for number in range(6)),
    *(Signal("traffic", "share", f"country=C{number}") for number in range(6)),
    *(Signal("score", "location", f"country=C{number}") for number in range(30)),
)
COUNT = len(SIGNALS)


def block_of(
    values: Floats, start_ms: int = 0, length_ms: int = FIVE_MS, *, sd: Floats | None = None, **arrays: Floats
) -> Block:
    """Returns a block whose expected values are 0 and whose effects are all large."""
    count = len(values)
    return Block(
        start_ms=start_ms,
        length_ms=length_ms,
        signals=SIGNALS[:count],
        value=values,
        expected=np.zeros(count),
        sd=np.ones(count) if sd is None else sd,
        count=np.asarray(arrays.get("count", np.full(count, 1000)), dtype=np.int64),
        effect=arrays.get("effect", np.full(count, 9.0)),
    )


def side_by_side(signals: Sequence[Signal], services: int, settings: DetectorSettings) -> Detectors:
    """Returns the detectors of several services in one object: a step takes hardly longer for many signals.

    A signal has `1 / services` of the share of the false alarms that it would have alone. The false alarms are
    `services` times as frequent, so its threshold is the same.
    """
    days = settings.false_alarm_days / services
    return Detectors(tuple(signals) * services, replace(settings, false_alarm_days=days))


def firings(settings: DetectorSettings, days: int, draws: Sequence[Callable[[], Floats]]) -> list[int]:
    """Returns how often any signal of each service fires. `draws` give the values of the services.

    They fire in blocks of five minutes, and in the hours and days that these form.
    """
    detectors, count = side_by_side(SIGNALS, len(draws), settings), len(draws) * COUNT
    sd, payments, effect = np.ones(count), np.full(count, 1000), np.full(count, 9.0)
    fired, sums = np.zeros(len(draws), dtype=np.int64), {length: np.zeros(count) for length in LENGTHS_MS}
    for number in range(1, days * BLOCKS_A_DAY + 1):
        values = np.concatenate([draw() for draw in draws])
        for length_ms in LENGTHS_MS:
            sums[length_ms] += values
            blocks = length_ms // FIVE_MS
            if number % blocks == 0:
                block = Block(
                    start_ms=(number - blocks) * FIVE_MS,
                    length_ms=length_ms,
                    signals=detectors.signals,
                    value=sums[length_ms] / math.sqrt(blocks),
                    expected=np.zeros(count),
                    sd=sd,
                    count=payments,
                    effect=effect,
                )
                fired += np.bincount(detectors.step(block).fired // COUNT, minlength=len(draws))
                sums[length_ms][:] = 0
    return fired.tolist()


def _normal(rng: np.random.Generator) -> Callable[[], Floats]:
    return lambda: rng.standard_normal(COUNT)


def _heavy(rng: np.random.Generator) -> Callable[[], Floats]:
    return lambda: rng.standard_t(8, COUNT)


def _persistent(rng: np.random.Generator) -> Callable[[], Floats]:
    before = rng.standard_normal(COUNT)

    def draw() -> Floats:
        before[:] = 0.1 * before + math.sqrt(1 - 0.01) * rng.standard_normal(COUNT)
        return before

    return draw


def _alike(rng: np.random.Generator) -> Callable[[], Floats]:
    """All signals move together, as those of one score do."""
    return lambda: 0.9 * rng.standard_t(8) + math.sqrt(1 - 0.81) * rng.standard_normal(COUNT)


def _of_traffic(payments: int) -> Callable[[], Floats]:
    """Deviations of a share, in blocks of this many payments."""
    rng, share = np.random.default_rng(payments), 0.2
    sd = math.sqrt(share * (1 - share) / payments)
    return lambda: np.asarray((rng.binomial(payments, share, COUNT) / payments - share) / sd)


NULLS = {make.__name__: make for make in (_normal, _heavy, _persistent, _alike)}
TRAFFIC = (50, 1_000, 50_000)
DAYS = 10


@cache
def false_alarms(false_alarm_days: float) -> dict[str | int, int]:
    """Returns the false alarms of DAYS, by the name of the null or the payments of a block."""
    draws: dict[str | int, Callable[[], Floats]] = {
        **{name: make(np.random.default_rng(8)) for name, make in NULLS.items()},
        **{payments: _of_traffic(payments) for payments in TRAFFIC},
    }
    settings = DetectorSettings(false_alarm_days=false_alarm_days)
    return dict(zip(draws, firings(settings, DAYS, [*draws.values()]), strict=True))


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("false_alarm_days", [1.0, 5.0])
def test_without_a_change_alarms_are_as_rare_as_configured(null: str, false_alarm_days: float) -> None:
    assert false_alarms(false_alarm_days)[null] <= DAYS / false_alarm_days


@pytest.mark.parametrize("payments", TRAFFIC)
def test_the_false_alarm_rate_does_not_depend_on_traffic(payments: int) -> None:
    assert false_alarms(1.0)[payments] <= DAYS


@pytest.mark.parametrize(("shift", "blocks_max"), [(0.5, 160), (1.0, 45), (2.0, 15), (4.0, 6), (8.0, 3), (20.0, 2)])
def test_a_change_is_seen_within_the_expected_number_of_blocks(shift: float, blocks_max: int) -> None:
    # The score overall of a service with 12,000 signals: docs/benchmarks.md has the medians.
    assert np.median(_delays(np.random.default_rng(4), shift, services=100)) <= blocks_max


def _delays(rng: np.random.Generator, shift: float, services: int) -> NDArray[np.int64]:
    """Returns how many blocks pass in each service from the change of its first signal to the alarm.

    The last alarms, which do not change the median, are not waited for: these services have 400.
    """
    signals = (*SIGNALS[:4], *(Signal("score", f"share_{n}", "country=DE") for n in range(40)))
    detectors = side_by_side(signals, services, DetectorSettings())
    count, firsts = len(detectors.signals), np.arange(services) * len(signals)
    delays = np.full(services, 400)
    arrays = np.zeros(count), np.ones(count), np.full(count, 1000), np.full(count, 9.0)
    for number in range(400):
        values = rng.standard_normal(count)
        values[firsts] += shift if number >= 20 else 0
        fired = detectors.step(Block(number * FIVE_MS, FIVE_MS, detectors.signals, values, *arrays)).fired
        if number >= 20:
            delays[np.isin(firsts, fired) & (delays == 400)] = number - 19
        if (delays < 400).sum() > services / 2:
            break
    return delays


@pytest.mark.parametrize("length_ms", [FIVE_MS, HOUR_MS])
def test_one_freak_block_does_not_fire_and_a_second_does(length_ms: int) -> None:
    detectors = Detectors(SIGNALS, DetectorSettings())
    freak = np.full(COUNT, 1e9)
    assert not len(detectors.step(block_of(freak, 0, length_ms)).fired)
    assert len(detectors.step(block_of(freak, length_ms, length_ms)).fired) == COUNT


def test_a_certain_but_small_change_fires_only_when_it_grows() -> None:
    detectors = Detectors(SIGNALS, DetectorSettings(share_change_min=0.2, psi_min=0.02))
    small, large = np.full(COUNT, 0.01), np.full(COUNT, 0.3)
    for number in range(10):
        assert not len(detectors.step(block_of(np.full(COUNT, 30.0), number * FIVE_MS, effect=small)).fired)
    verdict = detectors.step(block_of(np.full(COUNT, 30.0), 10 * FIVE_MS, effect=large))
    assert len(verdict.fired) == COUNT
    # The time is that of the evidence, not that of the larger effect.
    assert verdict.reached_ms[0] == 2 * FIVE_MS


def test_settled_changes_do_not_fire_again_in_longer_blocks() -> None:
    detectors = Detectors(SIGNALS, DetectorSettings())
    detectors.step(block_of(np.full(COUNT, 3.0)))
    detectors.forget([0], 3 * FIVE_MS)
    detectors.settle([1], 3 * FIVE_MS)
    assert not detectors.state[0][:, 0].any()
    assert detectors.state[0][0, 1].any()
    verdict = detectors.step(block_of(np.full(COUNT, 3.0), 0, HOUR_MS))
    assert verdict.counted.tolist() == [False, False, *[True] * (COUNT - 2)]


def test_the_false_alarms_are_shared_out_and_the_score_has_half() -> None:
    shares = budget(SIGNALS)
    assert shares.sum() == pytest.approx(1)
    assert shares[:4].sum() == pytest.approx(1 / 2)
    assert shares[4:10].sum() == pytest.approx(1 / 4)
    assert shares[10:16].sum() == pytest.approx(1 / 8)
    # If a kind of signals is missing, the others share its part of the budget.
    assert budget(SIGNALS[:4]).sum() == pytest.approx(1)
