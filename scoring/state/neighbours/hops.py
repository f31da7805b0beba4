"""Features two hops away for the payments of a chunk: what the profiles of an entity's last neighbours say.

    card C1, in the mirror: its last merchants are M7 and M3 ─► the mirror's profiles of M7 and M3 ─► the larger share

1. The scorer's compiled call takes a chunk at once (scoring/state/neighbours/hop_call.py). If a profile cannot be read
   there, payments are taken one at a time here.
2. Pending payments of an overlay count neither among the neighbours nor in their profiles.
3. A neighbour that the mirror lacks, or whose profile cannot be read, has the features of an empty profile. The latter
   is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.scoring.state.identity_index import index_of
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.neighbours import hop_call, look_up
from paywarden.scoring.state.neighbours.neighbour_reader import NeighbourReader


@dataclass(frozen=True)
class _Opened:
    """What belongs to one mirror."""

    mirror: MirrorReader
    neighbours: NeighbourReader
    identities: NDArray[np.int64]


class Hops:
    """Fills the hops of one chunk at a time. Not thread-safe. Without hops in the catalogue it does nothing."""

    def __init__(self, engine: FeatureEngine, rows: NDArray[np.int64]) -> None:
        """`rows`: the attributes of a chunk's payments, shape (most payments, row width)."""
        plan = engine.plan
        self._engine, self._rows, self._index = engine, rows, index_of(plan)
        self._places, self._entities = len(plan.listed), plan.entity_count
        self._names = [plan.entity_names[target] for target in plan.listed]
        self.values: NDArray[np.float64] = engine.new_hops(len(rows))
        """The results for each payment, shape (most payments, hop slots); NaN means missing."""
        self._opened: _Opened | None = None

    def is_served_by(self, mirror: MirrorReader) -> bool:
        """Whether a mirror has the index, as new as its profiles. It is asked every half second."""
        return self._places == 0 or self._index.is_served_by(mirror.index_note())

    def open(self, mirror: MirrorReader) -> None:
        """Read neighbours from this mirror from now on. It must stay open until the next call, or `close`."""
        if self._places == 0:
            return
        # Most callers have done this long before.
        warm_up()
        neighbours = NeighbourReader(
            mirror,
            self._names,
            rows_max=len(self._rows),
            profile_bytes_max=max(map(self._engine.plan.profile_bytes_max, self._engine.plan.listed)),
        )
        identities = neighbours.identities.reshape(len(self._rows), self._places)
        self._opened = _Opened(mirror, neighbours, identities)

    def close(self) -> None:
        """Forget the mirror. Its arrays stay as they are."""
        self._opened = None

    def frame_for(self, attributes: NDArray[np.int64]) -> Frame | None:
        """Returns a frame of `fill_bound_hops` for the payments in `attributes`, of the shape of the chunk's rows.

        It holds until the mirror is closed. None without hops.
        """
        opened = self._opened
        if opened is None:
            return None
        values, vector, found = self._engine.neighbour_scratch
        arrays: dict[str, NDArray[Any]] = {
            "plan": self._engine.plan.words,
            "attributes": attributes,
            "presence": opened.mirror.presence,
            "states": opened.mirror.states,
            "bounds": opened.mirror.bounds,
            "words": self._engine.scratch[0],
            "look_up": np.array([opened.neighbours.frame_at], dtype=np.int64),
            "values": values,
            "vector": vector,
            "found": found,
            "hops": self.values,
        }
        return Frame(hop_call.SLOT, arrays)

    def fill(self, count: int) -> list[int]:
        """Fill the hops of the first `count` payments, whose own profiles were just looked up, one after the other.

        Returns the payments of which a neighbour's profile cannot be read. A payment's own profile that cannot be read
        names no neighbour. Raises MirrorAbsent.
        """
        opened = self._opened
        if opened is None:
            return []
        entities, mirror = self._entities, opened.mirror
        for row in range(count):
            items = slice(row * entities, (row + 1) * entities)
            own = mirror.presence[items], mirror.states, mirror.bounds[items.start : items.stop + 1]
            try:
                self._engine.list_neighbours(self._rows[row : row + 1], *own, opened.identities[row : row + 1])
            except UnreadableProfile:
                opened.identities[row] = 0
        opened.neighbours.look_up(count)
        return [row for row in range(count) if not self._fill_one(opened.neighbours, row)]

    def forget(self, row: int) -> None:
        """Let a payment have no neighbours."""
        self.values[row] = np.nan

    def _fill_one(self, neighbours: NeighbourReader, row: int) -> bool:
        """Fill the hops of one payment. Returns whether all neighbours that the mirror has can be read."""
        items = slice(row * self._places, (row + 1) * self._places)
        presence, bounds = neighbours.presence[items], neighbours.bounds[items.start : items.stop + 1]

        def fill(known: NDArray[np.uint8]) -> bool:
            hops = self.values[row : row + 1]
            try:
                self._engine.fill_hops(self._rows[row : row + 1], known, neighbours.states, bounds, hops)
            except UnreadableProfile:
                return False
            return True

        if fill(presence):
            return True
        for place in np.flatnonzero(presence == kernel.KNOWN).tolist():
            alone = np.full(self._places, kernel.ABSENT, dtype=np.uint8)
            alone[place] = kernel.KNOWN
            if not fill(alone):
                presence[place] = kernel.UNKNOWN
        fill(presence)
        return False


def warm_up() -> None:
    """Load or compile the look-up, so that no payment waits for it."""
    look_up.look_up_neighbours.compile("int64(int64, int64)")  # type: ignore[attr-defined]
