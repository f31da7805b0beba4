"""Turns payments into decisions. This is the hot path: its only I/O is one append to the outbox.

    payments ─► claim ids ─► look up profiles ─► feature vectors ─► model ─► policy ─► outbox ─► responses
                   └─ answered before: the same response again

For a chunk of payments:

1. `DecisionCache.claim` claims the payments' ids. A payment that was answered in the last minutes gets its earlier
   decision again and takes no further part (scoring/idempotency/decision_cache.py).
2. `MirrorReader.look_up` fetches the profiles of all payments in one transaction.
3. The compiled kernel fills one row of features for each payment, in one call. With an overlay it first adds to each
   profile the payments that this host has answered and the profile lacks (scoring/state/overlay.py).
4. The model chain scores all rows in one call (scoring/engine/model_chain.py).
5. The policy turns each score, and the flags, into an action.
6. `RecordWriter` writes responses and outbox records, and the outbox appends them in one write.
7. The claims are settled, the payments are pending in the overlay, and the responses go back to the batcher.

A batch of payments is decided whole or not at all. If one of its payments conflicts with an earlier claim, its other
claims are given back. A batch of more than ROWS_MAX payments goes through steps 2 to 5 in parts, and through step 6 at
once: the outbox takes the records of all parts in one write, or none.

Each payment is answered exactly as it would be alone, to the bit. Everything is allocated at start: on this path
nothing waits, logs or looks up a metric's label.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import AMOUNT
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.exploration import Exploration, Explored
from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE, MIRROR_STALE, Facts, Policy
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.arms import ArmSplit
from paywarden.scoring.engine.batching.batch_claims import known_answer, whole_batches
from paywarden.scoring.engine.batching.batcher import Refusal, refusal_of, units_of
from paywarden.scoring.engine.model_chain import ModelChain, Scored
from paywarden.scoring.engine.records import Origin, RequestTexts, Written, joined, tail
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.engine.vectors import ROWS_MAX, Vectors
from paywarden.scoring.idempotency.decision_cache import Claim, DecisionCache, Repeat
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics, StageTimes
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.neighbours.hops import Hops
from paywarden.scoring.state.outbox import OutboxUnsynced
from paywarden.scoring.state.overlay import Overlay


class Outbox(Protocol):
    """The log that holds every decision before its caller has the answer."""

    @property
    def position(self) -> int:
        """The position at which the next record will begin."""

    def append_frames(self, frames: bytes) -> int:
        """Append these records, all or none; they survive the death of this process. Raises TemporaryFailure."""

    def trouble(self) -> str:
        """Returns why no decision can be recorded now; empty if one can. Asks no disk."""


@dataclass(frozen=True)
class ScorerOptions:
    """The optional parts of a scorer."""

    # The decision cache. Without it a repeated payment is decided anew.
    answered: DecisionCache | None = None
    stages: StageTimes | None = None
    # Approves a small random share of the payments that would be declined; None: no payment.
    exploration: Exploration | None = None
    # Without it, payments see the mirror's profiles alone. It must have room for ROWS_MAX payments.
    overlay: Overlay | None = None
    # Without it, the mirror is taken to hold every card.
    held_cards: HeldCards | None = None


NO_OPTIONS = ScorerOptions()


class PaymentScorer:
    """Scores payments. A process has one; it is not thread-safe. See the module for the steps."""

    def __init__(
        self,
        *,
        engine: FeatureEngine,
        models: ModelChain,
        policy: Policy,
        mirror: MirrorSettings,
        outbox: Outbox,
        metrics: ScoringMetrics,
        origins: Sequence[Origin] = (),
        options: ScorerOptions = NO_OPTIONS,
    ) -> None:
        """`origins`: the origin (bundle, policy, arm) in each record; see `served`. Empty: records have no origin."""
        plan = engine.plan
        answered, overlay, held_cards = options.answered, options.overlay, options.held_cards
        self._stages = options.stages or StageTimes(MetricsRegistry())
        # One object for all payments; each payment overwrites it.
        self._facts = Facts(ScoreRequest(), 0, np.zeros(0, dtype=np.float32), None, ())
        self._answered = answered
        self._engine, self._outbox, self._metrics = engine, outbox, metrics
        self._profile_set = ""
        self._exploration, self._overlay, self._holds_every_card = options.exploration, overlay, held_cards is None
        # In a rollout: the candidate, with its share of the cards.
        self._candidate: Served | None = None
        self._split: ArmSplit | None = None
        self._entities, self._names = plan.entity_count, plan.entity_names
        self._features = Vectors(
            engine, mirror, metrics=metrics, stages=self._stages, overlay=overlay, held_cards=held_cards
        )
        self._rows, self._vectors = self._features.rows, self._features.vectors
        self._serving = self.served(models, policy, origins)
        self.open_mirror()

    @property
    def serving(self) -> Served:
        """The model and policy that decide now."""
        return self._serving

    def served(
        self,
        models: ModelChain,
        policy: Policy,
        origins: Sequence[Origin] = (),
        rest: Callable[[], object] = lambda: None,
    ) -> Served:
        """Returns a model and a policy made ready for `take_up`. Another thread may call it.

        `origins`: one for each model of the chain, and the last for decisions without a model. Empty: records have no
        origin. `rest` is called between two steps.
        """
        known = [replace(origin, profile_set=self._profile_set) for origin in origins]
        return Served(
            models,
            policy,
            known or [Origin()] * len(models.versions),
            vectors=self._vectors,
            catalogue_digest=self._engine.plan.digest,
            usual_flags=self._features.usual_flags,
            explored_share=0.0 if self._exploration is None else self._exploration.share,
            rest=rest,
        )

    @property
    def parts(self) -> ScorerParts:
        """The parts that a faster path through the same steps uses (scoring/engine/one_call.py)."""
        return ScorerParts(
            self._engine,
            self._outbox,
            self._metrics,
            self._answered,
            self._stages,
            self._vectors,
            self._features.unknown_flags,
            self._overlay,
            self._features.hops,
        )

    @property
    def usual_mirror(self) -> MirrorReader | None:
        """The mirror, if it has every card and the serving model alone decides; else None.

        "Alone" means no candidate and no exploration. An overlay must have its table; without marks it says so itself.
        """
        # It is asked for each chunk, so it makes nothing.
        if self._split is not None or self._exploration is not None or not self._holds_every_card:
            return None
        return self._features.mirror if self._overlay is None or self._overlay.has_table else None

    def tail_of(self, serving: Served, row: int, score: float, flags: tuple[str, ...], others: list[str]) -> int:
        """Ask a policy without conditions about one payment, whose vector is in `row`; returns its tail's number.

        The primary model gave the score. `others` gets the action, if it is not "approve".
        """
        return self._tail(serving, _NO_PAYMENTS, row, score, 0, flags, others, 0)

    def take_up(self, served: Served) -> Served:
        """Decide with this from the next chunk on; returns the one before. Call it between two chunks."""
        before, self._serving = self._serving, served
        self._note_profile_set()
        return before

    def divide(self, candidate: Served | None, split: ArmSplit | None = None) -> None:
        """Let `candidate` decide about its share of the cards from the next chunk on; None: about none.

        Call it between two chunks. Where the catalogue has no entity "card", it decides about none either.
        """
        self._split = split if candidate is not None and "card" in self._names else None
        self._candidate = candidate
        self._note_profile_set()

    def readiness(self) -> list[str]:
        """Returns one line for each thing that is missing before payments should come here; empty when ready."""
        missing = [trouble] if (trouble := self._outbox.trouble()) else []
        if self._features.mirror is None:
            self.open_mirror()
        if absent := self._features.missing():
            missing.append(absent)
        return missing

    def open_mirror(self) -> bool:
        """Open the mirror, or a new mirror that has replaced it. Returns False when there is none that can be used.

        The worker calls it every half second, never per payment.
        """
        if not self._features.open():
            return False
        self._note_profile_set()
        return True

    def close_mirror(self) -> None:
        """Close the mirror. Payments get the flag mirror_absent until `open_mirror` is called."""
        self._features.close()

    def _note_profile_set(self) -> None:
        """Let records name the profile set that the mirror was filled from."""
        if (mirror := self._features.mirror) is not None:
            self._profile_set = mirror.profile_set()
        self._serving = self._renamed(self._serving)
        if self._candidate is not None:
            self._candidate = self._renamed(self._candidate)

    def _renamed(self, served: Served) -> Served:
        origin = served.origins[0]
        if not origin.policy_digest or origin.profile_set == self._profile_set:
            return served
        return self.served(served.models, served.policy, served.origins)

    def score_many(
        self, payments: CheckedPayments, now_ms: int, batches: Sequence[range] = ()
    ) -> Sequence[bytes | Refusal]:
        """Returns a serialised ScoreResponse or a refusal for each payment; see batcher.Scorer."""
        if len(payments) <= ROWS_MAX:
            return self._score(payments, now_ms, batches)
        results: list[bytes | Refusal] = []
        for part in _parts(len(payments), batches):
            own = [
                range(batch.start - part.start, batch.stop - part.start)
                for batch in batches
                if part.start <= batch.start < part.stop
            ]
            results += self._score(payments.chosen(part), now_ms, own)
        return results

    def _score(self, payments: CheckedPayments, now_ms: int, batches: Sequence[range]) -> Sequence[bytes | Refusal]:
        """Score payments whose decisions are appended together. When the outbox cannot take them, all are refused."""
        try:
            return self._score_new(payments, now_ms, batches)
        except TemporaryFailure as error:
            return [refusal_of(error)] * len(payments)

    def _score_new(self, payments: CheckedPayments, now_ms: int, batches: Sequence[range]) -> Sequence[bytes | Refusal]:
        """Decide the payments that are new, and repeat the earlier answer of the others. Raises TemporaryFailure."""
        if self._answered is None:
            return self._decide(payments, (), now_ms)
        claims = self._answered.claim(payments)
        if self._stages.is_timed:
            self._stages.lap("claim", len(payments))
        return self._score_claimed(self._answered, payments, claims, now_ms, batches)

    def score_claimed(
        self, payments: CheckedPayments, now_ms: int, batches: Sequence[range] = ()
    ) -> Sequence[bytes | Refusal]:
        """Do as `score_many`, for at most ROWS_MAX payments that the decision cache's loop has just claimed."""
        try:
            if self._answered is None:
                return self._decide(payments, (), now_ms)
            claims = self._answered.claimed(payments)
            return self._score_claimed(self._answered, payments, claims, now_ms, batches)
        except TemporaryFailure as error:
            return [refusal_of(error)] * len(payments)

    def _score_claimed(
        self,
        answered: DecisionCache,
        payments: CheckedPayments,
        claims: Sequence[Claim | Refusal],
        now_ms: int,
        batches: Sequence[range],
    ) -> Sequence[bytes | Refusal]:
        """Decide the payments whose claims were won. Raises TemporaryFailure."""
        slots = [claim for claim in claims if isinstance(claim, int)]
        are_new = len(slots) == len(claims)
        if not are_new:
            if batches:
                claims, given_back = whole_batches(claims, batches)
                answered.release(given_back)
                slots = [claim for claim in claims if isinstance(claim, int)]
            payments = payments.chosen([index for index, claim in enumerate(claims) if isinstance(claim, int)])
        try:
            decided = self._decide(payments, slots, now_ms)
        except BaseException:
            answered.release(slots)
            raise
        if are_new:
            return decided
        following = iter(decided)
        results: list[bytes | Refusal] = []
        for claim in claims:
            if isinstance(claim, int):
                results.append(next(following))
            else:
                results.append(results[claim.index] if isinstance(claim, Repeat) else known_answer(claim))
        return results

    def _decide(self, payments: CheckedPayments, slots: Sequence[int], now_ms: int) -> list[bytes]:
        """Decide payments and append all decisions in one write: the outbox has all of them, or none.

        `slots` are their claims; empty without a decision cache.
        """
        count = len(payments)
        if count == 0:
            return []
        if self._split is not None:
            return self._decide_divided(payments, slots, now_ms, self._split)
        if count <= ROWS_MAX:
            made = self._make(payments, now_ms)
            written = made.written
            self._append(written, slots)
            self._count(made)
        else:
            parts = [
                self._make(payments.chosen(range(first, min(first + ROWS_MAX, count))), now_ms)
                for first in range(0, count, ROWS_MAX)
            ]
            written = joined(part.written for part in parts)
            self._append(written, slots)
            for part in parts:
                self._count(part)
        if self._overlay is not None:
            self._overlay.add(payments.keys, payments.ids, payments.rows, now_ms)
        if self._stages.is_timed:
            self._stages.lap("append", count)
        return written.responses

    def _decide_divided(
        self, payments: CheckedPayments, slots: Sequence[int], now_ms: int, split: ArmSplit
    ) -> list[bytes]:
        """Decide as `_decide`, each payment by the arm of its card. All decisions are appended in one write."""
        assert self._candidate is not None
        card, begun_s = self._names.index("card"), time.perf_counter()
        arms = split.places(payments.keys[card :: self._entities])
        parts: list[_Made] = []
        for serving, indexes in zip((self._serving, self._candidate), arms, strict=True):
            parts += [
                self._make(payments.chosen(indexes[first : first + ROWS_MAX]), now_ms, serving, begun_s)
                for first in range(0, len(indexes), ROWS_MAX)
            ]
        order = [*arms[0], *arms[1]]
        written = joined(part.written for part in parts)
        self._append(written, [slots[index] for index in order] if slots else ())
        for part in parts:
            self._count(part)
        if self._overlay is not None:
            self._overlay.add(payments.keys, payments.ids, payments.rows, now_ms)
        if self._stages.is_timed:
            self._stages.lap("append", len(order))
        responses = [b""] * len(order)
        for index, response in zip(order, written.responses, strict=True):
            responses[index] = response
        return responses

    def _make(
        self, payments: CheckedPayments, now_ms: int, serving: Served | None = None, begun_s: float | None = None
    ) -> _Made:
        """Decide at most ROWS_MAX payments. Nothing is appended yet.

        `begun_s`: when the decisions of all arms of a rollout began. The latency in a record leaves out the time
        between that and now, which was the other arm's work.
        """
        count, serving = len(payments), serving or self._serving
        others_s = 0.0 if begun_s is None else time.perf_counter() - begun_s
        stages = self._stages
        flags, complete_to_ms = self._features.fill(payments)
        profile_age_ms = None
        if complete_to_ms > 0:
            profile_age_ms = max(0, now_ms - complete_to_ms)
            self._metrics.mirror_age_seconds.set(profile_age_ms / 1000)
            if profile_age_ms > serving.stale_after_ms:
                flags = [(*payment_flags, MIRROR_STALE) for payment_flags in flags]
        scored = serving.score_vectors(count)
        if stages.is_timed:
            stages.lap("model", count)
        if any(scored.flags):
            flags = [
                (*payment_flags, *model_flags) for payment_flags, model_flags in zip(flags, scored.flags, strict=True)
            ]
        tails, others = self._tails(serving, payments, scored, flags, now_ms)
        texts = RequestTexts(payments.bodies, payments.ids, payments.callers, payments.arrivals, payments.traces)
        decided_s = time.perf_counter() - others_s
        written = serving.writer.write(texts, scored.scores, tails, profile_age_ms, now_ms, decided_s)
        if stages.is_timed:
            stages.lap("decide", count)
        return _Made(written, scored, flags, others)

    def _tails(
        self, serving: Served, payments: CheckedPayments, scored: Scored, flags: Sequence[tuple[str, ...]], now_ms: int
    ) -> tuple[list[int], list[str]]:
        """Returns the number of each response's tail (see records.py), and the actions other than "approve"."""
        others: list[str] = []
        serving.writer.begin()
        approved, below = serving.approved, serving.approved_below
        # The kept tails name the version of the primary model.
        if any(scored.models):
            approved = {}
        tails = []
        for row, (score, payment_flags) in enumerate(zip(scored.scores, flags, strict=True)):
            tail_number = approved.get(payment_flags)
            if tail_number is None or score is None or score >= below:
                tail_number = self._tail(
                    serving, payments, row, score, scored.models[row], payment_flags, others, now_ms
                )
            tails.append(tail_number)
        return tails, others

    def _tail(
        self,
        serving: Served,
        payments: CheckedPayments,
        row: int,
        score: float | None,
        model: int,
        flags: tuple[str, ...],
        others: list[str],
        now_ms: int,
    ) -> int:
        """Ask the policy about one payment; returns its tail's number. `others` gets actions other than "approve"."""
        facts, vector, policy = self._facts, self._vectors[row], serving.policy
        if policy.has_conditions:
            amount = int(self._rows[row, AMOUNT])
            facts.payment, facts.amount, facts.vector = payments.facts_of(row), amount if amount >= 0 else None, vector
        facts.score, facts.flags = score, flags
        action, reasons = policy.decide(facts)
        propensity = 1.0
        if action != ACTIONS[APPROVE]:
            reasons += serving.models.reasons(vector, model, policy.reason_features_max)
            if self._exploration is not None and action == ACTIONS[DECLINE]:
                action, reasons, propensity = self._explore(self._exploration, payments, row, reasons, now_ms)
            if action != ACTIONS[APPROVE]:
                others.append(action)
        return serving.writer.add_tail(
            tail(action, reasons, serving.models.versions[model], flags), serving.origin_of(model, propensity)
        )

    def _explore(
        self, exploration: Exploration, payments: CheckedPayments, row: int, reasons: list[str], now_ms: int
    ) -> Explored:
        """Returns the action for a payment that the policy declines. The money is spent when this returns."""
        amount = int(self._rows[row, AMOUNT])
        explored = exploration.explore(
            ACTIONS[DECLINE], reasons, payment_id=payments.ids[row].decode(), amount=amount, now_ms=now_ms
        )
        if explored.action == ACTIONS[APPROVE]:
            self._metrics.explored.add(1)
            self._metrics.explored_minor.add(amount)
        return explored

    def _append(self, written: Written, slots: Sequence[int]) -> None:
        """Append records to the outbox. Their claims point to them, so that a repeated payment finds its decision."""
        if self._answered is None:
            self._outbox.append_frames(written.frames)
            return
        begun = self._outbox.position
        self._answered.place(slots, [begun + start for start in written.starts])
        try:
            self._outbox.append_frames(written.frames)
        except OutboxUnsynced:
            # The companion ships these records, so a payment that is asked for again must get its decision of now.
            self._answered.settle(slots)
            raise
        self._answered.settle(slots)

    def _count(self, made: _Made) -> None:
        """Count decisions that are appended."""
        metrics = self._metrics
        metrics.decisions[ACTIONS[APPROVE]].add(len(made.flags) - len(made.others))
        for action in made.others:
            metrics.decisions[action].add(1)
        metrics.score.observe_all([score for score in made.scored.scores if score is not None])
        if any(made.flags):
            for payment_flags in made.flags:
                for flag in payment_flags:
                    metrics.flags[flag].add(1)


