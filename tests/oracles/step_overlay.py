"""The overlay, one step at a time from Python: the oracle of its part in the compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles.engine import UnreadableProfile
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.overlay import overlay_reader
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay import Overlay

_COUNTS = [tables.FOLDED, tables.LEFT_OUT]


class StepOverlay(Overlay):
    """A worker's overlay that fills vectors and adds payments by their keys and ids."""

    _frame: Frame | None = None

    def look_beside(
        self,
        mirror: MirrorReader,
        folder: str,
        attributes: NDArray[np.int64],
        out: NDArray[np.float32],
        hops: NDArray[np.float64] | None = None,
    ) -> None:
        """Do as `look`, and fill the vectors of this mirror from now on. The arrays are those of `frame_for`."""
        self.look(folder)
        self._entities, self._payment_tags = self._engine.plan.entity_count, PaymentTags(self._engine.plan.key)
        self._frame, self._is_quick = None, False
        if self._table is not None and self._marks is not None:
            self._frame = self.frame_for(mirror, attributes, out, hops)
            self._bound: dict[str, NDArray[Any]] = self._frame._arrays

    @property
    def is_open(self) -> bool:
        """Whether `fill` can be called."""
        return self._frame is not None and self._table is not None

    def fill(self, keys: Sequence[bytes], ids: Sequence[bytes], snapshot: int) -> bool:
        """Fill the vectors of payments whose profiles were looked up in the mirror's transaction `snapshot`.

        `keys`: the store keys of all entities, payment by payment; `ids`: the payments' ids.

        Returns whether they contain the pending payments; if not, they are filled from the mirror alone. `folded` says
        whose profiles got payments. Raises UnreadableProfile.
        """
        frame, count = self._frame, len(ids)
        assert frame is not None
        assert count <= self._rows_max
        self._hash(self._bound, keys, ids)
        status = overlay_reader.fill_hashed(frame.address, count, self.clock_ms(), snapshot)
        self._is_quick = status == kernel.OK
        if status != kernel.OK:
            self._fill(status, slice(0, count), None)
        return self._count(count)

    @property
    def is_sure(self) -> bool:
        """Whether the vectors of the last `fill` or `fill_one` contain the pending payments."""
        return bool(self._numbers[tables.IS_SURE])

    def fill_one(self, row: int, presence: NDArray[np.uint8]) -> None:
        """Fill the vector of one payment of the last `fill`, with this presence. Raises UnreadableProfile."""
        before = self._numbers[_COUNTS].copy()
        try:
            self._fill(None, slice(row, row + 1), presence)
        except UnreadableProfile:
            self._numbers[_COUNTS] = before
            raise

    def begin_one_by_one(self) -> None:
        """Forget what a `fill` has counted that failed."""
        self._numbers[_COUNTS] = 0

    def count(self, count: int) -> bool:
        """Count what was filled one by one. Returns whether pending payments were seen."""
        return self._count(count)

    def folded(self, found: bytes) -> bytes:
        """Returns the mirror's presence of the last `fill`, with each entity known that has a pending payment."""
        if self._numbers[tables.FOLDED] == 0:
            return found
        folded = self._folded[: len(found)].tobytes()
        if self._is_quick:
            return folded
        # A profile that cannot be read was filled as if it were unknown; the mirror has it all the same.
        return bytes(map(max, found, folded))

    def add(self, keys: Sequence[bytes], ids: Sequence[bytes], rows: NDArray[np.int64], now_ms: int) -> None:
        """Make payments pending that are answered now. `now_ms`: the time of day that their own times are near.

        `keys` and `ids` as in `fill`; `rows`: the payments' attributes, shape (payments, row width).
        """
        if self._table is None:
            return
        entities, size, life_ms = self._engine.plan.entity_count, self._rows_max, self._settings.lifetime_ms
        arrays = {
            "hashes": np.zeros(size * entities, dtype=np.int64),
            "tags": np.zeros(size, dtype=np.int64),
        }
        self._payment_tags = PaymentTags(self._engine.plan.key)
        for first in range(0, len(ids), size):
            last = min(first + size, len(ids))
            self._hash(arrays, keys[first * entities : last * entities], ids[first:last])
            part = np.ascontiguousarray(rows[first:last])
            tables.add_all(
                self._table, self._shape, part, arrays["hashes"], arrays["tags"], self._numbers,
                self.clock_ms(), now_ms - life_ms, now_ms + life_ms,
            )  # fmt: skip
            self._count_added()

    def _count_added(self) -> None:
        numbers, metrics = self._numbers.tolist(), self.metrics
        metrics.added.add(numbers[tables.ADDED])
        if numbers[tables.FULL]:
            metrics.full.add(numbers[tables.FULL])
        if numbers[tables.UNTIMELY]:
            metrics.untimely.add(numbers[tables.UNTIMELY])

    def note_unused(self, count: int) -> None:
        """Count payments that were scored without the overlay, since there is none that can be used."""
        self.metrics.unsure.add(count)
        self.metrics.is_used.set(0)

    def close(self) -> None:
        """See Overlay."""
        super().close()
        self._frame = None

    def _hash(self, arrays: dict[str, NDArray[Any]], keys: Sequence[bytes], ids: Sequence[bytes]) -> None:
        arrays["hashes"][: len(keys)] = list(self._payment_tags.hashes_of_keys(keys))
        arrays["tags"][: len(ids)] = list(self._payment_tags.of_all(ids))

    def _fill(self, status: int | None, rows: slice, presence: NDArray[np.uint8] | None) -> None:
        """Fill some rows in the slow way. `status`: of the quick way, if it was tried."""
        bound, entities = self._bound, self._entities
        items = slice(rows.start * entities, rows.stop * entities)
        if presence is None:
            presence = bound["presence"][items]
        states, bounds = bound["states"], bound["bounds"][items.start : items.stop + 1]

        def filled(states: NDArray[np.uint8], bounds: NDArray[np.int64]) -> int:
            return int(
                overlay_reader.fill_with_pending(
                    bound["plan"], bound["attributes"][rows], presence, states, bounds, bound["words"],
                    bound["values"], bound["out"][rows], bound["table"], bound["marks"], self._shape,
                    bound["hashes"][items], bound["tags"][rows], bound["chain"], bound["row"],
                    self._folded[items], self._numbers, bound["hops"][rows],
                )
            )  # fmt: skip

        if status is None:
            status = filled(states, bounds)
        if status // kernel.STATUS_UNIT == kernel.WRONG_DIGEST:
            status = filled(*self._engine.all_migrated(presence, states, bounds))
        if status != kernel.OK:
            raise self._engine.unreadable(status)

    def _count(self, count: int) -> bool:
        numbers, metrics = self._numbers.tolist(), self.metrics
        if not numbers[tables.IS_SURE]:
            self.note_unused(count)
            return False
        metrics.is_used.set(1)
        if numbers[tables.FOLDED]:
            metrics.folded.add(numbers[tables.FOLDED])
            if numbers[tables.LEFT_OUT]:
                metrics.left_out.add(numbers[tables.LEFT_OUT])
        return True
