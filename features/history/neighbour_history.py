"""Features two hops away in a replay: a chunk's events are gone through twice more, without keeping the profiles.

    time      event                      the list of card C1    the fraud share of M7 that payment 2 sees
    10:00     payment 0 of C1 at M7      –
    10:05     outcome of another                                0.5
    10:07     payment 1 of C2 at M7                             0.33
    10:09     payment 2 of C1 at M9      M7                     0.33, just before payment 2

1. List: through the events of cards; each wanted payment gets its card's last merchants.
2. Read: through the events of merchants that stand in any list, with one event more for each of them. It stands just
   before the payment that asks, so all that is known before this payment counts.
3. Combine: the values of each payment's neighbours into its hop slots.

Each list and each value belongs to one payment, so no two threads write the same one. A catalogue without such
features has no such passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.entity_columns import EntityColumn
from paywarden.features.history.event_order import order_by_code, place_of
from paywarden.features.kernel.pending import READS
from paywarden.features.profiles.engine import Events
from paywarden.features.profiles.plan import Plan


@dataclass(frozen=True)
class Known:
    """What changes profiles in a chunk, in one order. All shape (events,).

    `payment` is the number of the payment in the history, `row` that of its attributes. Of two events with one entity
    the one with the lower `place` comes first.
    """

    payment: NDArray[np.int64]
    row: NDArray[np.int64]
    place: NDArray[np.int64]
    kind: NDArray[np.uint8]
    weight: NDArray[np.int64]


class Neighbours:
    """Finds the numbers of neighbours by their identities, and makes the events that read them."""

    def __init__(self, plan: Plan, entities: Sequence[EntityColumn]) -> None:
        """`entities` has the column of each kind of entity."""
        self._plan, self._entities = plan, entities
        self._by_identity = {hop.target: _by_identity(entities[hop.target]) for hop in plan.hops}
        self._listed_at = np.cumsum([0, *(hop.capacity for hop in plan.hops)]).tolist()

    def new_lists(self, payments: int) -> NDArray[np.int64]:
        """Returns lists without neighbours, shape (payments, listed)."""
        return np.zeros((payments, len(self._plan.listed)), dtype=np.int64)

    @property
    def sources(self) -> list[int]:
        """Returns the entities that have lists."""
        return sorted({hop.source for hop in self._plan.hops})

    def new_values(self, number: int, payments: int) -> NDArray[np.float32]:
        """Returns missing values for the neighbours of group `number`, shape (payments * capacity, results)."""
        hop = self._plan.hops[number]
        return np.full((payments * hop.capacity, len(hop.results)), np.nan, dtype=np.float32)

    def reads(
        self,
        number: int,
        lists: NDArray[np.int64],
        wanted: range,
        first: int,
        known: Known,
    ) -> tuple[NDArray[np.integer], Events]:
        """Returns the neighbours of group `number` that stand in any list, and their events in order.

        `lists` are those of the wanted payments; the row of payment `first` is 0. Events of kind READS fill rows of
        `new_values`.
        """
        hop = self._plan.hops[number]
        start = self._listed_at[number]
        asked = lists[:, start : start + hop.capacity].ravel()
        items = np.flatnonzero(asked)
        identities, codes = self._by_identity[hop.target]
        found = np.searchsorted(identities, asked[items])
        assert np.array_equal(identities[found], asked[items]), "a list has an identity that no payment of it has"
        read = codes[found]
        of_all = self._entities[hop.target].codes[known.payment].astype(np.int64)
        is_asked = np.zeros(self._entities[hop.target].count + 1, dtype=np.bool_)
        is_asked[read] = True
        # Code -1, a payment without such an entity, is the last place: nobody asks for it.
        kept = np.flatnonzero(is_asked[of_all])
        payment = items // hop.capacity + wanted.start
        code = np.concatenate((read, of_all[kept]))
        # Reads come first: of equal places the payment that asks comes behind what it reads.
        order = order_by_code(code, np.concatenate((place_of(payment), known.place[kept])))
        code = code[order]
        starts = np.flatnonzero(np.diff(code, prepend=-1))
        unchecked = np.full(len(order), -1, dtype=np.int64)
        ones, nowhere = np.ones(len(items), dtype=np.int64), np.full(len(kept), -1, dtype=np.int64)
        events = Events(
            groups=np.append(starts, len(order)).astype(np.int64),
            kind=np.concatenate((np.full(len(items), READS, dtype=np.uint8), known.kind[kept]))[order],
            payment=np.concatenate((payment - first, known.row[kept]))[order],
            weight=np.concatenate((ones, known.weight[kept]))[order],
            source=unchecked,
            offset=unchecked,
            row=np.concatenate((items, nowhere))[order],
        )
        return code[starts], events


def _by_identity(entities: EntityColumn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the identities of entities in ascending order, and the number of each."""
    identities = entities.identities()
    order = np.argsort(identities, kind="stable")
    return identities[order], order
