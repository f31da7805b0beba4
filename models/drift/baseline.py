"""Learn a baseline: the expected value of each signal at each hour of the week, and how much blocks vary around it.

    expected = level + season(hour of the week)
    variance = dispersion x variance of one payment x (1 / payments of the block + 1 / payments of the past) + wander

How it works:

1. Level and season come from whole hours of a past. The season has two parts: the hour of the day, and what the hour of
   the week adds to it. Each part is shrunk towards 0 by the share of it that chance explains (empirical Bayes
   shrinkage).
2. Dispersion says by what factor blocks vary more than independent payments would. Payments of one card are not
   independent, so it is often above 1.
3. Wander is the variance that remains with any number of payments. Dispersion and wander are estimated for each block
   length by the method of moments: a line through the squared deviations of the past's own blocks.
4. A shorter block never gets a smaller dispersion or wander than a longer one. Deviations that add up over an hour are
   not independent chance in each of its minutes.
5. If a past block deviates more than the null hypothesis allows (models/drift/detectors.py), the signal gets a larger
   variance, and so does its signal group: the same signal in other segments.
6. Cards get older and merchants more numerous. The expected values of features and traffic therefore follow the days
   slowly, by 1/14 of each day's deviation (`followed`). Those of scores stay at the past.

Example: the share of missing values of a feature has the level 0.10, and is 0.02 higher on Mondays at 09:00. Dispersion
is 2, wander 0.0001 for hours and for days. Now a Monday 09:00 has 1,000 payments and the share 0.18; the past had 4,000
payments at that hour.

    expected  = 0.10 + 0.02 = 0.12
    range     = 4 x sqrt(0.0001) = 0.04: the nearest expected value is 0.16, and the deviation is 0.02
    one       = 0.10 x 0.90 = 0.09 in the past, 0.18 x 0.82 = 0.148 now: the mean, 0.119, is larger than the past's
    variance  = 2 x 0.119 x (1/1000 + 1/4000) + 0.0001 = 0.0004, so the standard deviation is 0.02

The block lies 0.02 / 0.02 = 1 standard deviation away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import HOUR_MS, LENGTHS_MS, NULL_FREEDOM, PAYMENTS_MIN
from paywarden.models.drift.signal_layout import Layout
from paywarden.models.drift.signals import Block

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
TimedCounts = tuple[int, Counts]
"""The start of a block in milliseconds since the epoch, and its counts."""

_FIVE_MS, _, _DAY_MS = LENGTHS_MS
_HOURS_OF_DAY, _HOURS_OF_WEEK = 24, 168
# A level follows a day by this share of the day's deviation. A deviation counts for at most 2 standard deviations.
_FOLLOWS, _BELIEVED = 1 / 14, 2.0
# The estimate of days is that of hours until the past has about this many days.
_PRIOR_DAYS = 10.0
# Within this many standard deviations of a day's wander, a signal counts as unchanged.
_RANGE = 4.0
# The quantile of a signal group's wander that each of its members has at least.
_GROUP_QUANTILE = 0.75
# Effects are measured against at least this variance and this share.
_VARIANCE_MIN, _SHARE_MIN = 1e-3, 1e-3
# Keeps divisions by 0 from happening, and is too small to change a weighted mean.
_TINY = 1e-9


@dataclass(frozen=True)
class Baseline:
    """The baseline of a layout's signals. All arrays are float32.

    `level`: (signals,).
    `variance`: (signals,), the variance of one payment.
    `season`: (168, signals). Hour 0 is the hour of the epoch, Thursday 00:00 UTC.
    `dispersion`, `wander`: (lengths, signals), in the order of LENGTHS_MS.
    `payments`: (168, segments), the past's payments at each hour of the week.
    """

    level: F32
    variance: F32
    season: F32
    dispersion: F32
    wander: F32
    payments: F32

    @cached_property
    def range(self) -> F64:
        """How far a signal may be from its expected value without counting as changed, (signals,)."""
        return np.asarray(_RANGE * np.sqrt(self.wander[-1]), dtype=np.float64)

    def block(
        self, layout: Layout, counts: Counts, start_ms: int, length_ms: int, followed: NDArray[Any] | None = None
    ) -> Block:
        """Returns the signals of these counts beside their expected values and standard deviations.

        `followed`: how far the levels have moved since the past, (signals,).
        """
        found = self._compared(layout, counts, start_ms, length_ms, followed)
        effect = _effect(layout, found.value - found.expected, found.expected, found.variance, self.variance)
        deviation = np.sqrt(found.variance)
        return Block(
            start_ms,
            length_ms,
            layout.signals,
            found.value,
            found.expected,
            deviation,
            found.count,
            effect,
            found.middle,
            self.range,
        )

    def _compared(
        self, layout: Layout, counts: Counts, start_ms: int, length_ms: int, followed: NDArray[Any] | None
    ) -> _Compared:
        value, count, spread = layout.values_and_spread(counts)
        expected, past = self.expected(layout, start_ms, length_ms)
        if followed is not None:
            expected = expected + followed
        middle = expected
        # Measure from the nearest point of the range in which the signal counts as unchanged.
        expected = expected + np.clip(value - expected, -self.range, self.range)
        # An event that was rare in the past may be frequent in this block: use the mean of both variances if larger.
        of_one = np.maximum(self.variance, (self.variance + spread) / 2)
        place = LENGTHS_MS.index(length_ms)
        sampling = 1 / np.maximum(count, 1) + 1 / np.maximum(past, 1)
        variance = self.dispersion[place] * of_one * sampling + self.wander[place]
        return _Compared(value, count, middle, expected, variance)

    def expected(self, layout: Layout, start_ms: int, length_ms: int) -> tuple[F64, F64]:
        """Returns the expected values of a block, and the number of past payments they rest on. Both (signals,)."""
        season, past = _season_of(layout, self.season, self.payments, start_ms, length_ms)
        return self.level + season, past


@dataclass(frozen=True)
class _Compared:
    """A block's signals, (signals,). `expected` is the nearest unchanged value to `value`, `middle` the usual one."""

    value: F64
    count: NDArray[np.int64]
    middle: F64
    expected: F64
    variance: F64


