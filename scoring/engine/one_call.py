"""Scores a usual chunk with one compiled call, from the requests' bytes to the outbox records.

    requests ─► decide_chunk ─► append to the outbox ─► settle_chunk ─► responses
                    └─ WANTS_POLICY ─► policy, reasons ─► write_chunk ─┘

A payment alone takes as long in Python between the compiled calls of decoder and scorer as in these calls themselves.
Here one call does all of it (scoring/engine/chunk_call.py). Answers, records and metrics are the same, to the bit.

1. `OneCall.score` does a chunk whose scoring is usual: at most ROWS_MAX payments, a native model that works, a policy
   without conditions, no candidate, no exploration, a mirror of all cards whose functions compiled code can call. With
   an overlay the call adds pending payments to the profiles, and makes the chunk's payments pending once their records
   are appended.
2. Only the policy's part of payments that are not approved is Python, between the two halves of the call.
3. If a request is unusual, nothing was done, and the answer is None: decoder and scorer begin anew.
4. If a step after the claims is unusual, `PaymentScorer.score_claimed` goes on with these claims.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import batches as engine_loop
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.models.policy.policy import ACTIONS, APPROVE, MIRROR_STALE, OVERLAY_ABSENT
from paywarden.schemas.errors import TemporaryFailure
from paywarden.scoring.engine import chunk_call as loop
from paywarden.scoring.engine.batching.batcher import Refusal, refusal_of
from paywarden.scoring.engine.model_chain import NativeModel
from paywarden.scoring.engine.records import RecordWriter
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.fast_requests import ROWS_MAX as READ_MAX
from paywarden.scoring.requests.fast_requests import FastRequests
from paywarden.scoring.requests.format import TakenRequest
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import LookUpKeys
from paywarden.scoring.state.outbox import OutboxUnsynced
from paywarden.scoring.state.overlay import Overlay

assert READ_MAX >= ROWS_MAX
_LAPS = (
    *(("parse", loop.PARSED), ("claim", loop.CLAIMED), ("look_up", loop.LOOKED_UP)),
    *(("vector", loop.FILLED), ("model", loop.SCORED), ("decide", loop.DECIDED)),
)
# The longest name of a caller that the call hashes with a payment's id. Chunks with a longer one are scored in steps.
CALLER_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of bodies, with the places of each batch. The other lists are empty, or have one item for each body."""

    bodies: Sequence[bytes]
    batches: Sequence[range] = ()
    arrivals: Sequence[float] = ()
    callers: Sequence[bytes] = ()
    traces: Sequence[bytes] = ()

    def __len__(self) -> int:
        return len(self.bodies)

    def put(self, requests: FastRequests, writer: RecordWriter) -> int:
        """Put the bodies where `requests` reads them, and arrivals, callers and traces where `writer` does.

        Returns the size of all bodies, or -1 if they cannot be read there.
        """
        if self.callers and max(map(len, self.callers)) > CALLER_BYTES_MAX:
            return -1
        size = requests.put(self.bodies)
        if size >= 0:
            writer.put_callers(len(self.bodies), self.arrivals, self.callers, self.traces)
        return size


