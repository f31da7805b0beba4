"""A protocol for any history: days to train, days to wait for labels, days to test, and a number of folds.

    validation folds   ├ train ┤ delay ├ test ┤
                              ├ train ┤ delay ├ test ┤ delay
    test folds                              ├ train ┤ delay ├ test ┤
                                                   ├ train ┤ delay ├ test ┤ last day

A fold's test days come directly after those of the fold before it. There are as many validation folds as test folds.
All labels of the validation folds were known on the morning of the first test day, so the choice was possible then.

Example: 14 days to train, 7 to wait, 7 to test and 2 folds, with 30 June as the last test day. The test folds test 17
to 23 and 24 to 30 June; the validation folds test 27 May to 2 June and 3 to 9 June. Altogether the windows need
14 + 2 x 7 + 2 x 2 x 7 = 56 days.
"""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.models.backtest.backtest import Protocol
from paywarden.models.metrics.evaluation import Days, Split, date_of_day
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class Windows:
    """Lengths in days, and the number of folds."""

    train_days: int
    delay_days: int
    test_days: int
    folds: int = 1

    @property
    def day_count(self) -> int:
        """The number of days from the first training day to the last test day."""
        return self.train_days + 2 * self.delay_days + 2 * self.folds * self.test_days


def windows_protocol(windows: Windows, last_day: int, *, measures_all: bool = True) -> Protocol:
    """Returns the protocol with `last_day` as its last test day. Folds are in order of time.

    Without `measures_all`, payments of cards known to be compromised are not measured, as in the handbook.
    """
    test = _folds(windows, last_day, measures_all)
    return Protocol("windows", _folds(windows, test[0].test.first - windows.delay_days - 1, measures_all), test)


def _folds(windows: Windows, last_day: int, measures_all: bool) -> tuple[Split, ...]:
    splits = []
    for number in reversed(range(windows.folds)):
        last = last_day - number * windows.test_days
        first = last - windows.test_days + 1
        train_last = first - windows.delay_days - 1
        train = Days(train_last - windows.train_days + 1, train_last)
        splits.append(Split(train, Days(first, last), windows.delay_days, measures_all))
    return tuple(splits)


def last_test_day(first: int, last: int, windows: Windows, wanted: int | None = None) -> int:
    """Returns `wanted`, or without it the last day whose labels can be known. `first`, `last`: the days of the data.

    Raises Misconfigured if the data does not cover all windows.
    """
    chosen = last - windows.delay_days if wanted is None else wanted
    needed = chosen - windows.day_count + 1
    if chosen > last or needed < first:
        raise Misconfigured(
            f"the windows are {windows.day_count} days, {date_of_day(needed)} to {date_of_day(chosen)}, the data is "
            f"from {date_of_day(first)} to {date_of_day(last)}: wanted shorter windows, fewer folds or another last day"
        )
    return chosen
