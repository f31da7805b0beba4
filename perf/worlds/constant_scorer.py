"""A scorer with a constant answer and a decoder before it, to measure the fronts without scoring."""

from __future__ import annotations

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits

# Two serialised messages, one after the other, are one message with the fields of both.
_COMMON = ScoreResponse(
    decision_id="0123456789abcdef0123456789abcdef", score=0.0123, action="approve", model_version="v1"
).SerializeToString()


def constant_answer(payment_id: bytes) -> bytes:
    """Returns the serialised response to a payment, whose id has at most 127 bytes."""
    return b"\n" + bytes([len(payment_id)]) + payment_id + _COMMON


def euro_intake() -> RequestDecoder:
    """Returns a decoder that knows only the euro and accepts a time in any year."""
    limits = RequestLimits(past_ms_max=TIME_BOUND_MS_MAX)
    return RequestDecoder(FeatureEngine().plan, RateTable({"EUR": [(0, RATE_SCALE)]}), limits)


class ConstantScorer:
    """See paywarden.scoring.engine.batching.batcher.Scorer."""

    def __init__(self) -> None:
        self._reader = euro_intake().fast

    def score(self, chunk: Chunk, now_ms: int) -> list[bytes]:
        """Returns the same answer for each payment, but for its id. The requests must be usual."""
        return [constant_answer(payment_id) for payment_id in self._reader.read(chunk.bodies, now_ms).ids]

    def readiness(self) -> list[str]:
        """Returns true."""
        return []
