"""Payments for tests of the stages after the decoder of requests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import Chunk, Refusal, Scorer
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.step_decoder import CheckedPayments, StepDecoder


@cache
def default_plan() -> Plan:
    return FeatureEngine().plan


def euro_intake(limits: RequestLimits | None = None) -> StepDecoder:
    """Returns a decoder that knows no currency but the euro."""
    return StepDecoder(default_plan(), RateTable({"EUR": [(0, RATE_SCALE)]}), limits or RequestLimits())


def score_many(scorer: Scorer, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse | Refusal]:
    """Returns the result of each request."""
    results = scorer.score(Chunk([request.SerializeToString() for request in requests]), now_ms)
    return [result if isinstance(result, Refusal) else ScoreResponse.FromString(result) for result in results]


def payments_of(requests: Sequence[ScoreRequest], intake: StepDecoder, now_ms: int) -> CheckedPayments:
    """Returns the decoded payments of requests. Every request must be accepted."""
    payments, wrong = intake.read([request.SerializeToString() for request in requests], now_ms)
    assert not wrong
    return payments
