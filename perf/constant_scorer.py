"""A scorer that answers everything alike, and an intake before it: for measuring what stands in front of them."""

from __future__ import annotations

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.requests.validation import RequestLimits

# Two serialised messages, one behind the other, are the message of both.
_COMMON = ScoreResponse(
    decision_id="0123456789abcdef0123456789abcdef", score=0.0123, action="approve", model_version="v1"
).SerializeToString()


def constant_answer(payment_id: bytes) -> bytes:
    """The serialised response to a payment, whose id has at most 127 bytes."""
    return b"\n" + bytes([len(payment_id)]) + payment_id + _COMMON


def euro_intake() -> RequestDecoder:
    """One that knows no currency but the euro, and takes a body of any year."""
    limits = RequestLimits(past_ms_max=TIME_BOUND_MS_MAX)
    return RequestDecoder(FeatureEngine().plan, RateTable({"EUR": [(0, RATE_SCALE)]}), limits)


class ConstantScorer:
    """See paywarden.scoring.engine.batcher.Scorer."""

    def score_many(self, payments: CheckedPayments, now_ms: int) -> list[bytes]:  # noqa: ARG002
        """The same for each but for the payment's id."""
        return [constant_answer(payment_id) for payment_id in payments.ids]

    def readiness(self) -> list[str]:
        """Always."""
        return []
