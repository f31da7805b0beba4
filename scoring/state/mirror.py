"""The host's copy of the profiles, in shared memory: the companion writes it, the workers read it.

    changelog ─► companion ─ MirrorWriter ─► a file on a memory file system ─ MirrorReader ─► worker 0, worker 1, …

1. The file is a table of our own form (docs/internals/mirror-form.md). Readers never write to it and hold no lock, so
   a worker that is killed leaves nothing behind.
2. The writer commits profiles and the positions they cover in one transaction. A companion that dies at any moment
   continues exactly where its mirror stands.
3. A reader looks up all keys of a chunk as of one transaction, in one compiled call (scoring/state/mirror_look_up.py).
4. The kernel kills a process that reads behind the end of a mapped file. Writer and readers refuse a mirror that was
   cut short when they open it, and look at its length while they use it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state import mirror_look_up as loop
from paywarden.scoring.state.identity_index import INDEXED, IndexNote
from paywarden.scoring.state.mirror_file import (
    IDENTITY,
    PROFILE_SET,
    MirrorAbsent,
    MirrorSettings,
    MirrorView,
)
from paywarden.scoring.state.shards import HeldShards


class MirrorReader(MirrorView):
    """A worker's side of the mirror: looks up profiles into buffers allocated at start. Not thread-safe."""

    def __init__(self, settings: MirrorSettings, *, item_max: int, profile_bytes_max: int) -> None:
        """`item_max`: the most keys of one look-up. `profile_bytes_max`: the size of the largest profile.

        Raises MirrorAbsent.
        """
        super().__init__(settings)
        self.numbers[form.PROFILE_BYTES_MAX] = profile_bytes_max
        self.states: NDArray[np.uint8] = np.zeros(item_max * profile_bytes_max, dtype=np.uint8)
        self.bounds: NDArray[np.int64] = np.zeros(item_max + 1, dtype=np.int64)
        self.presence: NDArray[np.uint8] = np.zeros(item_max, dtype=np.uint8)

    def frame_for(self, texts: NDArray[np.uint8]) -> Frame:
        """Returns a frame of `mirror_look_up.look_up_bound` for callers that put their keys into `texts`.

        They put where each begins, and its size, into `key_starts` and `key_sizes`. The look-up fills `states`,
        `bounds` and `presence`. The frame holds until `close`.
        """
        item_max = len(self.presence)
        return Frame(
            loop.SLOT,
            {
                "numbers": self.numbers,
                "keys": texts,
                "key_starts": np.zeros(item_max, dtype=np.int64),
                "key_sizes": np.zeros(item_max, dtype=np.int64),
                "found": np.zeros((3, item_max), dtype=np.int64),
                "states": self.states,
                "bounds": self.bounds,
                "presence": self.presence,
            },
        )

    def run(self, look_up: Callable[[], int]) -> None:
        """Run a compiled look-up of this mirror, which returns OK to BUSY. Raises MirrorAbsent."""
        status = look_up()
        if status == form.GREW:
            self.follow_growth()
            status = look_up()
        if status != form.OK:
            raise MirrorAbsent("the mirror cannot be read")

    def is_complete(self) -> bool:
        """Whether the mirror can be read, and is not being filled."""
        try:
            return self.complete_to_ms() is not None
        except MirrorAbsent:
            return False

    def identity_digest(self) -> str:
        """Returns the digest of the key that the profiles are made with; empty if the mirror has none."""
        return self._note_or_nothing(IDENTITY)

    def profile_set(self) -> str:
        """Returns the profile set that the mirror was filled from; empty if the mirror does not say."""
        return self._note_or_nothing(PROFILE_SET)

    def _note_or_nothing(self, key: bytes) -> str:
        try:
            return self.note(key)
        except (MirrorAbsent, UnicodeDecodeError):
            return ""

    def shards(self) -> HeldShards | None:
        """Returns which shards of cards the mirror holds; None if it holds every profile, or cannot be read.

        Where the note about it is damaged, the mirror counts as one that holds no card.
        """
        try:
            return self.held_shards()
        except MirrorAbsent:
            return None
        except ValueError:
            return HeldShards("", frozenset())

    def index_note(self) -> IndexNote | None:
        """Returns the note about the index by identity; None if there is none, or it lacks the newest changes."""
        try:
            value = self.read([INDEXED])[INDEXED]
        except MirrorAbsent:
            return None
        note = IndexNote.of_bytes(value)
        return note if note is not None and note.transaction == self.numbers[form.SNAPSHOT] else None

    def is_replaced(self) -> bool:
        """Whether another mirror is at the path now, or this one was cut short. Then this one must not be read."""
        try:
            status = self._path.stat()
        except OSError:
            return False
        before, self.file_bytes = self.file_bytes, status.st_size
        return (status.st_dev, status.st_ino) != self.file_at or status.st_size < before
