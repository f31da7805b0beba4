"""What is usual: of each signal what is to be expected at an hour of the week, and how much a block varies around it.

    expected = level + season(hour of the week)
    variance = dispersion x variance of one payment x (1 / payments of the block + 1 / payments of the past) + wander

The season is learnt from whole hours of a past: first the hours of the day, then what hours of the week add to them,
each only as far as it stands out of chance (an empirical Bayes shrinkage). `dispersion` says how much more blocks
vary than independent payments would, as those of one card are not; `wander`, what no number of payments averages
out. Both are estimated for each length from the past's own blocks, by moments; and no shorter block is
taken to vary less than a longer one, since what adds up in an hour is no chance of each of its minutes. Blocks
that lay further off than the null allows (models/drift/detectors.py) widen the signal, and its kin in other segments.

Cards grow older and merchants more: what is expected of features and traffic follows them slowly (`followed`), in
the past as later. Scores are held against the past as it was.
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
"""When a block of time begins, and its counts."""

_FIVE_MS, _, _DAY_MS = LENGTHS_MS
_HOURS_OF_DAY, _HOURS_OF_WEEK = 24, 168
# What a day adds to a level, of what it lay off; and no more than so many standard deviations are believed of it.
_FOLLOWS, _BELIEVED = 1 / 14, 2.0
# Of days, how many an estimate has to outweigh to differ from that of hours.
_PRIOR_DAYS = 10.0
# So many standard deviations of a day's wander are a range in which nothing has changed.
_RANGE = 4.0
_KIN_SHARE = 0.75
# How large a change is, is measured against no smaller variance and no smaller share than these.
_VARIANCE_MIN, _SHARE_MIN = 1e-3, 1e-3
# Weighs nothing, and divides.
_TINY = 1e-9


@dataclass(frozen=True)
class Baseline:
    """Of a layout's signals, all float32.

    `level`, `variance`: (signals,), the variance that of one payment. `season`: (168, signals), hours since the epoch.
    `dispersion`, `wander`: (lengths, signals), as in LENGTHS_MS. `payments`: (168, segments), those of the past.
    """

    level: F32
    variance: F32
    season: F32
    dispersion: F32
    wander: F32
    payments: F32

    @cached_property
    def range(self) -> F64:
        """How far from what is expected nothing is said of a signal, (signals,)."""
        return np.asarray(_RANGE * np.sqrt(self.wander[-1]), dtype=np.float64)

    def block(
        self, layout: Layout, counts: Counts, start_ms: int, length_ms: int, followed: NDArray[Any] | None = None
    ) -> Block:
        """The signals of these counts, beside what is usual then. `followed`: how far levels have moved since."""
        value, count = layout.values(counts)
        expected, past = self.expected(layout, start_ms, length_ms)
        if followed is not None:
            expected = expected + followed
        # Of a range, the end that is nearest.
        expected = expected + np.clip(value - expected, -self.range, self.range)
        # What is rare by what is expected may not be so by what is seen: as much is said of either.
        of_one = np.maximum(self.variance, (self.variance + layout.spread(counts)) / 2)
        place = LENGTHS_MS.index(length_ms)
        sampling = 1 / np.maximum(count, 1) + 1 / np.maximum(past, 1)
        variance = self.dispersion[place] * of_one * sampling + self.wander[place]
        effect = _effect(layout, value - expected, expected, variance, self.variance)
        return Block(start_ms, length_ms, layout.signals, value, expected, np.sqrt(variance), count, effect)

    def expected(self, layout: Layout, start_ms: int, length_ms: int) -> tuple[F64, F64]:
        """What is to be expected of a block, and how many payments of the past say so. Both (signals,)."""
        season, past = _season_of(layout, self.season, self.payments, start_ms, length_ms)
        return self.level + season, past


def followed(baseline: Baseline, layout: Layout, before: F32, day: Block) -> F32:
    """How far levels have moved after a day, when they had moved so far before it."""
    expected = baseline.expected(layout, day.start_ms, day.length_ms)[0] + before
    most = _BELIEVED * day.sd
    known = layout.is_followed & (day.count > 0)
    return before + np.where(known, _FOLLOWS * np.clip(day.value - expected, -most, most), 0.0).astype(np.float32)


def _season_of(
    layout: Layout, season: NDArray[Any], payments: NDArray[Any], start_ms: int, length_ms: int
) -> tuple[F64, F64]:
    """Of a block; of more than an hour by the payments that its hours had in the past."""
    first = start_ms // HOUR_MS % _HOURS_OF_WEEK
    hours = slice(first, first + max(1, length_ms // HOUR_MS))
    past = payments[hours, layout.behind].astype(np.float64)
    weights = past + _TINY
    return (weights * season[hours]).sum(axis=0) / weights.sum(axis=0), past.sum(axis=0)


def _effect(layout: Layout, moved: F64, expected: F64, variance: F64, of_one: F32) -> F64:
    """How large a move is, less what chance has in it: see Block."""
    surely = np.maximum(moved**2 - variance, 0.0)
    distance = surely / np.maximum(of_one, _VARIANCE_MIN)
    relative = np.sqrt(surely) / np.maximum(expected, _SHARE_MIN)
    return np.where(layout.is_histogram, distance, relative)


def empty_baseline(layout: Layout) -> Baseline:
    """Before there is a past: expected is NaN, so that nothing is said of any signal."""
    count, none = len(layout.signals), np.zeros((len(LENGTHS_MS), len(layout.signals)))
    weeks = [np.zeros((_HOURS_OF_WEEK, columns)) for columns in (count, len(layout.segments))]
    return _usual(np.full(count, np.nan), np.ones(count), weeks[0], none, none, weeks[1])


def learn_baseline(
    layout: Layout, total: Counts, hours: Iterable[TimedCounts], fives: Iterable[TimedCounts] = ()
) -> Baseline:
    """What a past was like, that is summed up in `total`.

    `hours`: every hour of it, in order and without gaps, from a midnight on (UTC). `fives`: some of its blocks of five
    minutes, iterated more than once; without any, these are taken to vary as hours do.
    """
    past = _Past(layout, total, hours)
    levels = past.levels()
    of_hours = past.spread_of_hours(levels).estimate()
    of_days = past.spread_of_days(levels).estimate_like(of_hours)
    of_fives = past.spread_of_fives(levels, fives).estimate()
    of_days[1] = np.maximum(of_days[1], _of_signal_group(layout, of_days[1]))
    longest = np.maximum(of_hours, of_days)
    estimates = np.maximum(of_fives, longest), longest, of_days
    dispersion, wander = np.stack([one[0] for one in estimates]), np.stack([one[1] for one in estimates])
    found = _usual(past.mean, past.variance, past.season, dispersion, wander, past.payments)
    widened = _widening(layout, found, fives, levels, past.first_ms)
    last = levels[-1]
    return _usual(past.mean + last, past.variance, past.season, dispersion * widened, wander * widened, past.payments)


def _usual(*arrays: NDArray[Any]) -> Baseline:
    return Baseline(*(array.astype(np.float32) for array in arrays))


def _of_signal_group(layout: Layout, wander: F64) -> F64:
    """What three quarters of the same signals in other segments are below: one alone may have been lucky."""
    found = np.zeros(layout.signal_group_count)
    order = np.argsort(layout.signal_group, kind="stable")
    signal_group, firsts = np.unique(layout.signal_group[order], return_index=True)
    for number, part in zip(signal_group, np.split(wander[order], firsts[1:]), strict=True):
        found[number] = np.quantile(part, _KIN_SHARE)
    return found[layout.signal_group]


def _widening(layout: Layout, baseline: Baseline, fives: Iterable[TimedCounts], levels: F64, first_ms: int) -> F64:
    """By how much the variance of each signal has to be larger, so that its furthest block is as far as the null's is.

    Bursts of one merchant or device come to each segment rarely, and to some segment all the time: a signal is as wide
    as its kin, the same in other segments, has to be.
    """
    # Imported here, as in models/drift/detectors.py.
    from scipy.special import stdtrit

    furthest, blocks = np.zeros(len(layout.signals)), np.zeros(len(layout.signals))
    for start_ms, counts in fives:
        block = baseline.block(layout, counts, start_ms, _FIVE_MS, levels[(start_ms - first_ms) // _DAY_MS])
        is_there = block.count >= PAYMENTS_MIN
        z = np.abs(block.value - block.expected) / block.sd
        furthest = np.fmax(furthest, np.where(is_there, z, 0.0))
        blocks += is_there
    widest = np.zeros(layout.signal_group_count)
    np.maximum.at(widest, layout.signal_group, furthest)
    tried = np.bincount(layout.signal_group, weights=blocks, minlength=layout.signal_group_count)
    allowed = stdtrit(NULL_FREEDOM, 1 - 1 / (2 * np.maximum(tried, 2)))
    return np.asarray(np.maximum(widest / allowed, 1.0)[layout.signal_group] ** 2)


class _Past:
    """Hours of the past: values and payments of each signal, (hours, signals), and what follows from them."""

    def __init__(self, layout: Layout, total: Counts, hours: Iterable[TimedCounts]) -> None:
        self.layout = layout
        self.mean, self.variance = layout.moments(total)
        self.payments = np.zeros((_HOURS_OF_WEEK, len(layout.segments)))
        starts, moved, sizes = [], [], []
        for start_ms, counts in hours:
            value, size = layout.values(counts)
            starts.append(start_ms)
            # Half the memory, and no less is known of them.
            moved.append(np.where(size > 0, value - self.mean, 0.0).astype(np.float32))
            sizes.append(size.astype(np.float32))
            self.payments[start_ms // HOUR_MS % _HOURS_OF_WEEK] += counts.payments[: len(layout.segments)]
        self.first_ms = starts[0]
        self._starts, self._moved, self._sizes = starts, np.array(moved), np.array(sizes)
        # How many means of the past's own what is expected of its hours, and of its days, is made of.
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
        """Means of groups of hours as far as they are no chance, and the share of them that is taken, 0 to 1.

        Groups of an hour each have nothing to show how much they vary by chance, and are not taken.
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
        """An hour of the week that the past had not counts as that hour of its other days."""
        days = _HOURS_OF_WEEK // _HOURS_OF_DAY
        baseline = np.tile(self.payments.reshape(days, _HOURS_OF_DAY, -1).mean(axis=0), (days, 1))
        self.payments = np.where(self.payments > 0, self.payments, baseline)

    def levels(self) -> F64:
        """How far levels had moved at the beginning of each day, and after the last: (days + 1, signals)."""
        sizes, moved = self._by_day()
        levels = np.zeros((len(sizes) + 1, len(self.mean)))
        for day, (size, off) in enumerate(zip(sizes, moved, strict=True)):
            is_known = self.layout.is_followed & (size > 0)
            levels[day + 1] = levels[day] + _FOLLOWS * np.where(is_known, off - levels[day], 0.0)
        return levels

    def _by_day(self) -> tuple[F64, F64]:
        """Payments, and what they lay off the season: (days, signals). The last day may be a part of one."""
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
        # What is not followed is held against its own mean.
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
    """How far blocks of one length lay off what was expected, in units of independent payments: all (signals,).

    With z² = moved² x payments / variance, its mean over blocks is dispersion + wander x payments / variance: a line.
    """

    def __init__(self, variance: F64) -> None:
        self._variance = variance
        self._count, self._squares, self._sizes, self._sizes_squared, self._products = np.zeros((5, len(variance)))

    def add(self, moved: NDArray[Any], size: NDArray[Any]) -> None:
        """Note a block."""
        units = size / self._variance
        square = moved.astype(np.float64) ** 2 * units
        self._count += size > 0
        self._squares += square
        self._sizes += units
        self._sizes_squared += units**2
        self._products += square * units

    def correct(self, used: F64) -> None:
        """The blocks lay closer than others will, since `used` means of what was expected were theirs."""
        factor = self._count / np.maximum(self._count - used, np.maximum(self._count / 2, 1))
        self._squares *= factor
        self._products *= factor

    def estimate(self) -> F64:
        """Dispersion, at least 1, and wander: (2, signals)."""
        count = np.maximum(self._count, 1)
        square, size = self._squares / count, self._sizes / count
        varied = np.maximum(self._sizes_squared / count - size**2, _TINY)
        slope = np.maximum((self._products / count - square * size) / varied, 0.0)
        dispersion = np.maximum(square - slope * size, 1.0)
        wander = np.maximum((square - dispersion) / np.maximum(size, _TINY), 0.0)
        return np.stack([dispersion, wander])

    def estimate_like(self, hours: F64) -> F64:
        """The same of so few blocks of nearly one size that they tell no line: the dispersion is that of hours."""
        size = self._sizes / np.maximum(self._count, 1)
        dispersion, wander = hours
        # As if each hour of it wandered for itself.
        told = self._squares + _PRIOR_DAYS * (dispersion + wander / _HOURS_OF_DAY * size)
        square = told / (self._count + _PRIOR_DAYS)
        return np.stack([dispersion, np.maximum((square - dispersion) / np.maximum(size, _TINY), 0.0)])
