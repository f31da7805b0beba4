"""The companion's side of the overlay: says which payments the mirror's profiles contain (overlay.py).

    changelog record of card:C1     state, and "adds payment 4127… of payments/3 at offset 88"
    1. note     marks: 4127… stands at payments/3, 88
    2. begin    marks: the mirror's transaction 5091 is noted
    3. commit   mirror: card:C1 = state, which contains payments/3 up to 88

A worker that sees transaction 5091 sees the mark, too. A worker that sees 5090 adds the payment to the profile still.

On a new host nothing is pending. A profile whose newest payment is old contains no payment that will ever be pending
(`begin_anew`, `note_filled`). If the store is as quiet as that of a new project, the first payments therefore already
see each other.

A fault: the payments of a change are not named, so that profiles contain payments without a mark. The marks
then say `unsure` for two lifetimes, and no worker trusts them until the payments of that time are over: one may be
answered a lifetime after it came to Kafka, and is then pending for a lifetime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.layout import I64
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, store_atomic
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.features.profiles.newest_payment import newest_payment_ms
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import MARK_DTYPE, PaymentTags
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_at
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import (
    MARKS_FILE,
    mapped,
    marks_head,
    monotonic_ms,
    open_table,
    shape_of,
)
from paywarden.scoring.state.shared_table import prepare_file


@compiled()
def _raise_to(marks: I64, position: int, value: int) -> None:
    """Raise one word of the head. The companion is its only writer."""
    if load_atomic(marks, position) < value:
        store_atomic(marks, position, value)


class OverlayMarks:
    """The marks beside a mirror. The process that writes the mirror has it, and no other. Not thread-safe."""

    def __init__(
        self, settings: OverlaySettings, plan: Plan, mirror: str, clock_ms: Callable[[], int] = monotonic_ms
    ) -> None:
        """Open or create the marks of a mirror's folder. Raises Misconfigured."""
        self._settings, self._plan, self._clock_ms = settings, plan, clock_ms
        self._shape = shape_of(settings, plan)
        self._tags = PaymentTags(plan.key)
        self._path = path = Path(mirror) / MARKS_FILE
        head, self._size = marks_head(self._shape)
        prepare_file(path, head, self._size, f"overlay: cannot use {path}")
        try:
            found, self._file = mapped(path, head, self._size), file_at(path)
        except OSError as error:
            raise Misconfigured(f"overlay: cannot use {path}: {error.strerror}") from error
        assert found is not None
        self._marks: NDArray[np.int64] = found
        self.lost = 0
        """How many marks had to give way to others before their time."""
        self.unsure = 0
        """How often changes were not named."""

    def open_mirror(self, newest_transaction: int) -> None:
        """Say that this process writes the mirror from now on, whose newest transaction is this one."""
        if self._marks[tables.MARK_SNAPSHOT_AT] != newest_transaction:
            # Somebody has written the mirror without marks, or it is another mirror.
            self.note_unnamed()
        # A new mirror counts its transactions from 1.
        self._marks[tables.MARK_SNAPSHOT_AT] = newest_transaction
        self._forget_other_clock()

    def begin(self, transaction: int) -> None:
        """Note a transaction of the mirror. Call it after `note` and before the commit."""
        self._forget_other_clock()
        _raise_to(self._marks, tables.MARK_SNAPSHOT_AT, transaction)

    def note(self, named: Iterable[bytes]) -> None:
        """Mark payments, in the form of MARK_DTYPE. Call it before the transaction of their profiles."""
        payments = np.frombuffer(b"".join(named), dtype=MARK_DTYPE)
        if not len(payments):
            return
        lost = tables.mark_all(
            self._marks,
            self._shape,
            payments["tag"].astype(np.int64),
            payments["source"].astype(np.int64),
            payments["offset"].astype(np.int64),
            self._clock_ms(),
            self._settings.marks_keep_ms,
        )
        if lost:
            self.lost += lost
            self.note_unnamed()

    def note_unnamed(self) -> None:
        """Say that profiles may contain payments that are not marked: nobody trusts the marks for two lifetimes."""
        self.unsure += 1
        _raise_to(self._marks, tables.MARK_UNSURE_UNTIL_AT, self._clock_ms() + self._settings.doubt_ms)

    def _forget_other_clock(self) -> None:
        """End a doubt that would last longer than any: it is of a clock before the host's start, or damaged.

        A mirror on a disk outlives its host. Its clock starts again, and may take months to reach that moment.
        """
        latest_ms = self._clock_ms() + self._settings.doubt_ms
        if self._marks[tables.MARK_UNSURE_UNTIL_AT] > latest_ms:
            self._marks[tables.MARK_UNSURE_UNTIL_AT] = latest_ms

    def begin_anew(self, *, mirror_is_empty: bool) -> None:
        """Say that the mirror is emptied now, to be filled again.

        Readers may have noted that its profiles contain payments which the new ones lack: the *cut* of a row. But no
        reader can have noted that of an empty mirror, or has a row to note it in.
        """
        if not mirror_is_empty or self._has_had_rows():
            self.note_unnamed()

    def note_filled(self, states: Iterable[bytes], now_ms: int) -> None:
        """Note profiles that fill the mirror after `begin_anew`, whose payments nobody has named.

        Call it before their transaction. `now_ms`: the time of day. A payment becomes pending within a lifetime of its
        own time, so an older one will never be. `begin_anew` has handled the payments that were pending by then. The
        second lifetime is for clocks that differ, and for records that tell a payment's time a little differently.
        """
        for state in states:
            newest_ms = newest_payment_ms(state)
            if newest_ms is None or newest_ms > now_ms - self._settings.doubt_ms:
                self.note_unnamed()
                return

    def _has_had_rows(self) -> bool:
        """Whether the table has ever had a row, as far as this process can see."""
        table = open_table(self._settings, self._plan)
        if table is None:
            return Path(self._settings.path).exists()
        return bool(table[tables.NEXT_AT] != 0)

    @property
    def is_in_place(self) -> bool:
        """Whether the path still names the file that this process writes, at its full size. Workers use no other."""
        try:
            return file_at(self._path) == self._file and self._path.stat().st_size == self._size
        except OSError:
            return False

    @property
    def is_unsure(self) -> bool:
        """Whether nobody trusts the marks now."""
        return bool(self._marks[tables.MARK_UNSURE_UNTIL_AT] >= self._clock_ms())

    def erase(self, keys: Iterable[bytes]) -> int:
        """Erase the pending payments of entities, by store key. Returns how many there were.

        It looks at every row of the table, which takes milliseconds.
        """
        table = open_table(self._settings, self._plan)
        if table is None:
            return 0
        numbers = {name: number for number, name in enumerate(self._plan.entity_names)}
        erased = 0
        for key in keys:
            entity = numbers.get(key.split(b":", 1)[0].decode())
            if entity is not None:
                erased += int(tables.erase(table, self._shape, entity, self._tags.hash_of_key(key)))
        return erased

    def close(self) -> None:
        """Close the marks. They stay."""
        del self._marks
