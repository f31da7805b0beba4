"""Count the cards of one step: how many there are in each arm, and how many had which event.

Each payment comes with its card's position, its arm and its events as bits, bit m for measure m of the plan. Kept are:

    cards   cards, each at its first payment of the step: their split is tested
    first   of these, the cards whose first payment had the event: ratios between the arms, for the margin
    step    cards with the event at any payment of the step: evidence of harm
    day     cards with the event at any payment of this day of the step: evidence of harm that begins later

`first` measures payments as they come, one a card. `step` and `day` find harm sooner, since any payment of a card can
show it, but they blur ratios: a card with a hundred payments has nearly every event in both arms.

    card A (candidate): approve, approve, decline, decline      cards 1, first 0, step 1, day 1
    card B (champion):  decline                                 cards 1, first 1, step 1, day 1

Cards that were the candidate's in an earlier step are left out (RolloutPlan.comparing_share).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.shares import CANDIDATE, CHAMPION, arm_end
from paywarden.schemas.errors import InvalidEvent

Counts = NDArray[np.int64]

DAY_MS = 86_400_000
MEASURES_MAX = 64


@dataclass(frozen=True)
class StepCounts:
    """The counts of a step at a look, or at many looks. Axis -1 is the arm: champion, candidate.

    `cards`: shape (..., 2). `first`, `step`, `day`: shape (..., measures, 2). `day_number`: shape (...), from 1.
    """

    cards: Counts
    first: Counts
    step: Counts
    day: Counts
    day_number: Counts


class StepTally:
    """Counts the cards of one step. Holds 24 bytes for each card. Not thread-safe.

    A process that starts again counts again, from the decisions since the step began.
    """

    def __init__(self, plan: RolloutPlan, step: int, start_ms: int) -> None:
        """`start_ms`: when the step began; payments that were decided before it do not count."""
        self._measures = len(plan.measures)
        assert self._measures <= MEASURES_MAX, "a payment's events are 64 bits"
        self._start_ms, self._day = start_ms, 1
        # Positions below are of cards that the candidate had before.
        self._known_end = arm_end(plan.steps[step - 1]) if step else 0
        # Sorted positions of the cards, and their events of the step and of the day as bits.
        self._cards = np.zeros(0, dtype=np.uint64)
        self._of_step, self._of_day = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
        self._arms = np.zeros(0, dtype=np.int8)
        self._counts = {name: np.zeros((self._measures, 2), dtype=np.int64) for name in ("first", "step", "day")}
        self.switched = 0
        """Payments of a card whose earlier payments in the step were decided by the other arm. They do not count."""

    def add(
        self,
        positions: NDArray[np.uint64],
        arms: NDArray[np.int8],
        events: NDArray[np.uint64],
        decided_ms: NDArray[np.int64],
    ) -> None:
        """Add the payments of a look, each once; all arrays have shape (payments,).

        `arms`: who decided, 0 or 1. Days end at multiples of 24 hours after the step's start. Payments of an earlier
        day than the newest count for the step alone. Raises InvalidEvent for an arm that is neither.
        """
        if len(arms) and not ((arms == CHAMPION) | (arms == CANDIDATE)).all():
            raise InvalidEvent(f"wanted {CHAMPION} or {CANDIDATE}, got another arm", field="arm")
        chosen = (decided_ms >= self._start_ms) & (positions >= np.uint64(self._known_end))
        days = (decided_ms[chosen] - self._start_ms) // DAY_MS + 1
        rows = np.flatnonzero(chosen)[np.lexsort((decided_ms[chosen], days))]
        days = np.sort(days)
        for day in np.unique(days):
            self._turn_to(int(day))
            of_day = rows[days == day]
            self._add_day(positions[of_day], arms[of_day], events[of_day], is_newest=int(day) == self._day)

    def counts(self, now_ms: int) -> StepCounts:
        """Returns the counts as of a look, without the looks axis."""
        self._turn_to((now_ms - self._start_ms) // DAY_MS + 1)
        cards = np.bincount(self._arms, minlength=2).astype(np.int64)
        first, step, day = (self._counts[name].copy() for name in ("first", "step", "day"))
        return StepCounts(cards, first, step, day, np.array(self._day))

    def _turn_to(self, day: int) -> None:
        """Begin a day: evidence of days starts again."""
        if day > self._day:
            self._day = day
            self._of_day[:] = 0
            self._counts["day"][:] = 0

    def _add_day(
        self, positions: NDArray[np.uint64], arms: NDArray[np.int8], events: NDArray[np.uint64], *, is_newest: bool
    ) -> None:
        """Add payments of one day, in order of time."""
        self._add_new_cards(positions, arms, events)
        place = np.searchsorted(self._cards, positions)
        same = self._arms[place] == arms
        self.switched += int((~same).sum())
        order = np.argsort(place[same], kind="stable")
        places, events = place[same][order], events[same][order]
        cards, starts = np.unique(places, return_index=True)
        if not len(cards):
            return
        had = np.bitwise_or.reduceat(events, starts)
        self._count("step", self._of_step, cards, had)
        if is_newest:
            self._count("day", self._of_day, cards, had)

    def _add_new_cards(self, positions: NDArray[np.uint64], arms: NDArray[np.int8], events: NDArray[np.uint64]) -> None:
        cards, first = np.unique(positions, return_index=True)
        place = np.searchsorted(self._cards, cards)
        known = place < len(self._cards)
        known[known] = self._cards[place[known]] == cards[known]
        new = ~known
        cards, first, place = cards[new], first[new], place[new]
        nothing = np.zeros(len(cards), dtype=np.uint64)
        self._cards = np.insert(self._cards, place, cards)
        self._of_step, self._of_day = (np.insert(bits, place, nothing) for bits in (self._of_step, self._of_day))
        self._arms = np.insert(self._arms, place, arms[first])
        self._add_bits("first", events[first], arms[first])

    def _count(self, name: str, bits: NDArray[np.uint64], cards: NDArray[np.intp], had: NDArray[np.uint64]) -> None:
        """Count the events that the cards have for the first time."""
        self._add_bits(name, had & ~bits[cards], self._arms[cards])
        bits[cards] |= had

    def _add_bits(self, name: str, bits: NDArray[np.uint64], arms: NDArray[np.int8]) -> None:
        some = np.flatnonzero(bits)
        measures = np.arange(self._measures, dtype=np.uint64)
        flags = ((bits[some, None] >> measures) & np.uint64(1)).astype(np.int64)
        for arm in (CHAMPION, CANDIDATE):
            self._counts[name][:, arm] += flags[arms[some] == arm].sum(axis=0)
