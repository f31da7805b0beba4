"""Writes the shadow records of usual decisions with two compiled calls, from the bytes of an outbox.

    frames ─► read_entries ─► challenger's model, all vectors at once ─► write_records ─► values, keys
                   └─ unusual ─► protobuf ─► VectorChallenger ─► schemas/avro.py ◄─┘ to be asked: the policy

Most payments are approved, and none of their flags asks for an action. A policy without conditions approves such a
payment by its score alone. To make objects of it, ask the policy, and write the record with fastavro takes 30 µs of CPU
time; the compiled calls take 1.8 µs. A policy with conditions is asked about each payment, and only its record is
written here. The records are the same, to the bit. Everything else is left to the caller.

The entries that the caller had to read teach two things: which flags ask for nothing, and how decisions of a champion
(an *origin*, its digests of bundle and policy) are handled: `learn`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.models.policy.policy import ACTIONS, FLAGS
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.challenger import LEFT_OUT, VectorChallenger
from paywarden.scoring.state.outbox import Frames
from paywarden.scoring.state.outbox.frame_loop import HEAD_BYTES
from paywarden.streams.kafka.avro_bytes import text_bytes
from paywarden.streams.shadow import record_loop as loop

# Champions that are known at a time. After a swap there are two.
_ORIGINS_MAX = 16
# A catalogue has a handful of entities, and each has a flag.
_FLAGS_MAX = 64
_NO_AGE_ASKS = 2**63 - 1
_ACTIONS = tuple(action.encode() for action in ACTIONS)
assert len(_ACTIONS) == loop.ACTION_COUNT


def warm_up() -> None:
    """Compile the functions that a FastRecordWriter calls."""
    _compile(Frame(loop.SLOT, {name: np.zeros(loop.NUMBER_COUNT, dtype=np.int64) for name in loop.LoopSlots._fields}))


def _compile(frame: Frame) -> None:
    """Call both loops with no entries: the first call compiles them."""
    loop.read_entries(frame.address, 0)
    loop.write_records(frame.address, 0)


@dataclass(frozen=True)
class FastRecords:
    """The records written from some frames.

    `values` and `keys`: the usual records. `rest`: the payloads of entries that are not usual. `left_out`: see
    Evaluated. `newest_ms`: when the last usual decision was made; 0 without one.
    """

    values: list[bytes]
    keys: list[bytes]
    rest: list[bytes]
    left_out: Counter[str]
    newest_ms: int


class FastRecordWriter:
    """Writes the usual records of one challenger. Not thread-safe."""

    def __init__(self, challenger: VectorChallenger, header: bytes) -> None:
        """`header`: the bytes that each value begins with (schemas/avro.py)."""
        self._challenger = challenger
        self._known_flags: set[str] = set()
        self._origins: dict[tuple[bytes, bytes], int] = {}
        self._row_bytes, self._rows = challenger.vector_bytes, 0
        self._most_name_bytes = 0
        constants = (
            header,
            challenger.catalogue_digest.encode(),
            _avro_texts(challenger.version.bundle, challenger.version.policy),
        )
        self._constant_bytes = sum(map(len, constants))
        self._arrays: dict[str, NDArray[Any]] = {
            "numbers": np.zeros(loop.NUMBER_COUNT, dtype=np.int64),
            "below": np.array([challenger.approves_below]),
            "data": np.zeros(1, dtype=np.uint8),
            "ends": np.zeros(1, dtype=np.int64),
            "origins": np.zeros(_ORIGINS_MAX * 2 * loop.DIGEST_BYTES, dtype=np.uint8),
            "origin_sizes": np.zeros(2 * _ORIGINS_MAX, dtype=np.int64),
            "origin_status": np.zeros(_ORIGINS_MAX, dtype=np.int64),
            "out": np.zeros(1, dtype=np.uint8),
            **_texts("constants", "constant_ends", constants),
            **_texts("texts", "text_ends", _ACTIONS),
            **_texts("names", "name_ends", []),
            **self._of_rows(1),
        }
        self._frame = Frame(loop.SLOT, self._arrays)
        numbers = self._arrays["numbers"]
        numbers[loop.VECTOR_BYTES] = self._row_bytes
        limit_ms = challenger.asks_above_age_ms
        numbers[loop.ASKED_ABOVE_MS] = _NO_AGE_ASKS if limit_ms is None else limit_ms
        self._names: list[bytes] = []
        self._flags: list[bytes] = []
        self._learn_flags(FLAGS)
        # On a machine where nobody has done it: now, and not in the middle of a batch.
        _compile(self._frame)

    def write(self, frames: Frames) -> FastRecords:
        """Returns the records of the usual entries, and the payloads of the others."""
        count = len(frames)
        if not count:
            return FastRecords([], [], [], Counter(), 0)
        if count > self._rows:
            for name, array in self._of_rows(count).items():
                self._put(name, array)
        # The arrays are put into the frame, which keeps them alive during the calls.
        self._put("data", np.frombuffer(frames.data, dtype=np.uint8))
        self._put("ends", frames.ends)
        usual = loop.read_entries(self._frame.address, count)
        places = self._arrays["places"][:count]
        status = self._arrays["status"][:count]
        if usual:
            is_usual = status == loop.USUAL
            self._arrays["scores"][:usual] = self._scores(usual, places[is_usual])
            if self._challenger.has_conditions:
                self._ask(frames, np.flatnonzero(is_usual).tolist())
        room = len(frames.data) + count * (self._constant_bytes + self._most_name_bytes + loop.OVERHEAD_BYTES)
        if len(self._arrays["out"]) < room:
            self._put("out", np.empty(room, dtype=np.uint8))
        size = loop.write_records(self._frame.address, count)
        return self._written(frames, size)

    def learn(self, entries: Sequence[OutboxEntry]) -> None:
        """Note flags and origins of the entries that were not known before."""
        for entry in entries:
            self._learn_flags(entry.response.flags)
            if (entry.bundle_digest, entry.policy_digest) not in self._origins:
                self._learn_origin(entry)

    def _scores(self, count: int, places: NDArray[np.int64]) -> NDArray[np.float64]:
        if self._challenger.is_policy_alone:
            return np.ascontiguousarray(places[:, loop.SCORE]).view(np.float64)
        return self._challenger.scores(self._arrays["vectors"][:count])

    def _ask(self, frames: Frames, rows: Sequence[int]) -> None:
        """Ask the policy about usual entries.

        An entry that it does not simply approve loses its score, and is not written.
        """
        approves, vectors, scores = self._challenger.approves, self._arrays["vectors"], self._arrays["scores"]
        for number, (row, score) in enumerate(zip(rows, scores[: len(rows)].tolist(), strict=True)):
            if not approves(OutboxEntry.FromString(_payload(frames, row)), vectors[number], score):
                scores[number] = math.nan

    def _written(self, frames: Frames, size: int) -> FastRecords:
        count = len(frames)
        status = self._arrays["status"][:count]
        out, data = self._arrays["out"][:size].tobytes(), frames.data
        is_usual = status == loop.USUAL
        bounds = self._arrays["bounds"][:count][is_usual].tolist()
        left_out = Counter(
            {
                LEFT_OUT[number - loop.LEFT_OUT]: int(found)
                for number, found in enumerate(np.bincount(status))
                if number >= loop.LEFT_OUT and found
            }
        )
        rest = np.flatnonzero(status == loop.UNUSUAL).tolist()
        times = self._arrays["places"][:count, loop.TIME][is_usual]
        return FastRecords(
            [out[begin:end] for begin, end, _, _ in bounds],
            [data[begin:end] for _, _, begin, end in bounds],
            [_payload(frames, row) for row in rest],
            left_out,
            int(times[-1]) if len(times) else 0,
        )

    def _learn_flags(self, flags: Sequence[str]) -> None:
        for flag in flags:
            if flag not in self._known_flags and len(self._known_flags) < _FLAGS_MAX:
                self._known_flags.add(flag)
                if self._challenger.asks_for_nothing(flag):
                    self._flags.append(flag.encode())
                    self._put_texts("texts", "text_ends", [*_ACTIONS, *self._flags])

    def _learn_origin(self, entry: OutboxEntry) -> None:
        """Note the champion of an entry of the challenger's catalogue."""
        challenger = self._challenger
        digests = entry.bundle_digest, entry.policy_digest
        if entry.catalogue_digest != challenger.catalogue_digest or len(entry.vector) != self._row_bytes:
            return
        if any(len(digest) not in (0, loop.DIGEST_BYTES) for digest in digests):
            return
        if len(self._origins) == _ORIGINS_MAX:
            self._origins.clear()
            self._names.clear()
        number = self._origins[digests] = len(self._origins)
        reason = challenger.unusable(entry)
        arrays = self._arrays
        keys = arrays["origins"].reshape(_ORIGINS_MAX, 2 * loop.DIGEST_BYTES)[number]
        for place, digest in enumerate(digests):
            keys[place * loop.DIGEST_BYTES :][: len(digest)] = np.frombuffer(digest, dtype=np.uint8)
            arrays["origin_sizes"][2 * number + place] = len(digest)
        arrays["origin_status"][number] = loop.LEFT_OUT + LEFT_OUT.index(reason) if reason else loop.USUAL
        arrays["numbers"][loop.ORIGIN_COUNT] = len(self._origins)
        bundle, policy = (digest.hex() for digest in digests)
        # Challenger, `is_shadow_host`, the catalogue, the champion: neighbours in the schema.
        names = _avro_texts(challenger.name) + b"\0" + _avro_texts(challenger.catalogue_digest, bundle, policy)
        self._names.append(names)
        self._most_name_bytes = max(map(len, self._names))
        self._put_texts("names", "name_ends", self._names)

    def _of_rows(self, rows: int) -> dict[str, NDArray[Any]]:
        self._rows = rows
        return {
            "status": np.zeros(rows, dtype=np.int64),
            "places": np.zeros((rows, loop.PLACE_COUNT), dtype=np.int64),
            "vectors": np.zeros((rows, self._row_bytes // 4), dtype=np.float32),
            "scores": np.zeros(rows),
            "bounds": np.zeros((rows, loop.BOUND_COUNT), dtype=np.int64),
        }

    def _put_texts(self, name: str, ends: str, texts: Sequence[bytes]) -> None:
        for each, array in _texts(name, ends, texts).items():
            self._put(each, array)

    def _put(self, name: str, array: NDArray[Any]) -> None:
        self._arrays[name] = array
        self._frame.put(name, array)


def _payload(frames: Frames, row: int) -> bytes:
    begin = int(frames.ends[row - 1]) if row else 0
    return frames.data[begin + HEAD_BYTES : int(frames.ends[row])]


def _avro_texts(*texts: str) -> bytes:
    return b"".join(map(text_bytes, texts))


def _texts(name: str, ends: str, texts: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    # One byte and one end more, because numba makes no array of nothing. No text is of a size below 0.
    return {
        name: np.frombuffer(b"".join(texts) + b"\0", dtype=np.uint8),
        ends: np.append(np.cumsum([len(text) for text in texts], dtype=np.int64), -1),
    }
