"""The overlay: payments that this host answered in the last seconds, and that the mirror's profiles lack so far.

    10:00:00.000  payment 1 of card C1 is answered ─► worker 0 adds it to the table
    10:00:00.004  payment 2 of card C1 comes       ─► worker 1 reads the profile of C1 (0 payments) and the table (1)
                                                      it adds payment 1 to its copy of the profile: count 1
    10:00:00.400  the stream's new profile of C1 is in the mirror, and payment 1 is in it
    10:00:00.500  payment 3 of card C1 comes       ─► payment 1 is marked as contained: only payment 2 is added

1. The kernel adds a pending payment to a profile exactly as the stream does, and events commute. A profile with its
   pending payments therefore has the bits of the profile that will contain them.
2. Nothing counts twice. With each new profile the stream says which payments it has added, and at which Kafka offsets
   they stand (streams/profiles/changelog.py). The companion notes that in the *marks* before it writes the profile.
   The profile itself says up to which offsets it contains payments.
3. Nobody trusts marks that may be incomplete. Each of the mirror's transactions is noted in the marks before it is
   committed. A reader whose transaction is not noted adds nothing. The same holds for two lifetimes after a change
   whose payments the stream has not named: a rebuilt profile, a replay after a crash, a gap in the changelog. The
   payments then get the flag overlay_absent, and are scored from the mirror.
4. A payment is pending for `lifetime_ms` at most. Then it is gone, whether it has arrived or not. A lifetime has
   sixteen steps, and the payments of one step are gone together.
5. Our answer is not the issuer's: `declined` of a pending payment is not known, also if we declined it.
6. The payments of one chunk, or of one batch call, do not see each other: none was answered before the others came.
7. At most `events_max` payments count in one profile: the newest.

overlay_files.py has the settings and the files; overlay_table.py the layout, and the effect of a kill at any
instruction; overlay_reader.py reads the table; overlay_marks.py is the companion's side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_at
from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricsRegistry
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.overlay import overlay_reader
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import (
    MARKS_FILE,
    mapped,
    marks_head,
    monotonic_ms,
    open_table,
    shape_of,
    table_head,
)

# Marks that are complete for no transaction: no bucket of them is looked at.
_NO_MARKS = np.full(tables.MARK_HEAD_SIZE, -1, dtype=np.int64)


@dataclass(frozen=True)
class OverlayMetrics:
    """Counts payments that the overlay added, and those that it could not add."""

    folded: Counter
    added: Counter
    full: Counter
    untimely: Counter
    left_out: Counter
    broken: Counter
    unsure: Counter
    is_used: Gauge

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> OverlayMetrics:
        def counter(name: str, help_text: str) -> Counter:
            return registry.counter(f"paywarden_overlay_{name}_total", help_text)

        return cls(
            folded=counter("folded", "Pending payments that were added to a profile for a score."),
            added=counter("added", "Answered payments that are pending from now on."),
            full=counter("full", "Answered payments without room in the table: raise [overlay] payments_max."),
            untimely=counter("untimely", "Answered payments not added: their time is a lifetime or more from now."),
            left_out=counter("left_out", "Profiles in a score that lack their older pending payments."),
            broken=counter("broken", "Rows of the table that were damaged."),
            unsure=counter("unsure", "Payments scored without the overlay, flag overlay_absent."),
            is_used=registry.gauge("paywarden_overlay_used", "Whether the last chunk saw pending payments.", scale=1),
        )


class Overlay:
    """One worker's access to the overlay. Not thread-safe. The compiled call of whole chunks has a frame of its own.

    It never raises for a table that is missing, broken or of another catalogue: then no payment is pending, `fill`
    returns False, and the answers say so.
    """

    def __init__(
        self,
        settings: OverlaySettings,
        engine: FeatureEngine,
        *,
        rows_max: int,
        metrics: OverlayMetrics | None = None,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        """`rows_max`: the most payments of one `fill`. Call it after `prepare`, in the worker."""
        plan = engine.plan
        self._settings, self._engine, self._rows_max, self.clock_ms = settings, engine, rows_max, clock_ms
        self.metrics = metrics or OverlayMetrics.declare(MetricsRegistry())
        self._entities, self._keeps_ms = plan.entity_count, settings.lifetime_ms
        self._payment_tags = PaymentTags(plan.key)
        self._shape = shape_of(settings, plan)
        self._hashes = np.zeros(rows_max * plan.entity_count, dtype=np.int64)
        self._tags = np.zeros(rows_max, dtype=np.int64)
        # Scratch of a walk, and of one row.
        self._chain = np.zeros((settings.events_max, 2), dtype=np.int64)
        self._row = np.zeros(tables.row_size(plan.entity_count, plan.row_width), dtype=np.int64)
        self._folded = np.zeros(rows_max * plan.entity_count, dtype=np.uint8)
        self._numbers = np.zeros(tables.NUMBER_COUNT, dtype=np.int64)
        self._numbers[tables.LIFE_MS], self._numbers[tables.EVENTS_MAX] = settings.lifetime_ms, settings.events_max
        self._hash_bytes, self._tag_bytes = self._hashes.data.cast("B"), self._tags.data.cast("B")
        self._number_view = self._numbers.data.cast("B").cast("q")
        self._folded_view = self._folded.data
        # Packers, indexed by how many numbers.
        self._int64s = [Struct(f"={count}q") for count in range(len(self._hashes) + 1)]
        self._is_quick = False
        self._table: NDArray[np.int64] | None = None
        self._marks: NDArray[np.int64] | None = None
        self._marks_file: tuple[int, int] | None = None
        self._table_file: tuple[int, int] | None = None
        self._bound: dict[str, NDArray[Any]] | None = None
        self._frame: Frame | None = None
        self.has_table = False
        """Whether answered payments can become pending, and `frame_for` be called."""
        self.files = object()
        """Stands for the table and the marks: another object once `look` has opened other ones."""

    def look(
        self,
        mirror: MirrorReader,
        folder: str,
        attributes: NDArray[np.int64],
        out: NDArray[np.float32],
        hops: NDArray[np.float64] | None = None,
    ) -> None:
        """Open the table and the marks beside this mirror, if they are not open or were replaced.

        Call it when a mirror is opened or replaced, and every half second.

        `attributes` and `out` are the arrays that each `fill` reads and writes: (rows_max, row width), (rows_max,
        features). So are `hops`, the values of neighbours: (rows_max, hop slots). Without `hops` no feature asks
        neighbours.
        """
        table, marks = self._table, self._marks
        self._open(Path(self._settings.path), Path(folder) / MARKS_FILE)
        if self._table is not table or self._marks is not marks:
            self.files, self.has_table = object(), self._table is not None
        if self._table is None or self._marks is None:
            self._frame = None
            return
        if self._frame is None or self._bound is None or self._bound["states"] is not mirror.states:
            self._bound = self._arrays(mirror, attributes, out, self._table, self._marks) | {"hops": self._hops(hops)}
            self._frame = Frame(tables.SLOT, self._bound)

    def _open(self, path: Path, marks_path: Path) -> None:
        """Open the files that are there now, unless they are open. A new one needs a new frame."""
        file = file_at(path)
        if self._table is None or file != self._table_file:
            # A table of another catalogue may have replaced it: then this process goes on with its own.
            table = open_table(self._settings, self._engine.plan)
            if table is not None:
                self._table, self._table_file, self._frame = table, file, None
                # What this worker knows of old rows is about the table before.
                self._numbers[tables.OVER :] = 0
        try:
            file = file_at(marks_path)
            if file is None or file != self._marks_file or self._marks is None:
                self._marks, self._frame = mapped(marks_path, *marks_head(self._shape)), None
            self._marks_file = file
        except (OSError, Misconfigured):
            self._marks = self._marks_file = self._frame = None

    def _arrays(
        self,
        mirror: MirrorReader,
        attributes: NDArray[np.int64],
        out: NDArray[np.float32],
        table: NDArray[np.int64],
        marks: NDArray[np.int64],
    ) -> dict[str, NDArray[Any]]:
        words, values = self._engine.scratch
        return {
            "plan": self._engine.plan.words,
            "attributes": attributes,
            "presence": mirror.presence,
            "states": mirror.states,
            "bounds": mirror.bounds,
            "words": words,
            "values": values,
            "out": out,
            "table": table,
            "marks": marks,
            "shape": self._shape,
            "hashes": self._hashes,
            "tags": self._tags,
            "chain": self._chain,
            "row": self._row,
            "folded": self._folded,
            "numbers": self._numbers,
        }

    def _hops(self, hops: NDArray[np.float64] | None) -> NDArray[np.float64]:
        return self._engine.new_hops(self._rows_max) if hops is None else hops

    @property
    def is_open(self) -> bool:
        """Whether `fill` can be called."""
        return self._frame is not None

    @property
    def has_host_clock(self) -> bool:
        """Whether its clock is the host's own, which compiled code can read itself."""
        return self.clock_ms is monotonic_ms

    @property
    def hash_seed(self) -> int:
        """The seed of the hashes of keys and ids."""
        return self._payment_tags.seed

    def frame_for(
        self,
        mirror: MirrorReader,
        attributes: NDArray[np.int64],
        out: NDArray[np.float32],
        hops: NDArray[np.float64] | None = None,
    ) -> Frame:
        """Returns a frame of `hash_texts`, `fill_hashed` and `add_bound` for compiled callers.

        `attributes`, `out` and `hops` as in `look`. It has hashes and tags of its own, and holds until `files` is
        another object. Without marks no profile gets a payment, and IS_SURE is 0.
        """
        assert self._table is not None
        marks = _NO_MARKS if self._marks is None else self._marks
        arrays = self._arrays(mirror, attributes, out, self._table, marks)
        arrays |= {"hashes": np.zeros_like(self._hashes), "tags": np.zeros_like(self._tags), "hops": self._hops(hops)}
        return Frame(tables.SLOT, arrays)

    @property
    def presence(self) -> NDArray[np.uint8]:
        """For each entity of the payments that a frame has filled: as in the mirror, or KNOWN if it got payments."""
        return self._folded

    def fill(self, keys: Sequence[bytes], ids: Sequence[bytes], snapshot: int) -> bool:
        """Fill the vectors of payments whose profiles were looked up in the mirror's transaction `snapshot`.

        `keys`: the store keys of all entities, payment by payment; `ids`: the payments' ids.

        Returns whether they contain the pending payments; if not, they are filled from the mirror alone. `folded` says
        whose profiles got payments. Raises UnreadableProfile.
        """
        frame, count = self._frame, len(ids)
        assert frame is not None
        assert count <= self._rows_max
        self._hash(keys, ids)
        status = overlay_reader.fill_hashed(frame.address, count, self.clock_ms(), snapshot)
        self._is_quick = status == kernel.OK
        if status != kernel.OK:
            self._fill(status, slice(0, count), None)
        return self._count(count)

    @property
    def is_sure(self) -> bool:
        """Whether the vectors of the last `fill` or `fill_one` contain the pending payments."""
        return bool(self._number_view[tables.IS_SURE])

    def fill_one(self, row: int, presence: NDArray[np.uint8]) -> None:
        """Fill the vector of one payment of the last `fill`, with this presence. Raises UnreadableProfile."""
        self._fill(None, slice(row, row + 1), presence)

    def folded(self, found: bytes) -> bytes:
        """Returns the mirror's presence of the last `fill`, with each entity known that has a pending payment."""
        if self._number_view[tables.FOLDED] == 0:
            return found
        folded = self._folded_view[: len(found)].tobytes()
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
        earliest_ms, latest_ms = now_ms - self._keeps_ms, now_ms + self._keeps_ms
        entities, size = self._entities, self._rows_max
        for first in range(0, len(ids), size):
            last = min(first + size, len(ids))
            self._hash(keys[first * entities : last * entities], ids[first:last])
            part = np.ascontiguousarray(rows[first:last])
            tables.add_all(
                self._table, self._shape, part, self._hashes, self._tags, self._numbers,
                self.clock_ms(), earliest_ms, latest_ms,
            )  # fmt: skip
            self._count_added()

    def _count_added(self) -> None:
        numbers, metrics = self._number_view, self.metrics
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
        """Close the table. Its payments stay."""
        self._frame = self._bound = self._table = self._marks = None
        self.has_table = False

    def _hash(self, keys: Sequence[bytes], ids: Sequence[bytes]) -> None:
        self._int64s[len(keys)].pack_into(self._hash_bytes, 0, *self._payment_tags.hashes_of_keys(keys))
        self._int64s[len(ids)].pack_into(self._tag_bytes, 0, *self._payment_tags.of_all(ids))

    def _fill(self, status: int | None, rows: slice, presence: NDArray[np.uint8] | None) -> None:
        """Fill some rows in the slow way. `status`: of the quick way, if it was tried."""
        assert self._bound is not None
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
                    self._hashes[items], self._tags[rows], self._chain, self._row,
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
        numbers, metrics = self._number_view, self.metrics
        if not numbers[tables.IS_SURE]:
            self.note_unused(count)
            return False
        metrics.is_used.set(1)
        if numbers[tables.FOLDED]:
            metrics.folded.add(numbers[tables.FOLDED])
            if numbers[tables.LEFT_OUT]:
                metrics.left_out.add(numbers[tables.LEFT_OUT])
        if numbers[tables.BROKEN]:
            metrics.broken.add(numbers[tables.BROKEN])
        return True


