"""A payment in, a decision out: look up, vector, model, policy, outbox. No I/O but the append to the outbox.

This is the hot path. Everything it needs is made at start; nothing here waits, logs or looks up a label.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np

from features.attributes import ATTRIBUTES, CODES
from features.engine import FeatureEngine, UnreadableProfile
from features.kernel import ABSENT, AMOUNT, AMOUNT_MINOR, ATTRIBUTE_COUNT, KNOWN, TIME_MS, UNKNOWN
from features.keys import entity_key
from features.money import RateTable
from schemas.outbox_pb2 import OutboxEntry
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.metrics import ScoringMetrics
from scoring.mirror import MirrorAbsent, MirrorReader, MirrorSettings
from scoring.model_chain import ModelChain
from scoring.policy import (
    ACTIONS,
    APPROVE,
    MIRROR_ABSENT,
    MIRROR_STALE,
    PROFILE_UNREADABLE,
    Facts,
    Policy,
    unknown_flag,
)


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
        models: ModelChain,
        policy: Policy,
        mirror: MirrorSettings,
        outbox: Outbox,
        metrics: ScoringMetrics,
    ) -> None:
        plan = engine.plan
        self._engine, self._rates, self._models, self._policy = engine, rates, models, policy
        self._mirror_settings, self._outbox, self._metrics = mirror, outbox, metrics
        self._mirror: MirrorReader | None = None
        self._complete_to_ms = 0
        self._unknown_flags = [unknown_flag(name) for name in plan.entity_names]
        self._hits = [metrics.mirror_lookups[name, "hit"] for name in plan.entity_names]
        self._misses = [metrics.mirror_lookups[name, "miss"] for name in plan.entity_names]
        self._key_makers = [_key_maker(*entity) for entity in zip(plan.entity_names, plan.entity_keys, strict=True)]
        # Only what the catalogue asks for is read from a request and coded.
        self._coders = [
            (attribute.column, attrgetter(attribute.name), CODES[attribute.kind], attribute.name)
            for attribute in map(ATTRIBUTES.__getitem__, plan.attribute_columns)
            if attribute.kind in CODES and attribute.name in ScoreRequest.DESCRIPTOR.fields_by_name
        ]
        self._attributes = np.zeros((1, ATTRIBUTE_COUNT), dtype=np.int64)
        self._vector = np.empty((1, plan.feature_count), dtype=np.float32)
        self._no_presence = np.zeros(plan.entity_count, dtype=np.uint8)
        self._fill_from_nothing = engine.bind(
            self._attributes,
            self._no_presence,
            np.zeros(0, dtype=np.uint8),
            np.zeros(plan.entity_count + 1, dtype=np.int64),
            self._vector,
        )
        self._fill_from_mirror = self._fill_from_nothing
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
            mirror = self._mirror
            self._fill_from_mirror = self._engine.bind(
                self._attributes, mirror.presence, mirror.states, mirror.bounds, self._vector
            )
        return True

    def score_batch(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse]:
        """`score` for each, in order."""
        return [self.score(request, now_ms) for request in requests]

    def score(self, request: ScoreRequest, now_ms: int) -> ScoreResponse:
        """The decision about a validated request, already in the outbox.

        Raises InvalidEvent for a currency without a rate, TemporaryFailure when the outbox cannot take it.
        """
        row = self._attributes[0]
        row[TIME_MS] = request.event_time_ms
        row[AMOUNT] = self._rates.convert(request.amount_minor, request.currency, request.event_time_ms)
        row[AMOUNT_MINOR] = request.amount_minor
        for column, get, code, name in self._coders:
            value = get(request)
            row[column] = code(value) if value or request.HasField(name) else 0
        flags = self._fill_vector(request)
        profile_age_ms = None
        if self._complete_to_ms > 0:
            profile_age_ms = max(0, now_ms - self._complete_to_ms)
            self._metrics.mirror_age_seconds.set(profile_age_ms / 1000)
            if profile_age_ms > self._policy.stale_after_ms:
                flags.append(MIRROR_STALE)
        scored = self._models.score(self._vector)
        score, model = scored.scores[0], scored.models[0]
        flags += scored.flags[0]
        vector = self._vector[0]
        action, reasons = self._policy.decide(Facts(request, int(row[AMOUNT]), vector, score, flags))
        if action != ACTIONS[APPROVE]:
            reasons += self._models.reasons(vector, model, self._policy.reason_features_max)
        self._decision_count += 1
        response = ScoreResponse(
            payment_id=request.payment_id,
            decision_id=f"{self._decision_prefix}-{self._decision_count:x}",
            # Absent it reads as 0; `model_absent` among the flags tells.
            score=score,
            action=action,
            reasons=reasons,
            model_version=self._models.versions[model],
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
        keys = [make_key(request) for make_key in self._key_makers]
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
            self._fill_from_mirror()
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
        self._fill_from_nothing()

    def _look_up_nothing(self) -> int:
        assert self._mirror is not None
        try:
            return self._mirror.look_up(())
        except MirrorAbsent:
            return 0

    def _count(self, response: ScoreResponse, flags: list[str]) -> None:
        metrics = self._metrics
        metrics.decisions[response.action].add(1)
        if response.model_version:
            metrics.score.observe(response.score)
        for flag in flags:
            metrics.flags[flag].add(1)


def _key_maker(entity: str, fields: tuple[str, ...]) -> Callable[[ScoreRequest], bytes | None]:
    """A function from a request to the store key of its entity of one kind, None when it has none."""
    if len(fields) == 1:
        prefix, get = f"{entity}:".encode(), attrgetter(fields[0])

        def single(request: ScoreRequest) -> bytes | None:
            identity: str = get(request)
            return prefix + identity.encode() if identity else None

        return single
    get_all = attrgetter(*fields)

    def combined(request: ScoreRequest) -> bytes | None:
        ids: tuple[str, ...] = get_all(request)
        return entity_key(entity, ids) if all(ids) else None

    return combined
