"""Lets a challenger decide about payments that were decided before, each from the vector of its decision.

    outbox entry: request, flags, vector ─► challenger's model ─► challenger's policy ─► shadow record
                                                                                        champion beside it

1. The challenger scores the champion's vector, to the bit. The challenger's score is the same as it would have been in
   the worker.
2. Flags about profiles are the champion's. Flags about the champion's model are dropped: the challenger's model has
   scored. Whether the mirror was stale is asked again, because each policy has its own limit.
3. A challenger that is a policy alone takes the champion's score, and keeps all flags.

Entries that cannot be compared are left out and counted, by one of LEFT_OUT:

    other_catalogue   the vector belongs to another feature catalogue
    other_bundle      the challenger is a policy alone, for another bundle than the one that scored
    champion          the challenger is what decided
    failed            the challenger's model raised, or gave no finite score
    late, no_profiles the challenger has features of its own: see streams/shadow/mirror_challenger.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.bundle import Bundle, calibrated
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import (
    ACTIONS,
    APPROVE,
    MIRROR_STALE,
    MODEL_ABSENT,
    MODEL_ERROR,
    Facts,
    Policy,
    Verdict,
)
from paywarden.models.rollout.shadow import ShadowRecord, ShadowSide
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

OTHER_CATALOGUE, OTHER_BUNDLE, CHAMPION, FAILED = "other_catalogue", "other_bundle", "champion", "failed"
LATE, NO_PROFILES = "late", "no_profiles"
LEFT_OUT = (OTHER_CATALOGUE, OTHER_BUNDLE, CHAMPION, FAILED, LATE, NO_PROFILES)
"""Why an entry is left out."""
_OF_MODELS = (MODEL_ERROR, MODEL_ABSENT)


@lru_cache(maxsize=16)
def _version_of(bundle_digest: bytes, policy_digest: bytes) -> Version:
    """Returns the version of a decision; almost all decisions have the same one."""
    return Version(bundle_digest.hex(), policy_digest.hex())


@dataclass
class Evaluated:
    """A challenger's decisions about entries, in order, and the number of entries left out, by reason."""

    records: list[ShadowRecord] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