def warm_up(engine: FeatureEngine) -> None:
    """Compile everything, so that no payment waits for it."""
    plan = engine.plan
    settings = OverlaySettings(payments_max=64, marks_max=64)
    shape = shape_of(settings, plan)
    words, values = engine.scratch
    head, size = table_head(settings, plan)
    table, marks = np.zeros(size // 8, dtype=np.int64), np.zeros(marks_head(shape)[1] // 8, dtype=np.int64)
    ones = np.ones(plan.entity_count, dtype=np.int64)
    numbers = np.ones(tables.NUMBER_COUNT, dtype=np.int64)
    attributes = np.ones((1, plan.row_width), dtype=np.int64)
    tables.mark_all(marks, shape, ones, ones, ones, 1, 1)
    tables.add_all(table, shape, attributes, ones, ones, numbers, 1, 0, 2)
    tables.erase(table, shape, 0, 1)
    arrays: dict[str, NDArray[Any]] = {
        "plan": plan.words,
        "attributes": attributes,
        "presence": np.full(plan.entity_count, kernel.UNKNOWN, dtype=np.uint8),
        "states": np.zeros(0, dtype=np.uint8),
        "bounds": np.zeros(plan.entity_count + 1, dtype=np.int64),
        "words": words,
        "values": values,
        "out": np.empty((1, plan.feature_count), dtype=np.float32),
        "table": table,
        "marks": marks,
        "shape": shape,
        "hashes": ones,
        "tags": ones,
        "chain": np.zeros((settings.events_max, 2), dtype=np.int64),
        "row": np.zeros(tables.row_size(plan.entity_count, plan.row_width), dtype=np.int64),
        "folded": np.zeros(plan.entity_count, dtype=np.uint8),
        "numbers": numbers,
        "hops": engine.new_hops(1),
    }
    assert len(head) <= tables.HEAD_SIZE
    frame = Frame(tables.SLOT, arrays)
    overlay_reader.fill_hashed(frame.address, 1, 1, 1)
    tables.add_bound(frame.address, 1, 1, 0, 2)
    overlay_reader.fill_with_pending(*arrays.values())
