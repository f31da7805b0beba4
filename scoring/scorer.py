"""Payments in, decisions out: look up, vectors, model, policy, outbox. No I/O but the append to the outbox.

This is the hot path. Everything it needs is made at start; nothing here waits, logs or looks up a label. Payments that
are asked for together are looked up in one transaction, go through the kernel and the model in one call each, and are
appended by one write; each is answered as it would be alone, to the bit. A payment that was answered of late gets the
decision it got (scoring/answered.py).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from features.engine import FeatureEngine, UnreadableProfile
from features.kernel import ABSENT, AMOUNT, KNOWN, UNKNOWN
from features.money import RateTable
from schemas.errors import InvalidEvent, TemporaryFailure
from schemas.outbox_pb2 import OutboxEntry, OutboxRecord
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.answered import UNREMEMBERED, Answered, Claim, PaymentIdReused, Repeat, Standing
from scoring.metrics import Registry
from scoring.mirror import MirrorAbsent, MirrorReader, MirrorSettings
from scoring.model_chain import ModelChain, Scored
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
from scoring.request_rows import RequestRows
from scoring.turns import UNDER_WAY, Refusal, refusal_of
from scoring.worker_metrics import ScoringMetrics, StageTimes

# Scored in one go; what is more is cut up. The profiles of so many payments still fit into the second cache.
ROWS_MAX = 64


class Outbox(Protocol):
    """Where decisions go before the caller has the answer."""

    def starts(self, payloads: Sequence[bytes]) -> list[int]:
        """Where each of `payloads` will begin if they are what is appended next."""

    def append_many(self, payloads: Sequence[bytes]) -> int:
        """Keep all of them safe from the death of this process, or none. Raises TemporaryFailure when it cannot."""


class PaymentScorer:
    """Scores payments. One to a process; not thread-safe."""

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
        answered: Answered | None = None,
        stages: StageTimes | None = None,
    ) -> None:
        """Without `answered`, a payment that comes again is decided again."""
        plan = engine.plan
        self._stages = stages or StageTimes(Registry())
        # One for all payments, filled anew for each.
        self._facts = Facts(ScoreRequest(), 0, np.zeros(0, dtype=np.float32), None, ())
        self._answered = answered
        self._engine, self._models, self._policy = engine, models, policy
        self._mirror_settings, self._outbox, self._metrics = mirror, outbox, metrics
        self._mirror: MirrorReader | None = None
        self._entities = entities = plan.entity_count
        self._names = plan.entity_names
        self._rows = RequestRows(plan, rates, ROWS_MAX)
        self._vectors: NDArray[np.float32] = np.empty((ROWS_MAX, plan.feature_count), dtype=np.float32)
        self._no_presence = np.zeros(ROWS_MAX * entities, dtype=np.uint8)
        self._fill_from_nothing = engine.bind(
            self._rows.attributes,
            self._no_presence,
            np.zeros(0, dtype=np.uint8),
            np.zeros(ROWS_MAX * entities + 1, dtype=np.int64),
            self._vectors,
        )
        self._fill_from_mirror = self._fill_from_nothing
        # Every way in which a payment's entities can be known or not, and the flags that it means.
        self._unknown_flags = {
            bytes(found): [unknown_flag(name) for name, one in zip(self._names, found, strict=True) if one == UNKNOWN]
            for found in itertools.product((ABSENT, UNKNOWN, KNOWN), repeat=entities)
        }
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
                    item_max=ROWS_MAX * self._entities,
                    profile_bytes_max=self._engine.profile_bytes_max,
                )
            except MirrorAbsent:
                return False
            mirror = self._mirror
            self._fill_from_mirror = self._engine.bind(
                self._rows.attributes, mirror.presence, mirror.states, mirror.bounds, self._vectors
            )
        return True

    def score_many(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse | Refusal]:
        """The decision about each validated request, already in the outbox; see turns.Scorer."""
        results: list[ScoreResponse | Refusal] = []
        for first in range(0, len(requests), ROWS_MAX):
            part = requests[first : first + ROWS_MAX]
            try:
                results += self._score(part, now_ms)
            except TemporaryFailure as error:
                results += [refusal_of(error)] * len(part)
        return results

    def _score(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse | Refusal]:
        """Of ROWS_MAX requests at most. Raises TemporaryFailure when the outbox cannot take the decisions."""
        claims: Sequence[Claim] = [UNREMEMBERED] * len(requests)
        if self._answered is not None:
            claims = self._answered.claim(requests, now_ms)
            if self._stages.is_timed:
                self._stages.lap("claim", len(requests))
        won = [claim for claim in claims if isinstance(claim, int)]
        try:
            if len(won) == len(requests):
                return self._decide_all(requests, won, now_ms)
            asked = [request for request, claim in zip(requests, claims, strict=True) if isinstance(claim, int)]
            decided = iter(self._decide_all(asked, won, now_ms))
        except BaseException:
            if self._answered is not None:
                self._answered.release(won)
            raise
        results: list[ScoreResponse | Refusal] = []
        for claim in claims:
            if isinstance(claim, int):
                results.append(next(decided))
            else:
                results.append(results[claim.index] if isinstance(claim, Repeat) else _known(claim))
        return results

    def _decide_all(
        self, requests: Sequence[ScoreRequest], slots: Sequence[int], now_ms: int
    ) -> list[ScoreResponse | Refusal]:
        """A result for each request whose slot was won; what has no rate is refused, and its slot given back."""
        results: list[ScoreResponse | Refusal] = []
        taken: list[ScoreRequest] = []
        taken_slots: list[int] = []
        keys: list[bytes | None] = []
        for request, slot in zip(requests, slots, strict=True):
            try:
                self._rows.write(len(taken), request)
            except InvalidEvent as error:
                results.append(refusal_of(error))
                if self._answered is not None:
                    self._answered.release((slot,))
                continue
            keys += self._rows.keys_of(request)
            results.append(_TAKEN)
            taken.append(request)
            taken_slots.append(slot)
        if not taken:
            return results
        responses = self._decide(taken, keys, taken_slots, now_ms)
        if len(taken) == len(requests):
            return list(responses)
        following = iter(responses)
        return [next(following) if result is _TAKEN else result for result in results]

    def _decide(
        self, requests: Sequence[ScoreRequest], keys: Sequence[bytes | None], slots: Sequence[int], now_ms: int
    ) -> list[ScoreResponse]:
        """Responses to requests whose rows are written, their decisions in the outbox."""
        count = len(requests)
        stages = self._stages
        flags, complete_to_ms = self._fill_vectors(keys, count)
        profile_age_ms = None
        if complete_to_ms > 0:
            profile_age_ms = max(0, now_ms - complete_to_ms)
            self._metrics.mirror_age_seconds.set(profile_age_ms / 1000)
            if profile_age_ms > self._policy.stale_after_ms:
                flags = [[*found, MIRROR_STALE] for found in flags]
        scored = self._models.score(self._vectors[:count])
        if stages.is_timed:
            stages.lap("model", count)
        responses, records = self._write_up(requests, scored, flags, profile_age_ms, now_ms)
        if stages.is_timed:
            stages.lap("decide", count)
        self._append(records, slots)
        self._count(responses, scored, flags)
        if stages.is_timed:
            stages.lap("append", count)
        return responses

    def _write_up(
        self,
        requests: Sequence[ScoreRequest],
        scored: Scored,
        flags: list[list[str]],
        profile_age_ms: int | None,
        now_ms: int,
    ) -> tuple[list[ScoreResponse], list[bytes]]:
        """What the policy makes of the scores: responses, and the records of them. Completes `flags`."""
        vectors = self._vectors[: len(requests)]
        amounts = self._rows.attributes[: len(requests), AMOUNT].tolist()
        vector_bytes, row_bytes = vectors.tobytes(), vectors.itemsize * vectors.shape[1]
        policy, facts, digest, versions = self._policy, self._facts, self._engine.plan.digest, self._models.versions
        responses, records = [], []
        for row, request in enumerate(requests):
            score, model = scored.scores[row], scored.models[row]
            if scored.flags[row]:
                # Those of a payment's entities are shared by all whose entities are as well known.
                flags[row] = [*flags[row], *scored.flags[row]]
            facts.payment, facts.amount, facts.vector = request, amounts[row], vectors[row]
            facts.score, facts.flags = score, flags[row]
            action, reasons = policy.decide(facts)
            if action != ACTIONS[APPROVE]:
                reasons += self._models.reasons(facts.vector, model, policy.reason_features_max)
            self._decision_count += 1
            response = ScoreResponse(
                payment_id=request.payment_id,
                decision_id=f"{self._decision_prefix}-{self._decision_count:x}",
                # Absent it reads as 0; `model_absent` among the flags tells.
                score=score,
                action=action,
                reasons=reasons,
                model_version=versions[model],
                flags=flags[row],
                profile_age_ms=profile_age_ms,
            )
            record = OutboxRecord(
                request=request.SerializeToString(),
                response=response.SerializeToString(),
                decided_time_ms=now_ms,
                vector=vector_bytes[row * row_bytes : (row + 1) * row_bytes],
                catalogue_digest=digest,
            )
            responses.append(response)
            records.append(record.SerializeToString())
        return responses, records

    def _append(self, records: Sequence[bytes], slots: Sequence[int]) -> None:
        """Into the outbox; who asks again finds the decisions there."""
        if self._answered is None:
            self._outbox.append_many(records)
            return
        self._answered.place(slots, self._outbox.starts(records))
        self._outbox.append_many(records)
        self._answered.settle(slots)

    def _fill_vectors(self, keys: Sequence[bytes | None], count: int) -> tuple[list[list[str]], int]:
        """The payments' features into `_vectors`; returns what was odd, and up to when all is known."""
        mirror = self._mirror
        if mirror is None:
            return self._fill_without_mirror(keys, count)
        try:
            complete_to_ms = mirror.look_up(keys)
        except MirrorAbsent:
            return self._fill_without_mirror(keys, count)
        if self._stages.is_timed:
            self._stages.lap("look_up", count)
        entities = self._entities
        presence = mirror.presence[: len(keys)].tobytes()
        self._count_lookups(presence)
        flags = [self._unknown_flags[presence[at : at + entities]] for at in range(0, len(keys), entities)]
        try:
            self._fill_from_mirror(count)
        except UnreadableProfile:
            flags = self._fill_one_by_one(mirror, flags, count)
        if self._stages.is_timed:
            self._stages.lap("vector", count)
        return flags, complete_to_ms

    def _fill_one_by_one(self, mirror: MirrorReader, flags: list[list[str]], count: int) -> list[list[str]]:
        """One of the payments has a profile that cannot be read: it is scored as if none were known of it."""
        entities = self._entities
        for row in range(count):
            items = slice(row * entities, (row + 1) * entities)
            presence = mirror.presence[items]
            bounds = mirror.bounds[items.start : items.stop + 1]
            attributes, vector = self._rows.attributes[row : row + 1], self._vectors[row : row + 1]
            try:
                self._engine.fill_vectors(attributes, presence, mirror.states, bounds, vector)
            except UnreadableProfile:
                flags[row] = [*flags[row], PROFILE_UNREADABLE]
                presence[presence == KNOWN] = UNKNOWN
                self._engine.fill_vectors(attributes, presence, mirror.states, bounds, vector)
        return flags

    def _fill_without_mirror(self, keys: Sequence[bytes | None], count: int) -> tuple[list[list[str]], int]:
        self._no_presence[: len(keys)] = [ABSENT if key is None else UNKNOWN for key in keys]
        self._fill_from_nothing(count)
        return [[MIRROR_ABSENT] for _ in range(count)], 0

    def _look_up_nothing(self) -> int:
        assert self._mirror is not None
        try:
            return self._mirror.look_up(())
        except MirrorAbsent:
            return 0

    def _count_lookups(self, presence: bytes) -> None:
        for entity, name in enumerate(self._names):
            found = presence[entity :: self._entities]
            self._metrics.mirror_lookups[name, "hit"].add(found.count(KNOWN))
            self._metrics.mirror_lookups[name, "miss"].add(found.count(UNKNOWN))

    def _count(self, responses: Sequence[ScoreResponse], scored: Scored, flags: Sequence[Sequence[str]]) -> None:
        metrics = self._metrics
        actions = [response.action for response in responses]
        for action in ACTIONS:
            if (count := actions.count(action)) > 0:
                metrics.decisions[action].add(count)
        for score, found in zip(scored.scores, flags, strict=True):
            if score is not None:
                metrics.score.observe(score)
            for flag in found:
                metrics.flags[flag].add(1)


def _known(claim: OutboxEntry | Standing) -> ScoreResponse | Refusal:
    """The result of a payment that is not to be decided now."""
    if isinstance(claim, OutboxEntry):
        return claim.response
    return refusal_of(PaymentIdReused()) if claim is Standing.OTHER_PAYMENT else UNDER_WAY


# Stands where a response will be.
_TAKEN = Refusal("", "")
