"""First strikes: the first fraud of a card, merchant or device, which no earlier fraud gives away.

Most frauds of a history are of cards that had a fraud before. Features of known frauds find those, and so does a list
of blocked cards. A model that finds only them has found little: the loss is in the first fraud of each card.

- A *first strike* of an entity is its earliest fraud in the whole history, known or not. Frauds of one entity in the
  same millisecond are all first strikes, so that no measure depends on the order of such rows.
- An entity whose first fraud came before the measured days has no first strike among them.

Example: card A has frauds on days 1, 2 and 9, card B on day 9. Day 9 is measured: card B's fraud is its only first
strike. If card A's is stopped and card B's is not, recall is 1 of 2, and recall of first strikes 0 of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.bursts import BurstMeasures, measure_bursts
from paywarden.models.metrics.intervals import Interval, share_interval
from paywarden.models.metrics.tally import REVIEWED

if TYPE_CHECKING:
    from paywarden.features.history.history import History

ENTITIES = ("card", "merchant", "device")


@dataclass(frozen=True)
class Strikes:
    """The frauds among some measured payments as columns of shape (frauds,).

    `place`: the row of each among the measured payments, ascending. `entity`: codes by the name of the entity, -1 for
    none. `is_first`: which are first strikes, by the same names.
    """

    place: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    entity: Mapping[str, NDArray[np.int32]]
    is_first: Mapping[str, NDArray[np.bool_]]

    def of(self, chosen: NDArray[np.bool_]) -> Strikes:
        """Returns the frauds among the chosen payments. `chosen`: (payments,)."""
        kept = chosen[self.place]
        place = (np.cumsum(chosen) - 1)[self.place[kept]]
        return Strikes(
            place,
            self.time_ms[kept],
            {name: codes[kept] for name, codes in self.entity.items()},
            {name: flags[kept] for name, flags in self.is_first.items()},
        )


def strikes_of(
    history: History, frauds: NDArray[np.int64], row: NDArray[np.int64], fraud: NDArray[np.bool_]
) -> Strikes:
    """Returns the frauds among measured payments.

    `frauds`: the rows of all frauds of the history, ascending. `row`: the rows of the measured payments, ascending.
    `fraud`: which of these are frauds, (payments,).
    """
    place = np.flatnonzero(fraud)
    mine, time_ms = np.searchsorted(frauds, row[place]), history.event_time_ms[frauds]
    codes = {name: getattr(history, name).codes[frauds] for name in ENTITIES}
    return Strikes(
        place=place,
        time_ms=time_ms[mine],
        entity={name: column[mine] for name, column in codes.items()},
        is_first={name: first_of_entities(column, time_ms)[mine] for name, column in codes.items()},
    )


def first_of_entities(entity: NDArray[np.int32], time_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which frauds are the earliest of their entity; a fraud without an entity is none. Both: (frauds,)."""
    _, number = np.unique(entity, return_inverse=True)
    first_ms = np.full(int(number.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_ms, number, time_ms)
    return np.asarray((entity >= 0) & (time_ms == first_ms[number]), dtype=np.bool_)


@dataclass(frozen=True)
class FirstStrikes:
    """The first strikes of one kind of entity. Recall is NaN without one."""

    frauds: int
    """Measured frauds that are the first of their entity in the history."""
    stopped: int
    """Those that were reviewed or declined."""
    recall: float
    """Stopped first strikes divided by all first strikes."""
    recall_interval: Interval
    """The 95 % interval of `recall`."""
    approved_minor: int
    """Sum of the amounts of first strikes that were approved."""


def first_strikes(
    strikes: Strikes, action: NDArray[np.int8], amount_minor: NDArray[np.int64]
) -> dict[str, FirstStrikes]:
    """Returns the first strikes by the name of the entity. `action`, `amount_minor`: of all measured payments."""
    stopped, amount = action[strikes.place] >= REVIEWED, amount_minor[strikes.place]
    found = {}
    for name, is_first in strikes.is_first.items():
        count, caught = int(is_first.sum()), int(stopped[is_first].sum())
        recall = caught / count if count else float("nan")
        # One entity has one first strike: they are independent of each other.
        interval = share_interval(recall, count)
        found[name] = FirstStrikes(count, caught, recall, interval, int(amount[is_first & ~stopped].sum()))
    return found


def bursts_of(strikes: Strikes, action: NDArray[np.int8], amount_minor: NDArray[np.int64]) -> dict[str, BurstMeasures]:
    """Returns the bursts of fraud by the name of the entity. `action`, `amount_minor`: of all measured payments."""
    of_frauds = action[strikes.place], amount_minor[strikes.place]
    return {name: measure_bursts(entity, strikes.time_ms, *of_frauds) for name, entity in strikes.entity.items()}