def followed(baseline: Baseline, layout: Layout, before: F32, day: Block) -> F32:
    """Returns how far the levels have moved after `day`, (signals,); `before` is the move up to that day."""
    expected = baseline.expected(layout, day.start_ms, day.length_ms)[0] + before
    most = _BELIEVED * day.sd
    is_moving = layout.is_followed & (day.count > 0)
    return before + np.where(is_moving, _FOLLOWS * np.clip(day.value - expected, -most, most), 0.0).astype(np.float32)


def _season_of(
    layout: Layout, season: NDArray[Any], payments: NDArray[Any], start_ms: int, length_ms: int
) -> tuple[F64, F64]:
    """Returns a block's season and its past payments, (signals,). Several hours are weighted by their past payments."""
    first = start_ms // HOUR_MS % _HOURS_OF_WEEK
    hours = slice(first, first + max(1, length_ms // HOUR_MS))
    past = payments[hours, layout.behind].astype(np.float64)
    weights = past + _TINY
    return (weights * season[hours]).sum(axis=0) / weights.sum(axis=0), past.sum(axis=0)


def _effect(layout: Layout, moved: F64, expected: F64, variance: F64, of_one: F32) -> F64:
    """Returns the effects of moves: squared distances less the variance that chance explains. See Block.effect."""
    beyond_chance = np.maximum(moved**2 - variance, 0.0)
    distance = beyond_chance / np.maximum(of_one, _VARIANCE_MIN)
    relative = np.sqrt(beyond_chance) / np.maximum(expected, _SHARE_MIN)
    return np.where(layout.is_histogram, distance, relative)


def empty_baseline(layout: Layout) -> Baseline:
    """Returns a baseline without a past: every expected value is NaN, and no detector counts a block."""
    count, zeros = len(layout.signals), np.zeros((len(LENGTHS_MS), len(layout.signals)))
    weeks = [np.zeros((_HOURS_OF_WEEK, columns)) for columns in (count, len(layout.segments))]
    return _as_baseline(np.full(count, np.nan), np.ones(count), weeks[0], zeros, zeros, weeks[1])


def learn_baseline(
    layout: Layout, total: Counts, hours: Iterable[TimedCounts], fives: Iterable[TimedCounts] = ()
) -> Baseline:
    """Returns the baseline of a past. `total` is the sum of its counts.

    `hours`: every hour of the past, in order and without gaps, from a midnight on (UTC).
    `fives`: some of its blocks of five minutes; iterated more than once. Without any, blocks of five minutes get the
    dispersion and wander of hours.
    """
    past = _Past(layout, total, hours)
    levels = past.levels()
    of_hours = past.spread_of_hours(levels).estimate()
    of_days = past.spread_of_days(levels).estimate_like(of_hours)
    of_fives = past.spread_of_fives(levels, fives).estimate()
    of_days[1] = np.maximum(of_days[1], _of_signal_group(layout, of_days[1]))
    longest = np.maximum(of_hours, of_days)
    estimates = np.maximum(of_fives, longest), longest, of_days
    dispersion, wander = np.stack([pair[0] for pair in estimates]), np.stack([pair[1] for pair in estimates])
    baseline = _as_baseline(past.mean, past.variance, past.season, dispersion, wander, past.payments)
    factor = _widening(layout, baseline, fives, levels, past.first_ms)
    level = past.mean + levels[-1]
    return _as_baseline(level, past.variance, past.season, dispersion * factor, wander * factor, past.payments)


def _as_baseline(*arrays: NDArray[Any]) -> Baseline:
    return Baseline(*(array.astype(np.float32) for array in arrays))


def _of_signal_group(layout: Layout, wander: F64) -> F64:
    """Returns the third quartile of wander in each signal's group. The estimate of one segment may be low by chance."""
    quartile = np.zeros(layout.signal_group_count)
    order = np.argsort(layout.signal_group, kind="stable")
    signal_group, firsts = np.unique(layout.signal_group[order], return_index=True)
    for number, part in zip(signal_group, np.split(wander[order], firsts[1:]), strict=True):
        quartile[number] = np.quantile(part, _GROUP_QUANTILE)
    return quartile[layout.signal_group]


def _widening(layout: Layout, baseline: Baseline, fives: Iterable[TimedCounts], levels: F64, first_ms: int) -> F64:
    """Returns the factor, at least 1, by which each signal's variance must grow, (signals,).

    With that factor, the largest deviation of a signal group is the largest that the null hypothesis predicts for as
    many blocks. A burst of one merchant or device hits each segment rarely, but some segment all the time. All signals
    of a group therefore share one factor.
    """
    # Imported here because only learning needs SciPy.
    from scipy.special import stdtrit

    furthest, blocks = np.zeros(len(layout.signals)), np.zeros(len(layout.signals))
    for start_ms, counts in fives:
        block = baseline._compared(layout, counts, start_ms, _FIVE_MS, levels[(start_ms - first_ms) // _DAY_MS])
        is_there = block.count >= PAYMENTS_MIN
        z = np.abs(block.value - block.expected) / np.sqrt(block.variance)
        furthest = np.fmax(furthest, np.where(is_there, z, 0.0))
        blocks += is_there
    widest = np.zeros(layout.signal_group_count)
    np.maximum.at(widest, layout.signal_group, furthest)
    tried = np.bincount(layout.signal_group, weights=blocks, minlength=layout.signal_group_count)
    allowed = stdtrit(NULL_FREEDOM, 1 - 1 / (2 * np.maximum(tried, 2)))
    return np.asarray(np.maximum(widest / allowed, 1.0)[layout.signal_group] ** 2)


class _Past:
    """The hours of a past: each signal's deviation from its mean and its payments, (hours, signals)."""

    def __init__(self, layout: Layout, total: Counts, hours: Iterable[TimedCounts]) -> None:
        self.layout = layout
        self.mean, self.variance = layout.moments(total)
        self.payments = np.zeros((_HOURS_OF_WEEK, len(layout.segments)))
        starts, moved, sizes = [], [], []
        for start_ms, counts in hours:
            value, size = layout.values(counts)
            starts.append(start_ms)
            # float32 takes half the memory and is exact enough.
            moved.append(np.where(size > 0, value - self.mean, 0.0).astype(np.float32))
            sizes.append(size.astype(np.float32))
            self.payments[start_ms // HOUR_MS % _HOURS_OF_WEEK] += counts.payments[: len(layout.segments)]
        self.first_ms = starts[0]
        self._starts, self._moved, self._sizes = starts, np.array(moved), np.array(sizes)
        # How many parameters were fitted to the past's own hours, and how many of them to its days. (signals,) each.
        self._hours_used, self._days_used = np.zeros(len(self.mean)), np.zeros(len(self.mean))
        self.season = self._season()
        self._fill_payments()
        for place, start_ms in enumerate(starts):
            self._moved[place] -= self.season[start_ms // HOUR_MS % _HOURS_OF_WEEK]

    def _season(self) -> F64:
        hour = np.array(self._starts) // HOUR_MS % _HOURS_OF_WEEK
        of_day, weights = self._shrunk(self._moved, hour % _HOURS_OF_DAY, _HOURS_OF_DAY)
        days = _HOURS_OF_WEEK // _HOURS_OF_DAY
        season = np.tile(of_day, (days, 1))
        of_week, more = self._shrunk(self._moved - season[hour].astype(np.float32), hour, _HOURS_OF_WEEK)
        self._hours_used = weights.sum(axis=0) + more.sum(axis=0)
        self._days_used = (days - 1) * more.mean(axis=0)
        return season + of_week

    def _shrunk(self, moved: F32, group: NDArray[np.int64], groups: int) -> tuple[F64, F64]:
        """Returns the shrunk means of groups of hours, and their shrinkage weights from 0 to 1. Both (groups, signals).

        The weight is the variance between groups divided by itself plus the variance of a group's mean by chance. If
        every group has a single hour, the variance within groups is unknown, and the weights are 0.
        """
        sums, sizes, blocks, squares = (np.zeros((groups, len(self.mean))) for _ in range(4))
        for place, number in enumerate(group.tolist()):
            size = self._sizes[place]
            sums[number] += size * moved[place]
            squares[number] += size * moved[place] ** 2
            sizes[number] += size
            blocks[number] += size > 0
        means = sums / np.maximum(sizes, _TINY)
        within = np.maximum((squares - sizes * means**2).sum(axis=0), 0.0)
        free = (blocks - (blocks > 0)).sum(axis=0)
        dispersion = np.maximum(within / np.maximum(free, 1) / self.variance, 1.0)
        chance = dispersion * self.variance / np.maximum(sizes, _TINY)
        share = sizes / np.maximum(sizes.sum(axis=0), _TINY)
        between = np.maximum((share * (means**2 - chance)).sum(axis=0), 0.0)
        weights = np.where(free > 0, between / (between + chance), 0.0)
        return weights * means, weights

    def _fill_payments(self) -> None:
        """Fill in hours of the week that the past lacks, with the mean payments of the same hour on other days."""
        days = _HOURS_OF_WEEK // _HOURS_OF_DAY
        means = np.tile(self.payments.reshape(days, _HOURS_OF_DAY, -1).mean(axis=0), (days, 1))
        self.payments = np.where(self.payments > 0, self.payments, means)

    def levels(self) -> F64:
        """Returns how far the levels had moved before each day, and after the last one: (days + 1, signals)."""
        sizes, moved = self._by_day()
        levels = np.zeros((len(sizes) + 1, len(self.mean)))
        for day, (size, deviation) in enumerate(zip(sizes, moved, strict=True)):
            is_moving = self.layout.is_followed & (size > 0)
            levels[day + 1] = levels[day] + _FOLLOWS * np.where(is_moving, deviation - levels[day], 0.0)
        return levels

    def _by_day(self) -> tuple[F64, F64]:
        """Returns payments and mean deviations from the season, (days, signals). The last day may be incomplete."""
        firsts = np.arange(0, len(self._starts), _HOURS_OF_DAY)
        sizes = np.add.reduceat(self._sizes.astype(np.float64), firsts, axis=0)
        sums = np.add.reduceat((self._sizes * self._moved).astype(np.float64), firsts, axis=0)
        return sizes, sums / np.maximum(sizes, _TINY)

    def spread_of_hours(self, levels: F64) -> _Spread:
        spread = _Spread(self.variance)
        for place, (moved, size) in enumerate(zip(self._moved, self._sizes, strict=True)):
            spread.add(moved - levels[place // _HOURS_OF_DAY], size)
        spread.correct(self._hours_used)
        return spread

    def spread_of_days(self, levels: F64) -> _Spread:
        spread = _Spread(self.variance)
        for size, moved, level in zip(*self._by_day(), levels[:-1], strict=True):
            spread.add(moved - level, size)
        # The level of a signal that is not followed is the mean of these very days: one more fitted parameter.
        spread.correct(self._days_used + ~self.layout.is_followed)
        return spread

    def spread_of_fives(self, levels: F64, fives: Iterable[TimedCounts]) -> _Spread:
        spread = _Spread(self.variance)
        for start_ms, counts in fives:
            value, size = self.layout.values(counts)
            season = self.season[start_ms // HOUR_MS % _HOURS_OF_WEEK]
            level = levels[(start_ms - self.first_ms) // _DAY_MS]
            spread.add(np.where(size > 0, value - self.mean - season - level, 0.0), size)
        return spread


class _Spread:
    """Estimates dispersion and wander from the deviations of blocks of one length. All arrays are (signals,).

    With z² = deviation² x payments / variance of one payment, the mean of z² over blocks is a straight line in u =
    payments / variance of one payment: dispersion + wander x u. A least-squares line through (u, z²) gives both.
    """

    def __init__(self, variance: F64) -> None:
        self._variance = variance
        self._count, self._squares, self._sizes, self._sizes_squared, self._products = np.zeros((5, len(variance)))

    def add(self, moved: NDArray[Any], size: NDArray[Any]) -> None:
        """Add a block: its deviations and its payments."""
        units = size / self._variance
        square = moved.astype(np.float64) ** 2 * units
        self._count += size > 0
        self._squares += square
        self._sizes += units
        self._sizes_squared += units**2
        self._products += square * units

    def correct(self, used: F64) -> None:
        """Scale deviations up for `used` parameters that were fitted to these blocks: new blocks will deviate more."""
        factor = self._count / np.maximum(self._count - used, np.maximum(self._count / 2, 1))
        self._squares *= factor
        self._products *= factor

    def estimate(self) -> F64:
        """Returns dispersion, at least 1, and wander, at least 0: (2, signals)."""
        count = np.maximum(self._count, 1)
        square, size = self._squares / count, self._sizes / count
        varied = np.maximum(self._sizes_squared / count - size**2, _TINY)
        slope = np.maximum((self._products / count - square * size) / varied, 0.0)
        dispersion = np.maximum(square - slope * size, 1.0)
        wander = np.maximum((square - dispersion) / np.maximum(size, _TINY), 0.0)
        return np.stack([dispersion, wander])

    def estimate_like(self, hours: F64) -> F64:
        """Returns dispersion and wander of days, (2, signals); `hours` are those of hours.

        Days are too few and too equal in size to fit a line. The dispersion is that of hours. The wander starts from
        _PRIOR_DAYS days in which every hour wanders independently, and moves towards what the days show.
        """
        size = self._sizes / np.maximum(self._count, 1)
        dispersion, wander = hours
        squares = self._squares + _PRIOR_DAYS * (dispersion + wander / _HOURS_OF_DAY * size)
        square = squares / (self._count + _PRIOR_DAYS)
        return np.stack([dispersion, np.maximum((square - dispersion) / np.maximum(size, _TINY), 0.0)])
