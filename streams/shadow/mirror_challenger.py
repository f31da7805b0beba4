"""A challenger with features of its own: it decides from the mirror of another catalogue's profiles.

    outbox entry: request ─► own keys ─► own mirror ─► own vector ─► model ─► policy ─► shadow record
                                                                                       champion beside it

The scorer of the workers decides (scoring/engine/scorer.py), with an outbox that keeps its records in memory. Its
decisions are marked: `is_shadow_host`.

The champion decided before the payment was in any profile. A payment is therefore compared only while that holds here,
too:

    late          it was decided more than LATE_MS ago, or the mirror is complete up to a later time
    no_profiles   there is no mirror, or nobody knows how complete it is
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import MIRROR_ABSENT, MODEL_ABSENT, Policy, flags_of
from paywarden.models.rollout.shadow import ShadowRecord, ShadowSide
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.shadow.challenger import FAILED, LATE, NO_PROFILES, Evaluated

LATE_MS = 1000
"""A payment reaches the profiles some hundred milliseconds after it is answered, or later."""
# How often it looks for a mirror that has replaced the one it reads.
_LOOK_EVERY_S = 0.5


class _Kept:
    """An outbox that keeps entries for the caller."""

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []

    @property
    def position(self) -> int:
        return 0

    def trouble(self) -> str:
        return ""

    def append_frames(self, frames: bytes) -> int:
        at = 0
        while at < len(frames):
            end = at + 8 + int.from_bytes(frames[at : at + 4], "little")
            self.entries.append(OutboxEntry.FromString(frames[at + 8 : end]))
            at = end
        return 0


class MirrorChallenger:
    """A challenger of another catalogue. Not thread-safe. A process has one for each mirror."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        policy: Policy,
        *,
        engine: FeatureEngine,
        mirror: MirrorSettings,
        decoder: RequestDecoder,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises Misconfigured if the catalogue declares fields, which no decision holds."""
        plan = engine.plan
        if plan.fields.declared:
            names = ", ".join(sorted(field.name for field in plan.fields.declared))
            raise Misconfigured(f"challenger {name}: its catalogue declares fields that no decision holds: {names}")
        self.name = name
        self._version = Version(bundle.manifest.digest, policy.digest)
        self._kept = _Kept()
        self._scorer = PaymentScorer(
            engine=engine,
            intake=decoder,
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
            policy=policy,
            mirror=mirror,
            outbox=self._kept,
            metrics=ScoringMetrics.declare(
                MetricsRegistry(), flags=flags_of(plan.entity_names), entities=plan.entity_names
            ),
            options=ScorerOptions(origins=(Origin(self._version.bundle, policy.digest), Origin("", policy.digest))),
        )
        self._now_ms, self._clock, self._look_at = now_ms, clock, 0.0

    def evaluate(self, entries: Sequence[OutboxEntry]) -> Evaluated:
        """Returns the challenger's present decision about each payment. Never raises."""
        found, now_ms = Evaluated(), self._now_ms()
        if self._clock() >= self._look_at:
            self._scorer.open_mirror()
            self._look_at = self._clock() + _LOOK_EVERY_S
        timely = [entry for entry in entries if now_ms - entry.decided_time_ms <= LATE_MS]
        found.leave_out(LATE, len(entries) - len(timely))
        self._kept.entries.clear()
        answers = self._scorer.score(Chunk([entry.request.SerializeToString() for entry in timely]), now_ms)
        decided = [entry for entry, answer in zip(timely, answers, strict=True) if isinstance(answer, bytes)]
        found.leave_out(FAILED, len(timely) - len(decided))
        for champion, made in zip(decided, self._kept.entries, strict=True):
            if reason := _unusable(champion, made, now_ms):
                found.leave_out(reason)
                continue
            try:
                found.records.append(self._record(champion, made))
            except InvalidEvent:
                # The challenger is the champion by now, say, or the champion's action is none.
                found.leave_out(FAILED)
        return found

    def close(self) -> None:
        """Close the mirror, so that another challenger of this process can open it."""
        self._scorer.close_mirror()

    def _record(self, champion: OutboxEntry, made: OutboxEntry) -> ShadowRecord:
        response = champion.response
        return ShadowRecord(
            decision_id=response.decision_id,
            payment_id=champion.request.payment_id,
            card_id=champion.request.card_id,
            decided_time_ms=champion.decided_time_ms,
            challenger_name=self.name,
            catalogue_digest=made.catalogue_digest,
            champion=ShadowSide(
                response.score,
                response.action,
                Version(champion.bundle_digest.hex(), champion.policy_digest.hex()),
            ),
            challenger=ShadowSide(made.response.score, made.response.action, self._version),
            challenger_reasons=tuple(made.response.reasons),
            is_shadow_host=True,
        )


def _unusable(champion: OutboxEntry, made: OutboxEntry, now_ms: int) -> str:
    """Returns why a decision cannot be compared with the champion's; empty if it can."""
    flags = made.response.flags
    if MODEL_ABSENT in flags:
        return FAILED
    if MIRROR_ABSENT in flags or not made.response.HasField("profile_age_ms"):
        return NO_PROFILES
    complete_to_ms = now_ms - made.response.profile_age_ms
    return LATE if complete_to_ms > champion.decided_time_ms else ""
