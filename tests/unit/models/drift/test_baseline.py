"""Baselines learnt from four weeks of a simulated world with a known truth, and compared with its later weeks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.drift.baseline import Baseline, TimedCounts, empty_baseline, followed, learn_baseline
from paywarden.models.drift.binning import FEATURE_BINS, MISSING, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS, PAYMENTS_MIN, Detectors, DetectorSettings
from paywarden.models.drift.signal_layout import Kinds, Layout, Ranks
from paywarden.models.drift.signals import Block, Signal
from paywarden.models.metrics.distances import psi

Floats = NDArray[np.float64]
FIVE_MS = LENGTHS_MS[0]
FIVES_OF_HOUR, FIVES_OF_DAY, HOURS_OF_DAY = HOUR_MS // FIVE_MS, DAY_MS // FIVE_MS, 24
# A Monday.
FIRST_DAY = 20_003
DAYS = 28
FEATURES = ("first", "second")
SCORE_BINS = 10
HIGH_RISK_AT = 0.8
SCORE = Signal("score", "location", "overall")
FIRST = Signal("feature:first", "location", "overall")


@dataclass(frozen=True)
class World:
    """Payments of a few channels, drawn as counts. A tilt moves the mean rank of the score and of all features.

    `alike`: how many payments of one five minutes are of one card, and the same.
    """

    seed: int = 0
    payments: int = 60
    channels: int = 2
    alike: int = 1
    tilt_of_day: float = 0.0
    tilt_of_weekend: float = 0.0
    # Standard deviations of the random tilt of each hour and of each day.
    wander_of_hours: float = 0.0
    wander_of_days: float = 0.0
    # How much each day adds to the tilt of the features and of the score.
    trend: float = 0.0
    # A constant added to the tilt of the first feature.
    moved: float = 0.0
    # The share of blocks of five minutes in which a burst adds three times a channel's payments, all alike.
    bursts: float = 0.0

    @property
    def binning(self) -> Binning:
        """Returns a binning whose scores and features have equal bins."""
        edges = np.tile(np.linspace(0, 1, FEATURE_BINS + 1, dtype=np.float32)[1:-1], (len(FEATURES), 1))
        channels = tuple(f"c{number}" for number in range(self.channels))
        return Binning(np.linspace(0, 1, SCORE_BINS + 1)[1:-1], edges, (channels, (), ()))

    def expected_tilt(self, start_ms: int) -> float:
        """Returns the tilt of an hour without its wander."""
        day, hour = start_ms // DAY_MS, start_ms // HOUR_MS % HOURS_OF_DAY
        pattern = self.tilt_of_day * np.sin(2 * np.pi * hour / HOURS_OF_DAY)
        return float(pattern + self.tilt_of_weekend * (day % 7 in (2, 3)) + self.trend * (day - FIRST_DAY))

    def day(self, day: int) -> Counts:
        """Returns a day's blocks of five minutes: Counts whose arrays have the blocks as an extra first axis."""
        rng = np.random.default_rng((self.seed, day))
        hours = np.array([self.expected_tilt(day * DAY_MS + hour * HOUR_MS) for hour in range(HOURS_OF_DAY)])
        tilts = np.empty((1 + len(FEATURES), FIVES_OF_DAY))
        for subject in range(1 + len(FEATURES)):
            of_hours = hours + self.wander_of_hours * rng.standard_normal(HOURS_OF_DAY)
            of_hours += self.wander_of_days * rng.standard_normal()
            tilts[subject] = np.repeat(of_hours, FIVES_OF_HOUR)
        tilts[1] += self.moved
        # At night there are fewer.
        of_hour = 1 - 0.5 * np.cos(2 * np.pi * np.arange(FIVES_OF_DAY) / FIVES_OF_DAY)
        weights = np.arange(self.channels, 0, -1) / np.arange(self.channels + 1).sum()
        cards = rng.poisson(self.payments / self.alike * of_hour[:, None] * weights)
        bursts = np.zeros_like(cards)
        bursts[:, 0] = np.where(rng.random(FIVES_OF_DAY) < self.bursts, 3 * self.payments, 0)
        return self._counts(rng, cards, tilts, bursts)

    def _counts(
        self, rng: np.random.Generator, cards: NDArray[np.int64], tilts: Floats, bursts: NDArray[np.int64]
    ) -> Counts:
        def drawn(tilt: Floats, bins: int) -> NDArray[np.int64]:
            found = rng.multinomial(cards, _tilted(tilt, bins)[:, None, :]) * self.alike
            found[:, :, -1] += bursts
            return np.asarray(found)

        payments = cards * self.alike + bursts
        scores = drawn(tilts[0], SCORE_BINS)
        features = np.zeros((*cards.shape, len(FEATURES), MISSING + 1), dtype=np.int64)
        for number in range(len(FEATURES)):
            features[:, :, number, :MISSING] = drawn(tilts[1 + number], MISSING)
            missing = rng.binomial(features[:, :, number, 0], 0.1)
            features[:, :, number, 0] -= missing
            features[:, :, number, MISSING] = missing
        actions = np.stack([payments, 0 * payments, 0 * payments], axis=2)
        ages = np.zeros((*cards.shape, Counts.empty(self.binning).ages.shape[1]), dtype=np.int64)
        arrays = (payments, scores, actions, features, payments[:, :, None] * 0, ages)
        return Counts(self.binning, *(self._in_segments(array) for array in arrays))

    def _in_segments(self, of_channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turns (blocks, channels, …) into (blocks, segments, …). No payment has a country or a category."""
        segments = self.binning.segments
        counts = np.zeros((len(of_channels), len(segments), *of_channels.shape[2:]), dtype=np.int64)
        counts[:, 1 : 1 + self.channels] = of_channels
        for name in ("overall", "country=none", "mcc=none"):
            counts[:, segments.index(name)] = of_channels.sum(axis=1)
        return counts

    def blocks(self, first_day: int, days: int, length_ms: int) -> Iterator[TimedCounts]:
        """Yields all blocks of one length."""
        together = length_ms // FIVE_MS
        for day in range(first_day, first_day + days):
            arrays = [array.reshape(-1, together, *array.shape[1:]).sum(axis=1) for array in _day_of(self, day).arrays]
            for number in range(FIVES_OF_DAY // together):
                yield day * DAY_MS + number * length_ms, Counts(self.binning, *(array[number] for array in arrays))


# The cache holds the days of a whole past.
@lru_cache(maxsize=DAYS)
def _day_of(world: World, day: int) -> Counts:
    return world.day(day)


def _tilted(tilt: Floats, bins: int) -> Floats:
    """Returns the bins' shares for each tilt, (blocks, bins)."""
    weights = np.exp(tilt[:, None] * np.linspace(0, 1, bins))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares


def every_sixth(blocks: Iterator[TimedCounts]) -> list[TimedCounts]:
    """Returns one block of five minutes of each half hour, each time another one of the six."""
    return [block for number, block in enumerate(blocks) if number % 6 == number // 6 % 6]


@cache
def learnt(world: World, *, with_fives: bool = True) -> tuple[Layout, Baseline]:
    total = Counts.empty(world.binning)
    for _, counts in world.blocks(FIRST_DAY, DAYS, DAY_MS):
        total.add(counts)
    layout = Layout(
        world.binning,
        FEATURES,
        Ranks.of_counts(total),
        high_risk_at=HIGH_RISK_AT,
        kinds=Kinds.SCORE | Kinds.INPUTS,
    )
    fives = every_sixth(world.blocks(FIRST_DAY, DAYS, FIVE_MS)) if with_fives else ()
    return layout, learn_baseline(layout, total, world.blocks(FIRST_DAY, DAYS, HOUR_MS), fives)


def fresh(world: World, length_ms: int, days: int = DAYS) -> list[Block]:
    """Returns blocks of the weeks after the past."""
    layout, baseline = learnt(world)
    blocks = world.blocks(FIRST_DAY + DAYS, days, length_ms)
    counted = every_sixth(blocks) if length_ms == FIVE_MS else blocks
    return [baseline.block(layout, counts, start_ms, length_ms) for start_ms, counts in counted]


def z_of(world: World, length_ms: int) -> Floats:
    """Returns the deviations of new blocks in standard deviations, (blocks, signals); NaN with few payments.

    Only signals that vary are included.
    """
    layout, baseline = learnt(world)
    found = []
    for block in fresh(world, length_ms):
        expected, _ = baseline.expected(layout, block.start_ms, length_ms)
        is_there = block.count >= PAYMENTS_MIN
        found.append(np.where(is_there, (block.value - expected) / block.sd, np.nan))
    z = np.array(found)
    varies = np.nanmax(np.where(np.isnan(z), 0, np.abs(z)), axis=0) > 0.1
    return np.asarray(z[:, varies])


def truth(world: World, layout: Layout, start_ms: int) -> Floats:
    """Returns the true values of an hour's signals, without chance."""
    many = np.full((1, world.channels), 1_000_000)
    tilts = np.full((1 + len(FEATURES), 1), world.expected_tilt(start_ms))
    tilts[1] += world.moved
    counts = world._counts(np.random.default_rng(1), many, tilts, 0 * many)
    return layout.values(Counts(world.binning, *(array[0] for array in counts.arrays)))[0]


IID = World(seed=1)
CLUSTERED = World(seed=2, alike=4)
WANDERING = World(seed=3, wander_of_hours=0.5)
SEASONAL = World(seed=4, tilt_of_day=1.0, tilt_of_weekend=1.5)
OTHER_DAYS = World(seed=5, wander_of_days=0.5)
NEXT_WEEK_MS = (FIRST_DAY + DAYS) * DAY_MS


def test_a_pattern_of_the_day_and_of_the_week_is_expected_again() -> None:
    layout, baseline = learnt(SEASONAL)
    starts = range(NEXT_WEEK_MS, NEXT_WEEK_MS + 7 * DAY_MS, HOUR_MS)
    places = [layout.numbers[signal] for signal in (SCORE, FIRST)]
    wanted = np.array([truth(SEASONAL, layout, start_ms)[places] for start_ms in starts])
    found = np.array([baseline.expected(layout, start_ms, HOUR_MS)[0][places] for start_ms in starts])
    assert (np.ptp(wanted, axis=0) > 0.15).all()
    assert (np.abs(found - wanted).mean(axis=0) < 0.006).all()


def test_the_expected_value_of_a_block_weights_its_hours_by_payments() -> None:
    layout, baseline = learnt(SEASONAL)
    for day in range(7):
        start_ms = NEXT_WEEK_MS + day * DAY_MS
        hours = [baseline.expected(layout, start_ms + hour * HOUR_MS, HOUR_MS) for hour in range(HOURS_OF_DAY)]
        expected, past = baseline.expected(layout, start_ms, DAY_MS)
        assert past == pytest.approx(np.sum([one for _, one in hours], axis=0))
        by_payments = np.sum([value * weight for value, weight in hours], axis=0)
        there = past > 0
        assert expected[there] == pytest.approx(by_payments[there] / past[there], abs=1e-5)
        five = baseline.expected(layout, start_ms + 7 * HOUR_MS + 11 * FIVE_MS, FIVE_MS)
        np.testing.assert_array_equal(five, hours[7])


def test_chance_does_not_become_a_season() -> None:
    layout, baseline = learnt(IID)
    payments = baseline.payments[:, layout.behind]
    # How far chance moves the means of the hours of the week.
    chance = np.sqrt(baseline.variance / np.maximum(payments, 1))
    there = payments.min(axis=0) > 0
    assert np.sqrt((baseline.season[:, there] ** 2 / chance[:, there] ** 2).mean()) < 0.3


@pytest.mark.parametrize("length_ms", LENGTHS_MS)
@pytest.mark.parametrize(
    "world", [IID, CLUSTERED, WANDERING, SEASONAL], ids=["independent", "clustered", "wandering", "seasonal"]
)
def test_new_blocks_deviate_as_much_as_the_baseline_says(world: World, length_ms: int) -> None:
    squares = np.nanmean(z_of(world, length_ms) ** 2, axis=0)
    assert len(squares) > 40
    assert 0.6 < squares.mean() < 1.3


@pytest.mark.parametrize("length_ms", LENGTHS_MS)
def test_differing_days_give_a_range_that_counts_as_unchanged(length_ms: int) -> None:
    layout, baseline = learnt(OTHER_DAYS)
    score = layout.numbers[SCORE]
    assert baseline.range[score] > 5 * learnt(IID)[1].range[score]
    inside = 0
    blocks = fresh(OTHER_DAYS, length_ms)
    for block in blocks:
        off = block.value[score] - baseline.expected(layout, block.start_ms, length_ms)[0][score]
        if abs(off) <= baseline.range[score]:
            assert block.expected[score] == pytest.approx(block.value[score], abs=1e-12)
            inside += 1
    assert inside > 0.9 * len(blocks)


def test_feature_levels_follow_the_last_days_and_score_levels_do_not() -> None:
    world = World(seed=6, trend=0.03)
    layout, baseline = learnt(world)
    level = baseline.level[layout.numbers[FIRST]]
    end = truth(world, layout, NEXT_WEEK_MS)[layout.numbers[FIRST]]
    assert end > 0.52
    assert 0.5 + 0.2 * (end - 0.5) < level < end
    assert baseline.level[layout.numbers[SCORE]] == pytest.approx(0.5, abs=1e-3)


def test_a_day_without_payments_moves_no_level() -> None:
    layout, baseline = learnt(IID)
    before = np.linspace(-0.1, 0.1, len(layout.signals), dtype=np.float32)
    day = baseline.block(layout, Counts.empty(IID.binning), NEXT_WEEK_MS, DAY_MS, before)
    np.testing.assert_array_equal(followed(baseline, layout, before, day), before)


def test_an_effect_is_a_psi_for_histograms_and_relative_for_shares() -> None:
    layout, baseline = learnt(IID)
    moved = replace(IID, moved=1.0)
    ((start_ms, counts),) = moved.blocks(FIRST_DAY + DAYS, 1, DAY_MS)
    ((_, before),) = IID.blocks(FIRST_DAY + DAYS, 1, DAY_MS)
    block = baseline.block(layout, counts, start_ms, DAY_MS)
    distance = psi(counts.features[0, 0, :MISSING], before.features[0, 0, :MISSING])
    assert block.effect[layout.numbers[FIRST]] == pytest.approx(distance, rel=0.2)
    missing = layout.numbers[Signal("feature:first", "missing", "overall")]
    relative = abs(block.value[missing] / baseline.expected(layout, start_ms, DAY_MS)[0][missing] - 1)
    assert relative > 0.2
    assert block.effect[missing] == pytest.approx(relative, rel=0.2)
    assert block.effect[layout.numbers[SCORE]] < 0.001


def test_without_five_minute_blocks_their_spread_is_that_of_hours() -> None:
    for world in (CLUSTERED, WANDERING):
        _, baseline = learnt(world, with_fives=False)
        np.testing.assert_array_equal(baseline.dispersion[0], baseline.dispersion[1])
        np.testing.assert_array_equal(baseline.wander[0], baseline.wander[1])


def test_without_a_past_nothing_is_expected() -> None:
    layout, _ = learnt(IID)
    baseline, detectors = empty_baseline(layout), Detectors(layout.signals, DetectorSettings())
    for length_ms in LENGTHS_MS:
        start_ms, counts = next(IID.blocks(FIRST_DAY, 1, length_ms))
        block = baseline.block(layout, counts, start_ms, length_ms)
        assert np.isnan(block.expected).all()
        assert not detectors.step(block).counted.any()


def test_detectors_stay_silent_for_weeks_and_fire_after_a_feature_moved() -> None:
    world = World(seed=8, payments=150, channels=12, tilt_of_day=0.5, wander_of_hours=0.1, alike=2)
    layout, baseline = learnt(world)
    detectors = Detectors(layout.signals, DetectorSettings())
    assert len(layout.signals) > 150
    moved = np.zeros(len(layout.signals), dtype=np.float32)

    def fired(world: World, day: int, length_ms: int) -> Iterator[tuple[Block, list[Signal]]]:
        for start_ms, counts in world.blocks(day, 1, length_ms):
            block = baseline.block(layout, counts, start_ms, length_ms, moved)
            yield block, [layout.signals[number] for number in detectors.step(block).fired]

    last_day = FIRST_DAY + DAYS + 30
    for day in range(FIRST_DAY + DAYS, last_day):
        # A few days of five-minute blocks are enough. They take the longest time.
        for length_ms in LENGTHS_MS if day % 6 == 0 else LENGTHS_MS[1:]:
            for block, found in fired(world, day, length_ms):
                assert not found, block.start_ms
        moved = followed(baseline, layout, moved, block)
    last = fired(replace(world, moved=2.0), last_day, FIVE_MS)
    block, found = next((block, found) for block, found in last if found)
    assert block.end_ms <= last_day * DAY_MS + HOUR_MS
    assert {signal.subject for signal in found} == {"feature:first"}
