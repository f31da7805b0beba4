"""A model that scores every payment alike, and an outbox in a list, for tests in which only the vectors matter."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.model_chain import NativeModel, Scored
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry


class EvenChain:
    """A model chain that gives every payment the score 0.5, in Python."""

    versions = ("even", "")
    native: NativeModel | None = None
    is_well = True

    def bind(self, _vectors: np.ndarray) -> Any:
        return lambda count: Scored([0.5] * count, [0] * count, [()] * count)

    def reasons(self, _vector: np.ndarray, _model: int, _count_max: int) -> list[str]:
        return []


def _all_even(_vectors: int, count: int, out: int, _more: int) -> None:
    ctypes.memset(out, 0, 8 * count)


_MARGINS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)(_all_even)


class NativeEvenChain(EvenChain):
    """The same, also by an address, as the one compiled call wants it."""

    def __init__(self) -> None:
        address = ctypes.cast(_MARGINS, ctypes.c_void_p).value or 0
        self.native = NativeModel(address, 1.0, 0.0, MetricsRegistry().counter("scored_total", "Scored."))


class KeptEntries:
    """An outbox in a list."""

    position = 0

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []

    def trouble(self) -> str:
        return ""

    def append_frames(self, frames: bytes) -> int:
        while frames:
            size = int.from_bytes(frames[:4], "little")
            self.entries.append(OutboxEntry.FromString(frames[8 : 8 + size]))
            frames = frames[8 + size :]
        return len(self.entries)
