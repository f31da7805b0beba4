"""Responses and outbox records as bytes, put together from parts.

Two serialised protobuf messages of one kind, one behind the other, are the serialised message of both: of a field that
stands in both the later counts, lists are joined. So what many responses have in common (action, flags, version of the
model, age of the mirror) is serialised once, and only ids and the score are written for each. Parts are in the order of
their fields: the bytes are those that protobuf itself would write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

from schemas.outbox_pb2 import OutboxRecord
from schemas.scoring_pb2 import ScoreResponse

# A field's tag is its number times eight, plus 2 for bytes of a length, plus 1 for eight bytes.
_PAYMENT_ID, _DECISION_ID, _SCORE = b"\x0a", b"\x12", b"\x19"
_REQUEST, _RESPONSE, _VECTOR = b"\x0a", b"\x12", b"\x22"
_DOUBLE = Struct("<d")
# Of requests and responses.
_USUAL_MAX = 4096


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the highest bit set."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


class _Heads(dict[int, bytes]):
    """What stands before bytes of each length: made once for what is usual."""

    def __init__(self, tag: bytes) -> None:
        super().__init__((size, tag + _varint(size)) for size in range(_USUAL_MAX))
        self._tag = tag

    def __missing__(self, size: int) -> bytes:
        return self._tag + _varint(size)


_PAYMENT_ID_HEADS, _DECISION_ID_HEADS = _Heads(_PAYMENT_ID), _Heads(_DECISION_ID)
_REQUEST_HEADS, _RESPONSE_HEADS = _Heads(_REQUEST), _Heads(_RESPONSE)


def common_part(action: str, reasons: Sequence[str], model_version: str, flags: Sequence[str]) -> bytes:
    """What follows the score."""
    return ScoreResponse(action=action, reasons=reasons, model_version=model_version, flags=flags).SerializeToString()


def age_part(profile_age_ms: int | None) -> bytes:
    """The last part; None: not known."""
    return ScoreResponse(profile_age_ms=profile_age_ms).SerializeToString()


def response(payment_id: bytes, decision_id: bytes, score: float | None, common: bytes, age: bytes) -> bytes:
    """A serialised ScoreResponse. Ids are in UTF-8; `score` is from 0 to 1, None where there is none."""
    return b"".join(
        (
            _PAYMENT_ID_HEADS[len(payment_id)],
            payment_id,
            _DECISION_ID_HEADS[len(decision_id)],
            decision_id,
            # A field that holds its default is left out.
            _SCORE + _DOUBLE.pack(score) if score else b"",
            common,
            age,
        )
    )


class Records:
    """Outbox records of vectors of one size, by one catalogue."""

    def __init__(self, vector_bytes: int, catalogue_digest: str) -> None:
        self._vector_head = _VECTOR + _varint(vector_bytes)
        self._digest = OutboxRecord(catalogue_digest=catalogue_digest).SerializeToString()

    def at(self, decided_time_ms: int) -> Callable[[bytes, bytes, bytes], bytes]:
        """A function from a request, its response and the vector's bytes to the record, of decisions at this time."""
        digest = self._digest
        time_and_vector_head = OutboxRecord(decided_time_ms=decided_time_ms).SerializeToString() + self._vector_head

        def record(request: bytes, answer: bytes, vector: bytes) -> bytes:
            request_head, answer_head = _REQUEST_HEADS[len(request)], _RESPONSE_HEADS[len(answer)]
            return b"".join((request_head, request, answer_head, answer, time_and_vector_head, vector, digest))

        return record