class ScorerParts(NamedTuple):
    """The parts of a scorer that stay the same when the model is swapped."""

    engine: FeatureEngine
    outbox: Outbox
    metrics: ScoringMetrics
    answered: DecisionCache | None
    stages: StageTimes
    vectors: NDArray[np.float32]
    unknown_flags: Mapping[bytes, tuple[str, ...]]
    """The flags of a payment, by ABSENT, UNKNOWN or KNOWN of each of its entities."""
    overlay: Overlay | None
    hops: Hops
    """What neighbours say about the chunk's payments."""


# A policy without conditions reads nothing of a payment.
_NO_PAYMENTS = CheckedPayments([], [], [], np.zeros((0, 0), dtype=np.int64))


class _Made(NamedTuple):
    """The decisions about at most ROWS_MAX payments. `others` are the actions other than "approve"."""

    written: Written
    scored: Scored
    flags: Sequence[tuple[str, ...]]
    others: Sequence[str]


def _parts(count: int, batches: Sequence[range]) -> Iterator[range]:
    """Cut `count` payments into parts of at most ROWS_MAX. A batch is never cut: a longer one is a part of its own."""
    begun = 0
    for unit in units_of(count, batches):
        if unit.stop - begun > ROWS_MAX and unit.start > begun:
            yield range(begun, unit.start)
            begun = unit.start
    yield range(begun, count)
