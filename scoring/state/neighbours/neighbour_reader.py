"""Looks up the profiles of neighbours in the mirror, by the identities that the profiles of payments remember."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.scoring.state.identity_index import INDEX, record_prefix
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.neighbours import look_up as loop


class NeighbourReader:
    """Fills arrays with the profiles of neighbours. It holds until its mirror is closed. Not thread-safe."""

    def __init__(self, mirror: MirrorReader, entities: Sequence[str], *, rows_max: int, profile_bytes_max: int) -> None:
        """`entities`: by place, of which entity the neighbour is. `rows_max`: the most payments of a look-up."""
        self._mirror = mirror
        items = rows_max * len(entities)
        self.identities: NDArray[np.int64] = np.zeros(items, dtype=np.int64)
        """By payment and place, payments outermost: an identity, or another number where there is no neighbour."""
        self.presence: NDArray[np.uint8] = np.zeros(items, dtype=np.uint8)
        """KNOWN, UNKNOWN if the mirror has no such profile, or ABSENT where there is no neighbour."""
        # The memory of profiles that are never looked up is never touched, and takes no room.
        self.states: NDArray[np.uint8] = np.zeros(items * profile_bytes_max, dtype=np.uint8)
        self.bounds: NDArray[np.int64] = np.zeros(items + 1, dtype=np.int64)
        prefixes = [record_prefix(name) for name in entities]
        key_bytes = max(map(len, prefixes)) + loop.IDENTITY_DIGITS
        self._frame = Frame(
            loop.SLOT,
            {
                "numbers": mirror.numbers,
                "prefixes": np.frombuffer(bytearray(b"".join(prefixes)), dtype=np.uint8),
                "prefix_bounds": np.array([0, *itertools.accumulate(map(len, prefixes))], dtype=np.int64),
                "limits": np.array([len(INDEX), profile_bytes_max], dtype=np.int64),
                "identities": self.identities,
                "keys": np.zeros(items * key_bytes, dtype=np.uint8),
                "key_starts": np.zeros(items, dtype=np.int64),
                "key_sizes": np.zeros(items, dtype=np.int64),
                "found": np.zeros((3, items), dtype=np.int64),
                "states": self.states,
                "bounds": self.bounds,
                "presence": self.presence,
            },
        )

    @property
    def frame_at(self) -> int:
        """The address of the frame of `look_up.look_up_neighbours`."""
        return self._frame.address

    def look_up(self, rows: int) -> None:
        """Fill `presence`, `states` and `bounds` for the first `rows` payments' `identities`, all of one moment.

        Raises MirrorAbsent.
        """
        self._mirror.run(lambda: loop.look_up_neighbours(self._frame.address, rows))
