"""Looks up profiles in a mirror by keys that Python has, as the compiled call does by those that it has read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state import mirror_look_up as loop
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorSettings


class KeyLookUp:
    """Fills the arrays of a reader."""

    def __init__(self, reader: MirrorReader) -> None:
        self.reader = reader
        self._texts = np.zeros(len(reader.presence) * (KEY_BYTES_MAX + 200), dtype=np.uint8)
        self._frame = reader.frame_for(self._texts)
        self.found = b""
        """For each key of the last look-up: ABSENT, UNKNOWN or KNOWN, as in `presence`."""
        self.snapshot = 0
        """The mirror's transaction that the last look-up has seen."""

    def look_up(self, keys: Sequence[bytes]) -> int:
        """Fill `states`, `bounds` and `presence` with the profiles of these keys, all of one moment.

        An empty key stands for an entity that the payment does not have. Returns the moment up to which the mirror is
        complete, in epoch ms; 0 while it is being filled. Raises MirrorAbsent.
        """
        count, reader, arrays = len(keys), self.reader, self._frame._arrays
        texts = b"".join(keys)
        self._texts[: len(texts)] = np.frombuffer(texts, dtype=np.uint8)
        arrays["key_sizes"][:count] = list(map(len, keys))
        arrays["key_starts"][:count] = np.cumsum([0, *map(len, keys)])[:count]
        reader.run(lambda: loop.look_up_bound(self._frame.address, count))
        self.found = reader.presence[:count].tobytes()
        self.snapshot = int(reader.numbers[form.SNAPSHOT])
        return int(reader.numbers[form.COMPLETE_TO_MS])


class KeyReader(MirrorReader):
    """A reader that looks up keys that Python has."""

    def __init__(self, settings: MirrorSettings, *, item_max: int, profile_bytes_max: int) -> None:
        super().__init__(settings, item_max=item_max, profile_bytes_max=profile_bytes_max)
        self._by_key = KeyLookUp(self)

    @property
    def found(self) -> bytes:
        """See KeyLookUp."""
        return self._by_key.found

    def look_up(self, keys: Sequence[bytes]) -> int:
        """See KeyLookUp."""
        return self._by_key.look_up(keys)
