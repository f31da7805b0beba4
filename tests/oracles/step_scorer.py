"""Scores payments step by step, in Python: the oracle of the compiled call.

    payments ─► claim ids ─► look up profiles ─► feature vectors ─► model ─► policy ─► outbox ─► responses
                   └─ answered before: the same response again

Each step takes all payments of a chunk and is a few lines. `StepScorer` has the parts of a worker's scorer and leaves
behind the same answers, records, claims and counts, to the bit. Only a rollout's candidate differs: here each arm
writes its own records.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from paywarden.features.kernel import AMOUNT
from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE, MIRROR_STALE
from paywarden.schemas.errors import TemporaryFailure
from paywarden.scoring.engine.batching.batch_claims import known_answer, whole_batches
from paywarden.scoring.engine.batching.batcher import Chunk, Refusal, refusal_of
from paywarden.scoring.engine.model_chain import Scored
from paywarden.scoring.engine.records import tail
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.idempotency.decision_cache import Claim, Repeat
from paywarden.scoring.metrics.shared_metrics import MetricHistogram
from paywarden.scoring.state.outbox import OutboxUnsynced
from tests.oracles.claims import claim_all, place_all
from tests.oracles.reading import read_first
from tests.oracles.step_decoder import CheckedPayments, StepDecoder
from tests.oracles.step_overlay import StepOverlay
from tests.oracles.step_records import RequestTexts, Written, write
from tests.oracles.step_vectors import StepVectors


class StepScorer(PaymentScorer):
    """A worker's scorer that makes each step of a chunk in Python.

    It has no candidate, a StepDecoder, and a StepOverlay where it has one.
    """

    def __init__(self, *, options: ScorerOptions, **parts: Any) -> None:
        super().__init__(options=options, **parts)
        self._features = self._steps = StepVectors(
            parts["engine"],
            parts["mirror"],
            self._rows,
            metrics=parts["metrics"],
            stages=self._stages,
            overlay=options.overlay,
            held_cards=options.held_cards,
        )
        # The serving model scores the vectors of before.
        self._features.vectors = self._vectors
        self.open_mirror()

    def score(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Read and check the requests; refuse the wrong ones, each with its batch; score the others."""
        return read_first(self, cast(StepDecoder, self._intake), chunk, now_ms)

    def score_many(
        self, payments: CheckedPayments, now_ms: int, batches: Sequence[range] = ()
    ) -> Sequence[bytes | Refusal]:
        """Score payments whose decisions are appended together. When the outbox cannot take them, all are refused."""
        try:
            if self._answered is None:
                return self._decide_all(payments, (), now_ms)
            claims = claim_all(self._answered, payments)
            if self._stages.is_timed:
                self._stages.lap("claim", len(payments))
            return self._answer(payments, claims, now_ms, batches)
        except TemporaryFailure as error:
            return [refusal_of(error)] * len(payments)

    def _answer(
        self, payments: CheckedPayments, claims: Sequence[Claim | Refusal], now_ms: int, batches: Sequence[range]
    ) -> Sequence[bytes | Refusal]:
        """Decide the payments whose claims were won, and repeat the earlier answer of the others."""
        assert self._answered is not None
        if batches and not all(isinstance(claim, int) for claim in claims):
            claims, given_back = whole_batches(claims, batches)
            self._answered.release(given_back)
        slots = [claim for claim in claims if isinstance(claim, int)]
        won = payments.chosen([index for index, claim in enumerate(claims) if isinstance(claim, int)])
        try:
            decided = iter(self._decide_all(won, slots, now_ms))
        except BaseException:
            self._answered.release(slots)
            raise
        results: list[bytes | Refusal] = []
        for claim in claims:
            if isinstance(claim, int):
                results.append(next(decided))
            else:
                results.append(results[claim.index] if isinstance(claim, Repeat) else known_answer(claim))
        return results

    def _decide_all(self, payments: CheckedPayments, slots: Sequence[int], now_ms: int) -> list[bytes]:
        """Decide payments and append all decisions in one write: the outbox has all of them, or none.

        `slots` are their claims; empty without a decision cache.
        """
        if len(payments) == 0:
            return []
        made = self._make(payments, now_ms)
        self._append(made.written, slots)
        self._count(made)
        if self._overlay is not None:
            cast(StepOverlay, self._overlay).add(payments.keys, payments.ids, payments.rows, now_ms)
        if self._stages.is_timed:
            self._stages.lap("append", len(payments))
        return made.written.responses

    def _make(self, payments: CheckedPayments, now_ms: int) -> _Made:
        """Decide payments. Nothing is appended yet."""
        count, serving, stages = len(payments), self._serving, self._stages
        flags, complete_to_ms = self._steps.fill(payments)
        profile_age_ms = None
        if complete_to_ms > 0:
            profile_age_ms = max(0, now_ms - complete_to_ms)
            self._metrics.mirror_age_seconds.set(profile_age_ms / 1000)
            if profile_age_ms > serving.stale_after_ms:
                flags = [(*payment_flags, MIRROR_STALE) for payment_flags in flags]
        scored = serving.score_vectors(count)
        if stages.is_timed:
            stages.lap("model", count)
        flags = [(*payment_flags, *of_model) for payment_flags, of_model in zip(flags, scored.flags, strict=True)]
        serving.writer.begin()
        others: list[str] = []
        tails = [
            self._tail_of(serving, payments, row, scored, payment_flags, others, now_ms)
            for row, payment_flags in enumerate(flags)
        ]
        texts = RequestTexts(payments.bodies, payments.ids, payments.callers, payments.arrivals, payments.traces)
        written = write(serving.writer, texts, scored.scores, tails, profile_age_ms, now_ms, time.perf_counter())
        if stages.is_timed:
            stages.lap("decide", count)
        return _Made(written, scored, flags, others)

    def _tail_of(
        self,
        serving: Served,
        payments: CheckedPayments,
        row: int,
        scored: Scored,
        flags: tuple[str, ...],
        others: list[str],
        now_ms: int,
    ) -> int:
        """Ask the policy about one payment; returns its tail's number. `others` gets actions other than "approve"."""
        facts, vector, policy, model = self._facts, self._vectors[row], serving.policy, scored.models[row]
        amount = int(self._features.rows[row, AMOUNT])
        facts.payment, facts.amount, facts.vector = payments.facts_of(row), amount if amount >= 0 else None, vector
        facts.score, facts.flags = scored.scores[row], flags
        action, reasons = policy.decide(facts)
        propensity = 1.0
        if action != ACTIONS[APPROVE]:
            reasons += serving.models.reasons(vector, model, policy.reason_features_max)
            if self._exploration is not None and action == ACTIONS[DECLINE]:
                payment_id = payments.ids[row].decode()
                action, reasons, propensity = self._exploration.explore(
                    ACTIONS[DECLINE],
                    reasons,
                    payment_id=payment_id,
                    amount=amount,
                    now_ms=now_ms,
                    share=policy.explored_share(facts.score, self._exploration.share),
                )
                if action == ACTIONS[APPROVE]:
                    self._metrics.explored.add(1)
                    self._metrics.explored_minor.add(amount)
            if action != ACTIONS[APPROVE]:
                others.append(action)
        return serving.writer.add_tail(
            tail(action, reasons, serving.models.versions[model], flags), serving.origin_of(model, propensity)
        )

    def _append(self, written: Written, slots: Sequence[int]) -> None:
        """Append records to the outbox. Their claims point to them, so that a repeated payment finds its decision."""
        if self._answered is None:
            self._outbox.append_frames(written.frames)
            return
        begun = self._outbox.position
        place_all(self._answered, slots, [begun + start for start in written.starts])
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
        _observe(metrics.score, [score for score in made.scored.scores if score is not None])
        if any(made.flags):
            for payment_flags in made.flags:
                for flag in payment_flags:
                    metrics.flags[flag].add(1)


class _Made(NamedTuple):
    """The decisions about a chunk's payments. `others` are the actions other than "approve"."""

    written: Written
    scored: Scored
    flags: Sequence[tuple[str, ...]]
    others: Sequence[str]


def _observe(histogram: MetricHistogram, values: Sequence[float]) -> None:
    """Count each of `values`. Not with `sum`, which in some versions adds floats more exactly than compiled code."""
    total = 0.0
    for value in values:
        histogram.slots[histogram._index + bisect_left(histogram.bounds, value)] += 1
        total += value
    histogram.slots[histogram._sum_index] += int(total * histogram.per_unit)
