"""Hold outcomes back until their payments are in the store.

After a pause both topics have a backlog. A worker could then read an outcome before another worker reads its payment.

1. Read an outcome. Ask the broker where every partition of payments ends now, for example {0: 120, 1: 98}.
2. Ask the group again and again for its committed offsets of payments.
3. When they have reached all those ends, the payment is in the store or will never come: the outcome is due.
4. If the payment of a due outcome is not in the store, and the store may hide records now, put the outcome back. It is
   due again when the store hides nothing.

What can go wrong:

- The broker does not answer: the outcomes wait, and the worker asks again.
- A partition of outcomes moves to another worker: `drop` forgets its outcomes, and the new owner reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from paywarden.streams.kafka.reading import Record


class WaitingOutcomes:
    """Outcomes in reading order. None overtakes another of its partition, because offsets are committed in order."""

    def __init__(self) -> None:
        # Outcomes that were read together wait for the same ends. None: the ends are not known yet.
        self._waiting: list[tuple[Mapping[int, int] | None, list[Record]]] = []
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(len(records) for _, records in self._waiting)

    def add(self, outcomes: Iterable[Record]) -> None:
        """Hold these outcomes; `wait_for` sets the ends they wait for."""
        records = list(outcomes)
        if records:
            self._waiting.append((None, records))
        for record in records:
            self._ends.pop(record.partition, None)

    def reached_ends(self, ends: Mapping[int, int]) -> None:
        """Note the ends of partitions of outcomes. An end may lie behind transaction markers, which no reader sees."""
        self._ends |= ends

    def take_ends(self) -> dict[int, int]:
        """Returns and removes the ends of partitions without a waiting outcome."""
        held = {record.partition for _, records in self._waiting for record in records}
        taken = {partition: end for partition, end in self._ends.items() if partition not in held}
        self._ends = {partition: end for partition, end in self._ends.items() if partition in held}
        return taken

    def asks_for_ends(self) -> bool:
        """Returns whether some outcomes have no ends to wait for yet."""
        return any(ends is None for ends, _ in self._waiting)

    def wait_for(self, payments_ends: Mapping[int, int]) -> None:
        """Set the offsets that the newest outcomes wait for: in each partition of payments, the end of its records."""
        self._waiting = [(payments_ends if ends is None else ends, records) for ends, records in self._waiting]

    def take_due(self, committed: Mapping[int, int]) -> list[Record]:
        """Returns and removes the outcomes that are due. `committed`: the next offset of each partition of payments."""
        due: list[Record] = []
        # Ends only grow: if an outcome is not due, no later one is.
        while self._waiting and _is_reached(self._waiting[0][0], committed):
            due += self._waiting.pop(0)[1]
        return due

    def put_back(self, outcomes: Iterable[Record]) -> None:
        """Hold due outcomes again, before all others. They are due whenever `take_due` is called."""
        self._waiting.insert(0, ({}, list(outcomes)))

    def drop(self, partitions: Collection[int]) -> None:
        """Forget the outcomes of partitions that moved to another worker. They were not committed."""
        kept = [(ends, [r for r in records if r.partition not in partitions]) for ends, records in self._waiting]
        self._waiting = [(ends, records) for ends, records in kept if records]
        self._ends = {partition: end for partition, end in self._ends.items() if partition not in partitions}

    def clear(self) -> None:
        """Forget all outcomes; the worker will read them again."""
        self._waiting.clear()
        self._ends.clear()


def _is_reached(ends: Mapping[int, int] | None, committed: Mapping[int, int]) -> bool:
    return ends is not None and all(committed.get(partition, 0) >= end for partition, end in ends.items())
