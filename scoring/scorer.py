"""A payment in, a decision out: look up, vector, model, policy, outbox. No I/O but the append to the outbox.

This is the hot path. Everything it needs is made at start; nothing here waits, logs or looks up a label.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np

from features.engine import FeatureEngine, UnreadableProfile
from features.kernel import ABSENT, KNOWN, REQUEST_AMOUNT, REQUEST_COLUMNS, REQUEST_TIME_MS, UNKNOWN
from features.money import RateTable
from models.bundle import Bundle
from schemas.errors import Misconfigured
from schemas.outbox_pb2 import OutboxEntry
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.metrics import ScoringMetrics
from scoring.mirror import MirrorAbsent, MirrorReader, MirrorSettings
from scoring.policy import FLAGS, MIRROR_ABSENT, MIRROR_STALE, PROFILE_UNREADABLE, Policy


class Outbox(Protocol):
    """Where decisions go before the caller has the answer."""

    def append(self, payload: bytes) -> int:
        """Keep the bytes safe from the death of this process. Raises TemporaryFailure when it cannot."""
        ...


class PaymentScorer:
    """Scores payments one at a time. One to a process; not thread-safe."""

    def __init__(
        self,
        *,
        engine: FeatureEngine,
        rates: RateTable,
        bundle: Bundle,
        policy: Policy,
        mirror: MirrorSettings,
        outbox: Outbox,
        metrics: ScoringMetrics,
    ) -> None:
        """Raises Misconfigured when the catalogue has a kind of entity that the policy knows nothing of."""
        plan = engine.plan
        self._engine, self._rates, self._bundle, self._policy = engine, rates, bundle, policy
        self._mirror_settings, self._outbox, self._metrics = mirror, outbox, metrics
        self._mirror: MirrorReader | None = None
        self._complete_to_ms = 0
        self._prefixes = [f"{name}:".encode() for name in plan.entity_names]
        self._unknown_flags = [f"unknown_{name}" for name in plan.entity_names]
        for flag in self._unknown_flags:
            if flag not in FLAGS:
                raise Misconfigured(f"policy.on_{flag}: there is no such setting, and the feature catalogue needs it")
        self._hits = [metrics.mirror_lookups[name, "hit"] for name in plan.entity_names]
        self._misses = [metrics.mirror_lookups[name, "miss"] for name in plan.entity_names]
        self._keys_of = [attrgetter(key) for key in plan.entity_keys]
        self._request = np.zeros((1, REQUEST_COLUMNS), dtype=np.int64)
        self._vector = np.empty((1, plan.feature_count), dtype=np.float32)
        self._no_states = np.zeros(0, dtype=np.uint8)
        self._no_bounds = np.zeros(plan.entity_count + 1, dtype=np.int64)
        self._no_presence = np.zeros(plan.entity_count, dtype=np.uint8)
        self._model_version = bundle.manifest.model_version
        # Unique over hosts, workers and restarts without a look at anything shared.
        self._decision_prefix = os.urandom(8).hex()
        self._decision_count = 0
        self.open_mirror()

    def readiness(self) -> list[str]:
        """What is missing before payments should be sent here; empty when nothing is."""
        if self._mirror is None and not self.open_mirror():
            return [f"there is no mirror at {self._mirror_settings.path}: is the companion running?"]
        if self._look_up_nothing() == 0:
            return ["the mirror is not complete yet"]
        return []

    def open_mirror(self) -> bool:
        """Open the mirror if it, or another one in its place, is there now: False when there is none.

        Called from time to time, never per payment.
        """
        if self._mirror is not None and self._mirror.is_replaced():
            self._mirror.close()
            self._mirror = None
        if self._mirror is None:
            try:
                self._mirror = MirrorReader(
                    self._mirror_settings,
                    item_max=self._engine.plan.entity_count,
                    profile_bytes_max=self._engine.profile_bytes_max,
                )
            except MirrorAbsent:
                return False
        return True

    def score_batch(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse]:
        """`score` for each, in order."""
        return [self.score(request, now_ms) for request in requests]

    def score(self, request: ScoreRequest, now_ms: int) -> ScoreResponse:
        """The decision about a validated request, already in the outbox.

        Raises InvalidEvent for a currency without a rate, TemporaryFailure when the outbox cannot take it.
        """
        row = self._request[0]
        row[REQUEST_TIME_MS] = request.event_time_ms
        row[REQUEST_AMOUNT] = self._rates.convert(request.amount_minor, request.currency, request.event_time_ms)
        flags = self._fill_vector(request)
        profile_age_ms = None
        if self._complete_to_ms > 0:
            profile_age_ms = max(0, now_ms - self._complete_to_ms)
            self._metrics.mirror_age_seconds.set(profile_age_ms / 1000)
            if profile_age_ms > self._policy.stale_after_ms:
                flags.append(MIRROR_STALE)
        score = float(self._bundle.score(self._vector)[0])
        action, reasons = self._policy.decide(score, flags)
        self._decision_count += 1
        response = ScoreResponse(
            payment_id=request.payment_id,
            decision_id=f"{self._decision_prefix}-{self._decision_count:x}",
            score=score,
            action=action,
            reasons=reasons,
            model_version=self._model_version,
            flags=flags,
            profile_age_ms=profile_age_ms,
        )
        entry = OutboxEntry(
            request=request,
            response=response,
            decided_time_ms=now_ms,
            vector=self._vector.tobytes(),
            catalogue_digest=self._engine.plan.digest,
        )
        self._outbox.append(entry.SerializeToString())
        self._count(response, flags)
        return response

    def _fill_vector(self, request: ScoreRequest) -> list[str]:
        """The payment's features into `_vector`; returns what was odd."""
        keys = [
            prefix + entity_id.encode() if (entity_id := key_of(request)) else None
            for prefix, key_of in zip(self._prefixes, self._keys_of, strict=True)
        ]
        mirror = self._mirror
        if mirror is None:
            return self._fill_without_mirror(keys)
        try:
            self._complete_to_ms = mirror.look_up(keys)
        except MirrorAbsent:
            return self._fill_without_mirror(keys)
        flags = []
        presence = mirror.presence
        for entity in range(len(keys)):
            found = presence[entity]
            if found == KNOWN:
                self._hits[entity].add(1)
            elif found == UNKNOWN:
                self._misses[entity].add(1)
                flags.append(self._unknown_flags[entity])
        try:
            self._engine.fill_vectors(self._request, presence, mirror.states, mirror.bounds, self._vector)
        except UnreadableProfile:
            flags.append(PROFILE_UNREADABLE)
            self._fill_as_unknown(keys)
        return flags

    def _fill_without_mirror(self, keys: list[bytes | None]) -> list[str]:
        self._complete_to_ms = 0
        self._fill_as_unknown(keys)
        return [MIRROR_ABSENT]

    def _fill_as_unknown(self, keys: list[bytes | None]) -> None:
        for entity, key in enumerate(keys):
            self._no_presence[entity] = ABSENT if key is None else UNKNOWN
        self._engine.fill_vectors(self._request, self._no_presence, self._no_states, self._no_bounds, self._vector)

    def _look_up_nothing(self) -> int:
        assert self._mirror is not None
        try:
            return self._mirror.look_up(())
        except MirrorAbsent:
            return 0

    def _count(self, response: ScoreResponse, flags: list[str]) -> None:
        metrics = self._metrics
        metrics.decisions[response.action].add(1)
        metrics.score.observe(response.score)
        for flag in flags:
            metrics.flags[flag].add(1)