class OneCall:
    """Scores chunks for one scorer and its decoder. Not thread-safe. See the module."""

    def __init__(self, scorer: PaymentScorer, intake: RequestDecoder) -> None:
        self._scorer, self._intake, self._fast = scorer, intake, intake.fast
        parts = scorer.parts
        self._outbox, self._metrics, self._answered = parts.outbox, parts.metrics, parts.answered
        self._engine, self._stages, self._vectors, self._hops = parts.engine, parts.stages, parts.vectors, parts.hops
        self._unknown_flags, self._names = parts.unknown_flags, parts.engine.plan.entity_names
        entities = parts.engine.plan.entity_count
        self._item_count = ROWS_MAX * entities
        self._id_bytes = ROWS_MAX * intake.limits.id_bytes_max
        score = self._metrics.score
        arrays: dict[str, NDArray[Any]] = {
            "frames": np.zeros(loop.FRAME_COUNT, dtype=np.int64),
            "numbers": np.zeros(loop.NUMBER_COUNT, dtype=np.int64),
            "calibration": np.zeros(loop.CALIBRATION_SIZE),
            "kept_tails": np.full(4 * 3**entities, loop.NO_TAIL, dtype=np.int64),
            "margins": np.zeros(ROWS_MAX),
            "key": np.zeros(CALLER_BYTES_MAX + 1 + intake.limits.id_bytes_max, dtype=np.uint8),
            "time": np.zeros(2, dtype=np.int64),
            "laps": np.zeros(loop.LAP_COUNT, dtype=np.int64),
            "counters": np.zeros(3 * entities + loop.COUNTER_COUNT, dtype=np.int64),
            "score_bounds": np.array(score.bounds),
            "score_unit": np.array([score.per_unit]),
        }
        self._arrays = arrays
        self._frame = Frame(loop.SLOT, arrays)
        self._frame_at = self._frame.address
        self._frames, self._numbers, self._laps = arrays["frames"].data, arrays["numbers"].data, arrays["laps"].data
        self._calibration, self._kept_tails = arrays["calibration"], arrays["kept_tails"]
        numbers = self._numbers
        numbers[loop.ENTITIES], numbers[loop.HAS_CLAIMS] = entities, self._answered is not None
        numbers[loop.CLOCK] = _clock()
        if self._answered is not None:
            numbers[loop.HASH] = _hash() or 0
            numbers[loop.OWNER], numbers[loop.WINDOW_S] = self._answered.owner, self._answered.window_s
        self._frames[loop.READ] = self._fast.frame_at
        self._can_hash = self._answered is None or _hash() is not None
        self._overlay, self._has_host_clock = parts.overlay, False
        if self._overlay is not None:
            numbers[loop.SEEDED_HASH], numbers[loop.SEED] = seeded_hash() or 0, self._overlay.hash_seed
            self._can_hash &= seeded_hash() is not None
            numbers[loop.HAS_HOST_CLOCK] = self._has_host_clock = self._overlay.has_host_clock
        # The objects that the frames point at. Only a token of the model is kept: the model must go when it is swapped
        # out.
        self._mirror: MirrorReader | None = None
        self._mirror_frames: tuple[Frame, Frame, Frame | None] | None = None
        self._overlay_frame: Frame | None = None
        self._overlay_files: object = None
        self._token: object = None
        self._is_usual = False
        self._counted: memoryview | None = None

    def score(
        self,
        requests: Sequence[TakenRequest],
        now_ms: int,
        batches: Sequence[range] = (),
        arrivals: Sequence[float] = (),
        callers: Sequence[bytes] = (),
        traces: Sequence[bytes] = (),
    ) -> Sequence[bytes | Refusal] | None:
        """See batcher.ChunkScorer."""
        if (bodies := _bodies_of(requests)) is None:
            return None
        chunk = Chunk(bodies, batches, arrivals, callers, traces)
        scorer, count, mirror = self._scorer, len(bodies), self._readied()
        if mirror is None or not 0 < count <= ROWS_MAX:
            return None
        serving = scorer.serving
        writer, numbers, stages, answered = serving.writer, self._numbers, self._stages, self._answered
        writer.begin()
        if (size := chunk.put(self._fast, writer)) < 0:
            return None
        self._fast.set_time(now_ms)
        writer.make_room(count, size + self._id_bytes)
        if self._metrics.score.slots is not self._counted:
            self._take_counters(serving)
        numbers[loop.NOW_MS], numbers[loop.DECISION] = now_ms, writer.decision
        numbers[loop.OUTBOX_POSITION], numbers[loop.IS_TIMED] = self._outbox.position, stages.is_timed
        numbers[loop.HAS_ARRIVALS], numbers[loop.NOT_APPROVED] = writer.has_arrivals, 0
        if answered is not None:
            answered.make_room(count)
            self._frames[loop.CLAIM], numbers[loop.CLAIM_S] = answered.frame_at, answered.now_s()
        overlay = self._overlay
        if overlay is not None:
            if overlay.files is not self._overlay_files:
                self._take_overlay(overlay, mirror)
            if not self._has_host_clock:
                numbers[loop.OVERLAY_NOW_MS] = overlay.clock_ms()
        status = loop.decide_chunk(self._frame_at, count)
        if status == loop.UNUSUAL:
            return None
        if status not in (loop.DONE, loop.WANTS_POLICY):
            return self._go_on(chunk, now_ms)
        try:
            others: list[str] = []
            if status == loop.WANTS_POLICY:
                others = self._ask_policy(serving, mirror, count)
                writer.make_room(count, size + self._id_bytes)
                numbers[loop.NOT_APPROVED] = len(others)
                loop.write_chunk(self._frame_at, count)
            frames = writer.frames(count, numbers[loop.SIZE])
            if stages.is_timed:
                self._note_laps(count)
            try:
                self._outbox.append_frames(frames)
            except OutboxUnsynced:
                # The companion ships these records, so a payment that is asked for again must get its decision of now.
                if answered is not None:
                    answered.settle(answered.slots_of(count))
                raise
        except TemporaryFailure as error:
            self._release(count)
            return [refusal_of(error)] * count
        except BaseException:
            self._release(count)
            raise
        loop.settle_chunk(self._frame_at, count)
        for action in others:
            self._metrics.decisions[action].add(1)
        if stages.is_timed:
            stages.lap("append", count)
        return writer.responses(count)

    def _readied(self) -> MirrorReader | None:
        """Make the frames for model and mirror. Returns the mirror, or None if no chunk can take one call."""
        mirror, serving = self._scorer.usual_mirror, self._scorer.serving
        if mirror is None or not self._can_hash:
            return None
        if mirror is not self._mirror:
            self._take_mirror(mirror)
        if serving.token is not self._token:
            self._take_serving(serving)
        is_ready = self._is_usual and serving.models.is_well and self._mirror_frames is not None
        return mirror if is_ready else None

    def _go_on(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Let the scorer go on with payments that are read and, if there is a decision cache, claimed."""
        payments = self._intake.payments_read(chunk.bodies)
        payments.arrivals, payments.traces = chunk.arrivals, chunk.traces
        if chunk.callers:
            payments.callers = chunk.callers
        return self._scorer.score_claimed(payments, now_ms, chunk.batches)

    def _release(self, count: int) -> None:
        if self._answered is not None:
            self._answered.release(self._answered.slots_of(count))

    def _ask_policy(self, serving: Served, mirror: MirrorReader, count: int) -> list[str]:
        """Give each payment without a kept tail one. Returns the actions other than "approve"."""
        entities, others = len(self._names), list[str]()
        presence = (mirror if self._overlay is None else self._overlay).presence[: count * entities].tobytes()
        is_stale = self._numbers[loop.AGE_MS] > self._numbers[loop.STALE_AFTER_MS]
        is_unsure = self._overlay is not None and not self._overlay.is_sure
        tails, scores = serving.writer.arrays["tail_numbers"].data, serving.writer.arrays["scores"].data
        for row in range(count):
            if tails[row] == loop.NO_TAIL:
                flags = self._unknown_flags[presence[row * entities : (row + 1) * entities]]
                if is_unsure:
                    flags = (*flags, OVERLAY_ABSENT)
                if is_stale:
                    flags = (*flags, MIRROR_STALE)
                tails[row] = self._scorer.tail_of(serving, row, scores[row], flags, others)
        return others

    def _note_laps(self, count: int) -> None:
        for stage, place in _LAPS:
            if stage != "claim" or self._answered is not None:
                self._stages.lap(stage, count, self._laps[place] * 1e-9)

    # Frames, by the objects that they point at

    def _take_mirror(self, mirror: MirrorReader) -> None:
        """Make the frames of look-up and vectors for a mirror."""
        self._mirror, self._mirror_frames, self._overlay_files = mirror, None, None
        keys = LookUpKeys(self._item_count, self._fast.arrays["texts"])
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
                "out": self._vectors,
                "hops": self._hops.values,
            },
        )
        look_up, hops = mirror.frame_for(keys), self._hops.frame_for(self._fast.arrays["rows"])
        self._mirror_frames = look_up, vectors, hops
        self._frames[loop.LOOK_UP], self._frames[loop.FILL] = look_up.address, vectors.address
        self._frames[loop.HOPS] = 0 if hops is None else hops.address

    def _take_overlay(self, overlay: Overlay, mirror: MirrorReader) -> None:
        """Make the frame of an overlay's files, which the call then uses in place of that of vectors."""
        self._overlay_frame = overlay.frame_for(mirror, self._fast.arrays["rows"], self._vectors, self._hops.values)
        self._overlay_files = overlay.files
        self._frames[loop.OVERLAY] = self._overlay_frame.address

    def _take_serving(self, serving: Served) -> None:
        """Take the model, the thresholds and the kept tails of the serving release."""
        self._token, self._is_usual = serving.token, False
        model = serving.models.native
        if model is None or serving.policy.has_conditions:
            return
        numbers, writer = self._numbers, serving.writer
        numbers[loop.MARGINS], numbers[loop.STALE_AFTER_MS] = model.address, serving.stale_after_ms
        numbers[loop.VECTOR_BYTES] = writer.vector_bytes
        self._calibration[:] = model.slope, model.intercept, serving.approved_below
        ends = itertools.product(((), (OVERLAY_ABSENT,)), ((), (MIRROR_STALE,)))
        usual = [(*flags, *absent, *stale) for absent, stale in ends for flags in self._unknown_flags.values()]
        self._kept_tails[:] = [serving.approved.get(flags, loop.NO_TAIL) for flags in usual]
        writer.make_text_room(len(self._fast.arrays["data"]), self._id_bytes)
        self._frames[loop.RECORD] = writer.frame_at
        self._is_usual = self._take_counters(serving, model)

    def _take_counters(self, serving: Served, model: NativeModel | None = None) -> bool:
        """Take the addresses of the metrics' slots. Returns False if a metric is missing."""
        metrics, overlay = self._metrics, self._overlay
        model = model or serving.models.native
        flags = [f"unknown_{name}" for name in self._names]
        if model is None or any(flag not in metrics.flags for flag in (*flags, MIRROR_STALE, OVERLAY_ABSENT)):
            return False
        addresses: list[int] = []
        for name, flag in zip(self._names, flags, strict=True):
            hit, miss = metrics.mirror_lookups[name, "hit"], metrics.mirror_lookups[name, "miss"]
            addresses += [hit.address, miss.address, metrics.flags[flag].address]
        addresses += [metrics.flags[MIRROR_STALE].address, metrics.decisions[ACTIONS[APPROVE]].address]
        addresses += [model.scored.address, metrics.mirror_age_seconds.address, *metrics.score.addresses]
        if overlay is not None:
            counted = overlay.metrics
            addresses += [metrics.flags[OVERLAY_ABSENT].address, counted.unsure.address, counted.is_used.address]
            addresses += [counted.folded.address, counted.left_out.address, counted.broken.address]
            addresses += [counted.added.address, counted.full.address, counted.untimely.address]
        addresses += [0] * (len(self._arrays["counters"]) - len(addresses))
        self._arrays["counters"][:] = addresses
        self._counted = metrics.score.slots
        return True


def warm_up() -> None:
    """Load or compile the call, so that no payment waits for it."""
    functions: dict[str, list[Any]] = {
        "int64(int64, int64)": [loop.decide_chunk],
        "none(int64, int64)": [loop.write_chunk, loop.settle_chunk],
    }
    for types, compiled in functions.items():
        for function in compiled:
            function.compile(types)


def _bodies_of(requests: Sequence[TakenRequest]) -> list[bytes] | None:
    """Returns the requests' bytes; None if one of them was parsed, and is unusual therefore."""
    return [*requests] if all(type(request) is bytes for request in requests) else None  # type: ignore[list-item]


@cache
def _hash() -> int | None:
    """Returns the address of xxHash's own XXH3_64bits, which `tag_of` calls too; None if it is not exported."""
    try:
        return ctypes.cast(ctypes.CDLL(import_module("xxhash._xxhash").__file__).XXH3_64bits, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError):
        return None


@cache
def seeded_hash() -> int | None:
    """Returns the address of xxHash's own XXH3_64bits_withSeed, which PaymentTags calls too; None if not exported."""
    try:
        library = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
        return ctypes.cast(library.XXH3_64bits_withSeed, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError):
        return None


@cache
def _clock() -> int:
    """Returns the address of the C library's clock_gettime, which `time.perf_counter` calls too."""
    return ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
