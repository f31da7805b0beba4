"""How far what is expected of features and traffic has moved with those who pay, since a reference was made."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.baseline import followed
from paywarden.models.drift.binning import DIGEST_SIZE
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signals import Block
from paywarden.schemas.errors import InvalidEvent

# Of one reference: its digest and the number of its signals.
_ENTRY = struct.Struct(f"<{DIGEST_SIZE}sI")
_LENGTH = struct.Struct("<I")


class FollowedLevels:
    """Of each reference float32 (signals,), moved a little by every day. Not thread-safe."""

    def __init__(self, references: Iterable[Reference]) -> None:
        self._moved = {one.digest: np.zeros(len(one.layout.signals), dtype=np.float32) for one in references}

    def of(self, reference: Reference) -> NDArray[np.float32]:
        """As of now."""
        return self._moved[reference.digest]

    def follow(self, reference: Reference, day: Block) -> None:
        """Take in a day that was held against what `of` gave."""
        self._moved[reference.digest] = followed(reference.baseline, reference.layout, self.of(reference), day)

    def to_bytes(self) -> bytes:
        """All of them."""
        parts = [_ENTRY.pack(digest, len(moved)) + moved.tobytes() for digest, moved in sorted(self._moved.items())]
        content = b"".join(parts)
        return _LENGTH.pack(len(content)) + content

    def restore(self, state: bytes) -> bytes:
        """Become what `to_bytes` was taken of; returns what is behind it. Of nothing, and of other references, new.

        Raises InvalidEvent for damaged bytes, and has then changed nothing.
        """
        moved = {digest: np.zeros_like(one) for digest, one in self._moved.items()}
        if not state:
            self._moved = moved
            return b""
        try:
            end = _LENGTH.size + _LENGTH.unpack_from(state)[0]
            place = _LENGTH.size
            while place < end:
                digest, count = _ENTRY.unpack_from(state, place)
                place += _ENTRY.size
                values = np.frombuffer(state, np.float32, count, place)
                place += values.nbytes
                if len(moved.get(digest, ())) == count:
                    moved[digest] = values.copy()
        except (struct.error, ValueError) as error:
            raise InvalidEvent("the levels of drift detection are damaged") from error
        if place != end or end > len(state):
            raise InvalidEvent("the levels of drift detection are damaged: they are cut off")
        self._moved = moved
        return state[end:]
