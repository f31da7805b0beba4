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
instruction; overlay_reader.py reads the table; streams/companion/overlay_marks.py is the companion's side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_at
from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricsRegistry
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import (
    MARKS_FILE,
    mapped,
    marks_head,
    monotonic_ms,
    open_table,
    shape_of,
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
            unsure=counter("unsure", "Payments scored without the overlay, flag overlay_absent."),
            is_used=registry.gauge("paywarden_overlay_used", "Whether the last chunk saw pending payments.", scale=1),
        )


class Overlay:
    """One worker's access to the overlay, for its compiled call. Not thread-safe.

    It never raises for a table or marks that are missing, damaged or of another catalogue: then no payment is pending,
    and the answers say so.
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
        """`rows_max`: the most payments of one call. Make it after `prepare`, in the worker."""
        plan = engine.plan
        self._settings, self._engine, self._rows_max, self.clock_ms = settings, engine, rows_max, clock_ms
        self.metrics = metrics or OverlayMetrics.declare(MetricsRegistry())
        self._shape = shape_of(settings, plan)
        self._folded = np.zeros(rows_max * plan.entity_count, dtype=np.uint8)
        self._numbers = np.zeros(tables.NUMBER_COUNT, dtype=np.int64)
        self._numbers[tables.LIFE_MS], self._numbers[tables.EVENTS_MAX] = settings.lifetime_ms, settings.events_max
        self._table = open_table(settings, plan)
        self._marks: NDArray[np.int64] | None = None
        self._marks_file: tuple[int, int] | None = None
        self.files = object()
        """Stands for the marks: another object once `look` has opened other ones."""
        self.hash_seed = PaymentTags(plan.key).seed
        """The seed of the hashes of keys and ids."""

    def look(self, folder: str) -> None:
        """Open the marks in this mirror's folder, if they are not open or were replaced. Call it every half second."""
        path, before = Path(folder) / MARKS_FILE, self._marks
        try:
            file = file_at(path)
            if self._marks is None or file is None or file != self._marks_file:
                self._marks = mapped(path, *marks_head(self._shape))
            self._marks_file = file
        except (OSError, Misconfigured):
            self._marks = self._marks_file = None
        if self._marks is not before:
            self.files = object()

    @property
    def has_table(self) -> bool:
        """Whether answered payments can become pending, and `frame_for` be called."""
        return self._table is not None

    @property
    def has_host_clock(self) -> bool:
        """Whether its clock is the host's own, which compiled code can read itself."""
        return self.clock_ms is monotonic_ms

    def frame_for(
        self,
        mirror: MirrorReader | None,
        attributes: NDArray[np.int64],
        out: NDArray[np.float32],
        hops: NDArray[np.float64] | None = None,
    ) -> Frame:
        """Returns a frame of `hash_texts`, `fill_hashed` and `add_bound`.

        `attributes` and `out` are the arrays that each call reads and writes: (rows_max, row width), (rows_max,
        features). So are `hops`, the values of neighbours: (rows_max, hop slots). Without `hops` no feature asks
        neighbours. It holds until `files` is another object. Without marks no profile gets a payment, and IS_SURE is 0.
        Without a mirror only `hash_texts` and `add_bound` may be called.
        """
        assert self._table is not None
        plan, items, none = self._engine.plan, len(self._folded), np.zeros(1, dtype=np.uint8)
        words, values = self._engine.scratch
        return Frame(
            tables.SLOT,
            {
                "plan": plan.words,
                "attributes": attributes,
                "presence": none if mirror is None else mirror.presence,
                "states": none if mirror is None else mirror.states,
                "bounds": np.zeros(1, dtype=np.int64) if mirror is None else mirror.bounds,
                "words": words,
                "values": values,
                "out": out,
                "table": self._table,
                "marks": _NO_MARKS if self._marks is None else self._marks,
                "shape": self._shape,
                "hashes": np.zeros(items, dtype=np.int64),
                "tags": np.zeros(self._rows_max, dtype=np.int64),
                # Scratch of a walk, and of one row.
                "chain": np.zeros((self._settings.events_max, 2), dtype=np.int64),
                "row": np.zeros(tables.row_size(plan.entity_count, plan.row_width), dtype=np.int64),
                "folded": self._folded,
                "numbers": self._numbers,
                "hops": self._engine.new_hops(self._rows_max) if hops is None else hops,
            },
        )

    @property
    def presence(self) -> NDArray[np.uint8]:
        """For each entity of the payments that a frame has filled: as in the mirror, or KNOWN if it got payments."""
        return self._folded

    def close(self) -> None:
        """Close the table. Its payments stay."""
        self._table = self._marks = None
        self.files = object()
