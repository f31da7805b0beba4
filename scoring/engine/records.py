"""Writes the responses and outbox records of a chunk with one compiled loop (scoring/engine/record_bytes.py).

    response = payment id │ decision id │ score │ tail │ profile age
                                                  └─ action, reasons, model version, flags

Many responses share the same *tail*. Protobuf serialises a tail once; the writer then knows it by its number. A tail
added by `keep_tail` stays for good, one added by `add_tail` only until the next chunk.

A record also names its *origin*: the digests of the bundle and the policy that decided. A writer has one for each
model, serialised once. Each tail names the origin of its records, so an origin costs a payment only the copied bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.schemas.proto.outbox_pb2 import OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine import record_bytes as loop
from paywarden.scoring.requests.trace_context import TRACE_BYTES

# All combinations of actions, models and flags give a few hundred tails.
KEPT_TAILS_MAX = 1024
# The tag of a record's trace, field 16, and its size.
_TRACE_HEAD = bytes((0x82, 0x01, TRACE_BYTES))


@dataclass(frozen=True)
class Origin:
    """The model, policy and arm behind a decision. Digests are 64 hex digits of a sha256; an absent text is empty."""

    # The digest of the manifest of the bundle that scored. Empty: no model did.
    bundle_digest: str = ""
    policy_digest: str = ""
    rollout: str = ""
    arm: str = ""
    # The probability with which a payment is given to the arm; if exploration tossed its coin, that of the action.
    propensity: float = 1.0
    profile_set: str = ""

    def to_bytes(self) -> bytes:
        """Returns the serialised fields of an OutboxRecord."""
        return OutboxRecord(
            bundle_digest=bytes.fromhex(self.bundle_digest),
            policy_digest=bytes.fromhex(self.policy_digest),
            rollout=self.rollout,
            arm=self.arm,
            propensity=self.propensity if self.rollout or self.propensity != 1.0 else None,
            profile_set=self.profile_set,
        ).SerializeToString()


class RecordWriter:
    """Writes the decisions about chunks. Not thread-safe."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        catalogue_digest: str,
        decision_prefix: str,
        origins: Sequence[Origin] = (Origin(),),
    ) -> None:
        """`vectors`: shape (rows_max, features), C-contiguous, one row per payment of a chunk; always the same array.

        A decision's id is the prefix, a dash and a number in hex that counts up from 1: `4f2a…-1b`. Tails name one of
        `origins` by its place.
        """
        assert vectors.flags.c_contiguous
        self._rows_max, self.vector_bytes = len(vectors), vectors.itemsize * vectors.shape[1]
        prefix = decision_prefix.encode()
        digest = OutboxRecord(catalogue_digest=catalogue_digest).SerializeToString()
        self.decision = 1
        """The number of the next decision."""
        self._tails: list[bytes] = []
        self._longest_tail = 0
        self._kept, self._catalogue_digest = 0, catalogue_digest
        self.origins = tuple(origins)
        """The origins of its records, by place."""
        origin_bytes = [origin.to_bytes() for origin in origins]
        self._longest_origin = max(map(len, origin_bytes))
        # Whether any caller has had a name, and whether any request has had a trace.
        self._has_callers = self._has_traces = False
        self.has_arrivals = False
        """Whether the arrivals of the chunk are known."""
        self._arrays: dict[str, NDArray[Any]] = {
            "scores": np.zeros(self._rows_max),
            "arrivals": np.zeros(self._rows_max),
            "tail_numbers": np.zeros(self._rows_max, dtype=np.int64),
            "body_sizes": np.zeros(self._rows_max, dtype=np.int64),
            "id_sizes": np.zeros(self._rows_max, dtype=np.int64),
            "caller_sizes": np.zeros(self._rows_max, dtype=np.int64),
            "trace_sizes": np.zeros(self._rows_max, dtype=np.int64),
            "tail_ends": np.zeros(KEPT_TAILS_MAX + self._rows_max, dtype=np.int64),
            "tail_origins": np.zeros(KEPT_TAILS_MAX + self._rows_max, dtype=np.int64),
            # One byte more, because numba makes no array of nothing.
            "origins": np.frombuffer(b"".join(origin_bytes) + b"\0", dtype=np.uint8).copy(),
            "origin_ends": np.cumsum([len(each) for each in origin_bytes], dtype=np.int64),
            "constant_ends": np.cumsum([len(prefix), len(digest)], dtype=np.int64),
            "bounds": np.zeros(3 * self._rows_max, dtype=np.int64),
            "vectors": vectors,
            # Large enough for usual chunks; they grow when needed.
            "bodies": np.zeros(64 << 10, dtype=np.uint8),
            "ids": np.zeros(16 << 10, dtype=np.uint8),
            "callers": np.zeros(4 << 10, dtype=np.uint8),
            "traces": np.zeros(4 << 10, dtype=np.uint8),
            "tails": np.zeros(64 << 10, dtype=np.uint8),
            "constants": np.frombuffer(bytearray(prefix + digest + b"\0"), dtype=np.uint8),
            "out": np.zeros(128 << 10, dtype=np.uint8),
        }
        # The compiled loop gets only the address of this frame.
        self._frame = Frame(loop.SLOT, self._arrays)
        self._views = {name: array.data.cast("B") for name, array in self._arrays.items() if name != "vectors"}
        self._bounds = self._arrays["bounds"].data
        # The most bytes of a record without its texts and its tail.
        self._rest_bytes = self.vector_bytes + self._longest_origin + len(prefix + digest) + 1 + loop.OVERHEAD_BYTES
        # Packers, indexed by the number of decisions.
        self._int64s, self._doubles = _packers(self._rows_max, "q"), _packers(self._rows_max, "d")

    @property
    def frame_at(self) -> int:
        """The address of the frame of `record_bytes.write_records`."""
        return self._frame.address

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The frame's arrays. An array that must grow is replaced by a larger one."""
        return self._arrays

    def keep_tail(self, tail: bytes, origin: int = 0) -> int | None:
        """Add a tail that stays, between two chunks. Returns its number, or None when KEPT_TAILS_MAX are kept."""
        if self._kept == KEPT_TAILS_MAX:
            return None
        self.begin()
        self._kept += 1
        return self.add_tail(tail, origin)

    def kept_tail(self, number: int) -> bytes:
        """Returns a tail that stays."""
        return self._tails[number]

    def joint(self, other: RecordWriter, prefix: str) -> RecordWriter:
        """Returns a writer with the kept tails of this one, and the origins of both: the other's come behind.

        `prefix`: of its decisions' ids.
        """
        made = RecordWriter(self._arrays["vectors"], self._catalogue_digest, prefix, (*self.origins, *other.origins))
        for number in range(self._kept):
            made.keep_tail(self._tails[number], int(self._arrays["tail_origins"][number]))
        return made

    def begin(self) -> None:
        """Begin a chunk: the tails of the chunk before are dropped."""
        del self._tails[self._kept :]

    def add_tail(self, tail: bytes, origin: int = 0) -> int:
        """Add a tail for this chunk only, at most one per decision. Returns its number."""
        number = len(self._tails)
        ends = self._arrays["tail_ends"]
        start = int(ends[number - 1]) if number else 0
        self._tails.append(tail)
        self._longest_tail = max(self._longest_tail, len(tail))
        self._make_room("tails", start + len(tail))
        self._views["tails"][start : start + len(tail)] = tail
        ends[number] = start + len(tail)
        self._arrays["tail_origins"][number] = origin
        return number

    def put_callers(
        self, count: int, arrivals: Sequence[float], callers: Sequence[bytes], traces: Sequence[bytes]
    ) -> None:
        """Put the callers, arrivals and traces of a chunk's `count` payments where the loop reads them."""
        # As long as no caller has a name and no request a trace, all sizes are 0.
        if self._has_callers or (callers and any(callers)):
            self._has_callers = True
            self._fill("callers", b"".join(callers))
            self._int64s[count].pack_into(self._views["caller_sizes"], 0, *map(len, callers or [b""] * count))
        if traces or self._has_traces:
            self._take_traces(traces or [b""] * count, self._int64s[count])
        self.has_arrivals = bool(arrivals)
        if arrivals:
            self._doubles[count].pack_into(self._views["arrivals"], 0, *arrivals)

    def make_text_room(self, body_bytes: int, id_bytes: int) -> None:
        """Make room for the bodies and ids of a chunk, for a caller that puts them there itself."""
        self._make_room("bodies", body_bytes)
        self._make_room("ids", id_bytes)

    def make_room(self, count: int, text_bytes: int) -> None:
        """Make room for `count` records with at most `text_bytes` of bodies and ids. Call it last before a write."""
        needed = text_bytes + count * (self._rest_bytes + self._longest_tail)
        if self._has_callers or self._has_traces:
            needed += len(self._views["callers"]) + len(self._views["traces"])
        if len(self._views["out"]) < needed:
            self._make_room("out", 2 * needed)

    def frames(self, count: int, size: int) -> bytes:
        """Returns the outbox frames of `count` decisions, which the loop has written in `size` bytes.

        Call it once for each chunk: the next decisions get other numbers.
        """
        self.decision += count
        return self._views["out"][:size].tobytes()

    def responses(self, count: int) -> list[bytes]:
        """Returns the responses of the last chunk."""
        out, bounds = self._views["out"], self._bounds[: 3 * count].tolist()
        return [out[start:end].tobytes() for start, end in zip(bounds[1::3], bounds[2::3], strict=True)]

    def _take_traces(self, traces: Sequence[bytes], int64s: Struct) -> None:
        """Put the traces of a chunk where the loop reads them, each with its tag and size."""
        self._has_traces = True
        fields = [_TRACE_HEAD + trace if trace else b"" for trace in traces]
        self._fill("traces", b"".join(fields))
        int64s.pack_into(self._views["trace_sizes"], 0, *map(len, fields))

    def _fill(self, name: str, data: bytes) -> None:
        if len(data) > len(self._views[name]):
            self._make_room(name, 2 * len(data))
        self._views[name][: len(data)] = data

    def _make_room(self, name: str, size: int) -> None:
        """Grow an array to at least `size` bytes, keeping its content."""
        old = self._arrays[name]
        if len(old) >= size:
            return
        larger = np.zeros(size, dtype=np.uint8)
        larger[: len(old)] = old
        self._arrays[name], self._views[name] = larger, larger.data
        self._frame.put(name, larger)


@cache
def _packers(rows_max: int, kind: str) -> list[Struct]:
    """Returns a packer for each count of rows from 0 on. All writers share them: to make them takes 0.1 ms."""
    return [Struct(f"={count}{kind}") for count in range(rows_max + 1)]


def tail(action: str, reasons: Sequence[str], model_version: str, flags: Sequence[str]) -> bytes:
    """Returns the serialised fields that follow the score in a response."""
    return ScoreResponse(action=action, reasons=reasons, model_version=model_version, flags=flags).SerializeToString()
