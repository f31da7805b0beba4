"""The arrays and addresses of the compiled call that scores a chunk (scoring/engine/chunk_call.py).

    mirror, overlay, model, tails, metrics ─► frames ─┐
    bodies, callers, arrivals, time ─► inputs ────────┴─► decide, write, settle

Everything that stays the same between two chunks is put there once: a chunk costs only its own bytes and a few numbers.
"""

from __future__ import annotations

import ctypes
import itertools
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import batches as engine_loop
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.policy import ACTIONS, APPROVE, MIRROR_STALE, OVERLAY_ABSENT, UNKNOWN_RATE, unknown_flag
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.engine import chunk_call as loop
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.records import RecordWriter
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.engine.vectors import ROWS_MAX, Vectors
from paywarden.scoring.idempotency.decision_cache import DecisionCache
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.overlay.overlay import Overlay

# Room for a caller's name beside the payment's id; it grows when a longer name comes.
_CALLER_BYTES = 1024


class ChunkFrame:
    """The arrays that one scorer hands to the compiled call. Not thread-safe."""

    def __init__(
        self,
        engine: FeatureEngine,
        intake: RequestDecoder,
        features: Vectors,
        metrics: ScoringMetrics,
        answered: DecisionCache | None,
        overlay: Overlay | None,
    ) -> None:
        self._engine, self._fast, self._features = engine, intake.fast, features
        self._metrics, self._answered, self._overlay = metrics, answered, overlay
        self._names = engine.plan.entity_names
        entities = engine.plan.entity_count
        self._id_bytes = ROWS_MAX * intake.limits.id_bytes_max
        self._id_bytes_max, self._key_bytes = intake.limits.id_bytes_max, _CALLER_BYTES
        score = metrics.score
        self._arrays: dict[str, NDArray[Any]] = {
            "frames": np.zeros(loop.FRAME_COUNT, dtype=np.int64),
            "numbers": np.zeros(loop.NUMBER_COUNT, dtype=np.int64),
            "calibration": np.zeros(loop.CALIBRATION_SIZE),
            "kept_tails": np.full(4 * 3**entities, loop.NO_TAIL, dtype=np.int64),
            "margins": np.zeros(ROWS_MAX),
            "key": np.zeros(_CALLER_BYTES + 1 + intake.limits.id_bytes_max, dtype=np.uint8),
            "time": np.zeros(2, dtype=np.int64),
            "laps": np.zeros(loop.LAP_COUNT, dtype=np.int64),
            "counters": np.zeros(3 * entities + loop.COUNTER_COUNT, dtype=np.int64),
            "score_bounds": np.array(score.bounds),
            "score_unit": np.array([score.per_unit]),
        }
        # A counter that nobody declared counts here.
        self._nowhere = np.zeros(1, dtype=np.int64)
        self._frame = Frame(loop.SLOT, self._arrays)
        self.address = self._frame.address
        """The address of the frame of chunk_call.py."""
        self._frames, self.numbers = self._arrays["frames"].data, self._arrays["numbers"].data
        self.laps = self._arrays["laps"].data
        self._calibration, self._kept_tails = self._arrays["calibration"], self._arrays["kept_tails"]
        numbers = self.numbers
        numbers[loop.ENTITIES], numbers[loop.HAS_CLAIMS] = entities, answered is not None
        numbers[loop.CLOCK], numbers[loop.HASH] = _clock(), hash_address()
        if answered is not None:
            numbers[loop.OWNER], numbers[loop.WINDOW_S] = answered.owner, answered.window_s
        self._frames[loop.READ] = self._fast.frame_at
        self._has_host_clock = False
        if overlay is not None:
            numbers[loop.SEEDED_HASH], numbers[loop.SEED] = seeded_hash_address(), overlay.hash_seed
            numbers[loop.HAS_HOST_CLOCK] = self._has_host_clock = overlay.has_host_clock
        # The objects that the frames point at. Only a token of the model is kept: the model must go when it is swapped
        # out.
        self._mirror: MirrorReader | None = None
        self._mirror_frames: tuple[Frame, Frame, Frame | None] | None = None
        self._overlay_frame: Frame | None = None
        self._overlay_files: object = None
        self._token: object = None
        self._writer: RecordWriter | None = None
        self._margins = 0
        self._counted: memoryview | None = None

    def look(self, serving: Served, writer: RecordWriter) -> None:
        """Point at the mirror, the overlay, the model and the writer of now. It is called before each chunk."""
        mirror, overlay, numbers = self._features.mirror, self._overlay, self.numbers
        if mirror is not self._mirror:
            self._take_mirror(mirror)
        if serving.token is not self._token or writer is not self._writer:
            self._take_serving(serving, writer)
        elif self._metrics.score.slots is not self._counted:
            self._take_counters(serving)
        # A model that has failed is asked in Python, payment by payment, until it works again.
        numbers[loop.MARGINS] = self._margins if serving.models.is_well else 0
        if overlay is not None:
            if overlay.files is not self._overlay_files:
                self._take_overlay(overlay, mirror)
            if not self._has_host_clock:
                numbers[loop.OVERLAY_NOW_MS] = overlay.clock_ms()

    def put(self, chunk: Chunk, now_ms: int) -> bool:
        """Put a chunk where the call reads it. Returns False if the bodies are too long to be read."""
        writer, answered, numbers, count = self._writer, self._answered, self.numbers, len(chunk.bodies)
        assert writer is not None
        writer.begin()
        if chunk.callers and (longest := max(map(len, chunk.callers))) > self._key_bytes:
            self._make_room_for_callers(2 * longest)
        writer.put_callers(count, chunk.arrivals, chunk.callers, chunk.traces)
        numbers[loop.HAS_ARRIVALS] = writer.has_arrivals
        if answered is not None:
            answered.make_room(count)
            self._frames[loop.CLAIM], numbers[loop.CLAIM_S] = answered.frame_at, answered.now_s()
        self._fast.set_time(now_ms)
        size = self._fast.put(chunk.bodies)
        writer.make_room(count, max(size, 0) + self._id_bytes)
        return size >= 0

    def _make_room_for_callers(self, size: int) -> None:
        self._key_bytes = size
        self._arrays["key"] = np.zeros(size + 1 + self._id_bytes_max, dtype=np.uint8)
        self._frame.put("key", self._arrays["key"])

    def make_room(self, count: int) -> None:
        """Make room for the records of the chunk once its tails are known."""
        assert self._writer is not None
        self._writer.make_room(count, self._fast.size + self._id_bytes)

    # Frames, by the objects that they point at

    def _take_mirror(self, mirror: MirrorReader | None) -> None:
        """Make the frames of look-up and vectors for a mirror."""
        self._mirror, self._mirror_frames, self._overlay_files = mirror, None, None
        self._frames[loop.LOOK_UP] = self._frames[loop.FILL] = self._frames[loop.HOPS] = 0
        if mirror is None:
            return
        hops = self._features.hops
        words, values = self._engine.scratch
        vectors = Frame(
            engine_loop.SLOT,
            {
                "plan": self._engine.plan.words,
                "attributes": self._fast.arrays["rows"],
                "presence": mirror.presence,
                "states": mirror.states,
                "bounds": mirror.bounds,
                "words": words,
                "values": values,
                "out": self._features.vectors,
                "hops": hops.values,
            },
        )
        look_up, neighbours = mirror.frame_for(self._fast.arrays["texts"]), hops.frame_for(self._fast.arrays["rows"])
        self._mirror_frames = look_up, vectors, neighbours
        self._frames[loop.LOOK_UP], self._frames[loop.FILL] = look_up.address, vectors.address
        self._frames[loop.HOPS] = 0 if neighbours is None else neighbours.address

    def _take_overlay(self, overlay: Overlay, mirror: MirrorReader | None) -> None:
        """Make the frame of an overlay's files, which replaces the frame of vectors in the call."""
        self._overlay_frame, self._overlay_files, self._frames[loop.OVERLAY] = None, overlay.files, 0
        self.numbers[loop.LOST] = not overlay.has_table
        if overlay.has_table:
            hops = self._features.hops.values
            self._overlay_frame = overlay.frame_for(mirror, self._fast.arrays["rows"], self._features.vectors, hops)
            self._frames[loop.OVERLAY] = self._overlay_frame.address

    def _take_serving(self, serving: Served, writer: RecordWriter) -> None:
        """Take the model, the thresholds and the kept tails of the serving release."""
        self._token, self._writer, numbers, model = serving.token, writer, self.numbers, serving.models.native
        self._margins = 0
        if model is not None:
            self._margins = model.address
            self._calibration[:] = model.slope, model.intercept, serving.approved_below
        self._calibration[loop.BELOW] = serving.approved_below
        numbers[loop.STALE_AFTER_MS], numbers[loop.VECTOR_BYTES] = serving.stale_after_ms, writer.vector_bytes
        ends = itertools.product(((), (OVERLAY_ABSENT,)), ((), (MIRROR_STALE,)))
        known = self._features.unknown_flags.values()
        usual = [(*flags, *absent, *stale) for absent, stale in ends for flags in known]
        self._kept_tails[:] = [serving.approved.get(flags, loop.NO_TAIL) for flags in usual]
        writer.make_text_room(len(self._fast.arrays["data"]), self._id_bytes)
        self._frames[loop.RECORD] = writer.frame_at
        self._take_counters(serving)

    def _take_counters(self, serving: Served) -> None:
        """Take the addresses of the metrics' slots."""
        metrics, overlay, model, nowhere = (
            self._metrics,
            self._overlay,
            serving.models.native,
            self._nowhere.ctypes.data,
        )
        addresses: list[int] = []

        def flag(name: str) -> int:
            return metrics.flags[name].address if name in metrics.flags else nowhere

        for name in self._names:
            hit, miss = metrics.mirror_lookups[name, "hit"], metrics.mirror_lookups[name, "miss"]
            addresses += [hit.address, miss.address, flag(unknown_flag(name))]
        addresses += [flag(MIRROR_STALE), metrics.decisions[ACTIONS[APPROVE]].address]
        addresses += [nowhere if model is None else model.scored.address, metrics.mirror_age_seconds.address]
        addresses += [*metrics.score.addresses, flag(UNKNOWN_RATE)]
        if overlay is not None:
            counted = overlay.metrics
            addresses += [flag(OVERLAY_ABSENT), counted.unsure.address, counted.is_used.address]
            addresses += [counted.folded.address, counted.left_out.address]
            addresses += [counted.added.address, counted.full.address, counted.untimely.address]
        addresses += [0] * (len(self._arrays["counters"]) - len(addresses))
        self._arrays["counters"][:] = addresses
        self._counted = metrics.score.slots


def warm_up() -> None:
    """Load or compile the call, so that no payment waits for it."""
    functions: dict[str, list[Any]] = {
        "int64(int64, int64, int64)": [loop.decide_chunk],
        "none(int64, int64)": [loop.write_chunk, loop.settle_chunk],
    }
    for types, compiled in functions.items():
        for function in compiled:
            function.compile(types)


@cache
def hash_address() -> int:
    """Returns the address of xxHash's own XXH3_64bits, which `tag_of` calls too. Raises Misconfigured without it."""
    return _exported("XXH3_64bits")


@cache
def seeded_hash_address() -> int:
    """Returns the address of xxHash's own XXH3_64bits_withSeed, which PaymentTags calls too. Raises Misconfigured."""
    return _exported("XXH3_64bits_withSeed")


def _exported(name: str) -> int:
    try:
        library = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError):
        raise Misconfigured(f"the package xxhash does not export {name}: install it from PyPI's wheel") from None


@cache
def _clock() -> int:
    """Returns the address of the C library's clock_gettime, which `time.perf_counter` calls too."""
    return ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
