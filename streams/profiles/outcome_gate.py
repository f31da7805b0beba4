"""Outcomes that wait for their payments.

After a pause both topics have a backlog, and an outcome could be read before the payment it is about, which may be
another worker's to read. So it waits until the workers have committed every partition of payments up to where it
ended when the outcome was read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from paywarden.streams.kafka.reading import Record


class WaitingOutcomes:
    """In order of reading. Of one partition, an outcome never overtakes another: offsets are committed in order."""

    def __init__(self) -> None:
        # Those that were read together wait for the same ends; None: not known yet.
        self._waiting: list[tuple[Mapping[int, int] | None, list[Record]]] = []
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(len(records) for _, records in self._waiting)

    def add(self, outcomes: Iterable[Record]) -> None:
        """Take what was read; `wait_for` says what they wait for."""
        records = list(outcomes)
        if records:
            self._waiting.append((None, records))
        for record in records:
            self._ends.pop(record.partition, None)

    def reached_ends(self, ends: Mapping[int, int]) -> None:
        """Partitions of outcomes were read to their ends, offsets that may lie behind records that no one sees."""
        self._ends |= ends

    def take_ends(self) -> dict[int, int]:
        """The ends of those partitions of which no outcome waits."""
        held = {record.partition for _, records in self._waiting for record in records}
        taken = {partition: end for partition, end in self._ends.items() if partition not in held}
        self._ends = {partition: end for partition, end in self._ends.items() if partition in held}
        return taken

    def asks_for_ends(self) -> bool:
        """Whether some do not know yet what they wait for."""
        return any(ends is None for ends, _ in self._waiting)

    def wait_for(self, payments_ends: Mapping[int, int]) -> None:
        """Those that do not know yet wait for these: of each partition of payments, the offset after its last."""
        self._waiting = [(payments_ends if ends is None else ends, records) for ends, records in self._waiting]

    def take_due(self, committed: Mapping[int, int]) -> list[Record]:
        """Those whose payments are all worked in. `committed`: of each partition of payments, the next offset."""
        due: list[Record] = []
        # Ends only grow: what waits behind one that is not due is not due either.
        while self._waiting and _is_reached(self._waiting[0][0], committed):
            due += self._waiting.pop(0)[1]
        return due

    def drop(self, partitions: Collection[int]) -> None:
        """Forget those of partitions that have gone to another worker: they were not committed."""
        kept = [(ends, [r for r in records if r.partition not in partitions]) for ends, records in self._waiting]
        self._waiting = [(ends, records) for ends, records in kept if records]
        self._ends = {partition: end for partition, end in self._ends.items() if partition not in partitions}

    def clear(self) -> None:
        """Forget all: they will be read again."""
        self._waiting.clear()
        self._ends.clear()


def _is_reached(ends: Mapping[int, int] | None, committed: Mapping[int, int]) -> bool:
    return ends is not None and all(committed.get(partition, 0) >= end for partition, end in ends.items())
