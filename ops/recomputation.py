"""Decides about a payment again, from the vector in its decision, to compare the result with the decision.

    decision: vector, flags, request ─► bundle of its digest ─► score      compared bit by bit
                                     ─► policy of its digest ─► action, reasons

The vector holds the features as they were, so neither today's profiles nor today's clock matter.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.exploration import EXPLORED
from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE, MODEL_ABSENT, Facts, Policy
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

_OPTIONAL = ("device_id", "ip", "amount_minor", "mcc", "country", "channel", "utc_offset_minutes")
_FEATURE_BYTES = 4
_FIELDS = ("payment_id", "event_time_ms", "card_id", "merchant_id", "currency", *_OPTIONAL)


@dataclass(frozen=True)
class DecisionResult:
    """The score, action and reasons of a decision. Without a model the score is 0, as in a decision."""

    score: float
    action: str
    reasons: list[str]

    def is_equal(self, other: DecisionResult) -> bool:
        """Whether both are the same, the scores in each of their 64 bits."""
        same_bits = struct.pack("<d", self.score) == struct.pack("<d", other.score)
        return same_bits and (self.action, self.reasons) == (other.action, other.reasons)


def outcome_of(decision: Mapping[str, Any]) -> DecisionResult:
    """Returns score, action and reasons of a decision in the form of its topic."""
    return DecisionResult(decision["score"], decision["action"], list(decision["reasons"]))


def decision_fields() -> frozenset[str]:
    """Returns the fields of a payment that a decision holds."""
    return frozenset(ScoreRequest.DESCRIPTOR.fields_by_name)


def request_of(decision: Mapping[str, Any]) -> ScoreRequest:
    """Returns the request that a decision, in the form of its topic, answered."""
    return ScoreRequest(**{name: decision[name] for name in _FIELDS if decision[name] is not None})


def vector_of(decision: Mapping[str, Any]) -> NDArray[np.float32]:
    """Returns the features that a decision, in the form of its topic, holds: (features,), none if they were not kept.

    Raises InvalidEvent if it holds something else.
    """
    content = decision["vector"]
    if len(content) % _FEATURE_BYTES:
        raise InvalidEvent(f"wanted numbers of {_FEATURE_BYTES} bytes, got {len(content)} bytes", field="vector")
    return np.frombuffer(content, dtype="<f4").astype(np.float32)


def decide_again(
    decision: Mapping[str, Any], bundle: Bundle | None, policy: Policy, rates: RateTable
) -> DecisionResult:
    """Returns today's result of bundle and policy for a decision in the form of its topic.

    `bundle`: None if no model gave a score. Raises Misconfigured if the decision lacks a field that they need,
    InvalidEvent if its vector or fields cannot be read.
    """
    flags = tuple(decision["flags"])
    vector = vector_of(decision)
    score: float | None = None
    if bundle is not None:
        wanted = len(bundle.manifest.feature_names)
        if len(vector) != wanted:
            raise Misconfigured(f"the vector was not kept: wanted {wanted} features, got {len(vector)}")
        score = float(bundle.score(vector.reshape(1, -1))[0])
        if not math.isfinite(score):
            raise Misconfigured("the bundle gives no finite score for this vector")
    elif MODEL_ABSENT not in flags:
        raise Misconfigured("the decision names no bundle, and has no flag model_absent")
    if len(vector) < policy.features_min:
        raise Misconfigured(
            f"the policy's conditions read {policy.features_min} features, and the decision holds {len(vector)}"
        )
    request = request_of(decision)
    if unknown := sorted(policy.fields - decision_fields()):
        raise Misconfigured(f"the policy's conditions read fields that no decision holds: {', '.join(unknown)}")
    amount = rates.convert(request.amount_minor, request.currency, request.event_time_ms)
    action, reasons = policy.decide(Facts(request, amount, vector, score, flags))
    if action != ACTIONS[APPROVE] and bundle is not None:
        reasons += bundle.explainer.reasons(vector, policy.reason_features_max)
    if action == ACTIONS[DECLINE] and EXPLORED in decision["reasons"]:
        # The coin is not tossed again: its budget was another one at that time.
        action, reasons = ACTIONS[APPROVE], [EXPLORED, *reasons]
    return DecisionResult(0.0 if score is None else score, action, reasons)