class VectorChallenger:
    """A challenger of the served catalogue. Not thread-safe."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        policy: Policy,
        *,
        catalogue_digest: str,
        rates: RateTable,
        is_policy_alone: bool = False,
    ) -> None:
        """`is_policy_alone`: the challenger takes the scores of `bundle` from the decisions.

        Raises Misconfigured if the policy reads fields that no decision holds.
        """
        if unknown := sorted(policy.fields - set(ScoreRequest.DESCRIPTOR.fields_by_name)):
            raise Misconfigured(
                f"challenger {name}: its policy's conditions read fields that no decision holds: {', '.join(unknown)}"
            )
        self.name = name
        self._bundle, self._policy, self._rates = bundle, policy, rates
        self._catalogue_digest, self._is_policy_alone = catalogue_digest, is_policy_alone
        # `digest` computes a checksum at every call.
        self.version = Version(bundle.manifest.digest, policy.digest)
        self._bundle_digest, self._policy_digest = map(bytes.fromhex, (self.version.bundle, self.version.policy))
        self._vector_bytes = 4 * len(bundle.manifest.feature_names)
        self._facts = Facts(ScoreRequest(), 0, np.zeros(0, dtype=np.float32), None, ())

    def evaluate(self, entries: Sequence[OutboxEntry]) -> Evaluated:
        """Returns the challenger's decisions. Never raises, even if its model does."""
        found = Evaluated()
        usable = []
        for entry in entries:
            if reason := self._unusable(entry):
                found.leave_out(reason)
            else:
                usable.append(entry)
        if not usable:
            return found
        vectors = np.frombuffer(b"".join(entry.vector for entry in usable), dtype="<f4").reshape(len(usable), -1)
        for entry, vector, score in zip(usable, vectors, self._scores(usable, vectors), strict=True):
            record = None if math.isnan(score) else self._record(entry, vector, score)
            if record is None:
                found.leave_out(FAILED)
            else:
                found.records.append(record)
        return found

    def _unusable(self, entry: OutboxEntry) -> str:
        """Returns why an entry cannot be compared; empty if it can."""
        if entry.catalogue_digest != self._catalogue_digest or len(entry.vector) != self._vector_bytes:
            return OTHER_CATALOGUE
        if self._is_policy_alone and entry.bundle_digest not in (b"", self._bundle_digest):
            return OTHER_BUNDLE
        is_same_bundle = self._is_policy_alone or entry.bundle_digest == self._bundle_digest
        return CHAMPION if is_same_bundle and entry.policy_digest == self._policy_digest else ""

    def _scores(self, entries: Sequence[OutboxEntry], vectors: NDArray[np.float32]) -> list[float]:
        """Returns a score for each entry: NaN where the model fails; 0 without a model. Never raises."""
        if self._is_policy_alone:
            return [entry.response.score for entry in entries]
        manifest = self._bundle.manifest
        try:
            margins = self._bundle.predictor.margins(vectors)
        except Exception:  # noqa: BLE001 - a challenger's model may raise anything, and other payments go on
            margins = np.array([self._margin(vectors[row : row + 1]) for row in range(len(vectors))])
        scores = calibrated(margins, manifest.calibration_slope, manifest.calibration_intercept)
        # Not before: the calibration gives 0 for NaN.
        finite: list[float] = np.where(np.isfinite(margins), scores, math.nan).tolist()
        return finite

    def _margin(self, vector: NDArray[np.float32]) -> float:
        try:
            return float(self._bundle.predictor.margins(vector)[0])
        except Exception:  # noqa: BLE001 - see `_scores`
            return math.nan

    def _record(self, entry: OutboxEntry, vector: NDArray[np.float32], score: float) -> ShadowRecord | None:
        """Ask the policy about one payment. None if the decision has no action."""
        request, response, policy = entry.request, entry.response, self._policy
        flags = self._flags(entry)
        has_score = MODEL_ABSENT not in flags
        action, reasons = self._verdict(entry, vector, score, flags)
        if action != ACTIONS[APPROVE] and has_score:
            reasons += self._bundle.explainer.reasons(vector, policy.reason_features_max)
        version = self.version if has_score else replace(self.version, bundle="")
        champion = _version_of(entry.bundle_digest, entry.policy_digest)
        try:
            return ShadowRecord(
                decision_id=response.decision_id,
                payment_id=request.payment_id,
                card_id=request.card_id,
                decided_time_ms=entry.decided_time_ms,
                challenger_name=self.name,
                catalogue_digest=entry.catalogue_digest,
                champion=ShadowSide(response.score, response.action, champion),
                challenger=ShadowSide(score, action, version),
                challenger_reasons=tuple(reasons),
            )
        except InvalidEvent:
            return None

    def _verdict(
        self, entry: OutboxEntry, vector: NDArray[np.float32], score: float, flags: tuple[str, ...]
    ) -> Verdict:
        """Returns the policy's verdict."""
        request, facts = entry.request, self._facts
        if self._policy.has_conditions:
            facts.amount = self._rates.convert(request.amount_minor, request.currency, request.event_time_ms)
            facts.payment, facts.vector = request, vector
        facts.score, facts.flags = None if MODEL_ABSENT in flags else score, flags
        return self._policy.decide(facts)

    def _flags(self, entry: OutboxEntry) -> tuple[str, ...]:
        """Returns the payment's flags in the order in which the scorer gives them."""
        response = entry.response
        is_stale = response.HasField("profile_age_ms") and response.profile_age_ms > self._policy.stale_after_ms
        if not response.flags and not is_stale:
            return ()
        flags = [flag for flag in response.flags if flag != MIRROR_STALE and flag not in _OF_MODELS]
        if is_stale:
            flags.append(MIRROR_STALE)
        if self._is_policy_alone:
            flags += [flag for flag in response.flags if flag in _OF_MODELS]
        return tuple(flags)
