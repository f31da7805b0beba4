"""Turns payments into decisions. This is the hot path: its only I/O is one append to the outbox.

    bodies ─► read ─► claim ids ─► look up ─► vectors ─► model ─► tails ─► records ─► outbox ─► settle ─► responses
              └────────────────── one compiled call ───────────────────────────┘

One compiled call (scoring/engine/chunk_call.py) takes a chunk of payments from their bytes to their outbox records.
Where a payment needs Python, the call ends, Python does that step, and calls again from the following step on:

1. *Read.* Python says why a request is wrong (scoring/requests/decoder.py). The others go on, also one that the
   compiled reader has left out although it is right, such as one with a name in UTF-8.
2. *Claim.* If a payment is known, or another worker decides about it, the decision cache answers it
   (scoring/idempotency/decision_cache.py). The others go on.
3. *Vectors.* If there is no mirror, or a profile cannot be read, scoring/engine/vectors.py helps.
4. *Model.* A model that is no native library, or that fails, is asked in Python (scoring/engine/model_chain.py). In a
   rollout the candidate scores the payments of its share of the cards.
5. *Policy.* A payment without a kept response goes to the policy: one that is not approved, one with other flags than
   usual, every payment of a policy with conditions. Exploration may then approve a payment that it declines.
6. The outbox appends all records of the chunk in one write, or none. Then the claims are settled, the payments are
   pending in the overlay (scoring/state/overlay/overlay.py), and the responses go back to the batcher.

A batch of payments is decided whole or not at all. If one of its payments is wrong or conflicts with an earlier claim,
its other claims are given back.

Each payment is answered exactly as it would be alone, to the bit. Everything is allocated at start: on this path
nothing waits, logs or looks up a metric's label.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from paywarden.features.kernel import AMOUNT
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.exploration import Exploration, Explored
from paywarden.models.policy.policy import (
    ACTIONS,
    APPROVE,
    DECLINE,
    MIRROR_ABSENT,
    MIRROR_STALE,
    OVERLAY_ABSENT,
    PROFILE_UNREADABLE,
    UNKNOWN_RATE,
    Facts,
    Policy,
)
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine import chunk_call as loop
from paywarden.scoring.engine.arms import ArmSplit
from paywarden.scoring.engine.batching.batch_claims import known_answer, whole_batches
from paywarden.scoring.engine.batching.batcher import NOT_DECIDED, Chunk, Refusal, refusal_of, units_of
from paywarden.scoring.engine.chunk_frame import ChunkFrame
from paywarden.scoring.engine.model_chain import ModelChain, Scored
from paywarden.scoring.engine.records import Origin, tail
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.engine.vectors import ROWS_MAX, Vectors
from paywarden.scoring.idempotency.decision_cache import Claim, DecisionCache, Repeat
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics, StageTimes
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.outbox import OutboxUnsynced
from paywarden.scoring.state.overlay.overlay import Overlay

_LAPS = (
    *(("parse", loop.PARSED), ("claim", loop.CLAIMED), ("look_up", loop.LOOKED_UP)),
    *(("vector", loop.FILLED_AT), ("model", loop.SCORED), ("decide", loop.DECIDED)),
)


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

    # The decision cache. Without it a repeated payment is decided again.
    answered: DecisionCache | None = None
    stages: StageTimes | None = None
    # Approves a small random share of the payments that would be declined; None: no payment.
    exploration: Exploration | None = None
    # Without it, payments see the mirror's profiles alone. It must have room for ROWS_MAX payments.
    overlay: Overlay | None = None
    # Without it, the mirror is taken to hold every card.
    held_cards: HeldCards | None = None
    # The origin (bundle, policy, arm) in each record; see `PaymentScorer.served`. Empty: records have no origin.
    origins: Sequence[Origin] = ()


NO_OPTIONS = ScorerOptions()


class PaymentScorer:
    """Scores payments. A process has one; it is not thread-safe. See the module for the steps."""

    def __init__(
        self,
        *,
        engine: FeatureEngine,
        intake: RequestDecoder,
        models: ModelChain,
        policy: Policy,
        mirror: MirrorSettings,
        outbox: Outbox,
        metrics: ScoringMetrics,
        options: ScorerOptions = NO_OPTIONS,
    ) -> None:
        """`intake` serves this scorer alone."""
        plan = engine.plan
        answered, overlay, held_cards = options.answered, options.overlay, options.held_cards
        self._stages = options.stages or StageTimes(MetricsRegistry())
        # One object for all payments; each payment overwrites it.
        self._facts = Facts(ScoreRequest(), 0, np.zeros(0, dtype=np.float32), None, ())
        self._answered = answered
        self._engine, self._outbox, self._metrics, self._intake = engine, outbox, metrics, intake
        self._profile_set = ""
        self._exploration, self._overlay, self._held_cards = options.exploration, overlay, held_cards
        # In a rollout: the candidate, with its share of the cards.
        self._candidate: Served | None = None
        self._split: ArmSplit | None = None
        self._entities, self._names = plan.entity_count, plan.entity_names
        self._rows = intake.fast.arrays["rows"]
        self._features = Vectors(engine, mirror, self._rows, overlay=overlay, held_cards=held_cards)
        self._vectors = self._features.vectors
        self._frame = ChunkFrame(engine, intake, self._features, metrics, answered, overlay)
        self._numbers = self._frame.numbers
        self._serving = self.served(models, policy, options.origins)
        self._writer = self._serving.writer
        # The present chunk: the flags of each payment where Python makes them, the payments of which a profile cannot
        # be read, and its keys and ids.
        self._flags: list[tuple[str, ...]] | None = None
        self._unreadable = set[int]()
        self._read: CheckedPayments | None = None
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
    ) -> Served:
        """Returns a model and a policy made ready for `take_up`.

        `origins`: one for each model of the chain, and the last for decisions without a model. Empty: records have no
        origin.
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
        )

    def take_up(self, served: Served) -> Served:
        """Decide with this from the next chunk on; returns the one before. Call it between two chunks."""
        before, self._serving = self._serving, served
        self._note_profile_set()
        self._take_writer()
        return before

    def divide(self, candidate: Served | None, split: ArmSplit | None = None) -> None:
        """Let `candidate` decide about its share of the cards from the next chunk on; None: about none.

        Call it between two chunks. Where the catalogue has no entity "card", it decides about none either.
        """
        self._split = split if candidate is not None and "card" in self._names else None
        self._candidate = candidate
        self._note_profile_set()
        self._take_writer()

    def _take_writer(self) -> None:
        """Take the writer of the serving model; in a rollout one that knows the candidate's origins, too."""
        self._writer = self._serving.writer
        if self._split is not None and self._candidate is not None:
            self._writer = self._writer.joint(self._candidate.writer, os.urandom(8).hex())

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
        before = self._serving, self._candidate
        self._serving = self._renamed(self._serving)
        if self._candidate is not None:
            self._candidate = self._renamed(self._candidate)
        if before != (self._serving, self._candidate):
            self._take_writer()

    def _renamed(self, served: Served) -> Served:
        origin = served.origins[0]
        if not origin.policy_digest or origin.profile_set == self._profile_set:
            return served
        return self.served(served.models, served.policy, served.origins)

    def score(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Returns a serialised ScoreResponse or a refusal for each payment; see batcher.Scorer."""
        count, frame = len(chunk.bodies), self._frame
        if count == 0:
            return []
        if count > ROWS_MAX:
            parts = map(chunk.chosen, _parts(count, chunk.batches))
            return [result for part in parts for result in self.score(part, now_ms)]
        self._numbers[loop.NOW_MS] = now_ms
        status = loop.decide_chunk(frame.address, count, loop.FROM_READ) if self._put(chunk, now_ms) else loop.UNUSUAL
        return self._score_read(chunk, now_ms, status) if status != loop.UNUSUAL else self._score_unread(chunk, now_ms)

    def _put(self, chunk: Chunk, now_ms: int) -> bool:
        """Begin a chunk. Returns whether the compiled reader can read it."""
        numbers, writer, is_timed = self._numbers, self._writer, self._stages.is_timed
        self._flags = self._read = None
        self._unreadable.clear()
        self._frame.look(self._serving, writer)
        is_put = self._frame.put(chunk, now_ms)
        numbers[loop.DECISION], numbers[loop.OUTBOX_POSITION] = writer.decision, self._outbox.position
        numbers[loop.IS_TIMED], numbers[loop.NOT_APPROVED], numbers[loop.IS_FLAGGED] = is_timed, 0, 0
        numbers[loop.STOPS] = self._split is not None or not (self._held_cards is None or self._held_cards.are_all)
        if is_timed:
            for place in range(loop.LAP_COUNT):
                self._frame.laps[place] = 0
        return is_put

    def _score_unread(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Score a chunk that the compiled reader cannot read whole. Wrong requests are refused, the others scored."""
        intake, count = self._intake, len(chunk.bodies)
        is_usual = intake.fast.usual(count) if intake.fast.fits else bytes(count)
        bodies, wrong = [*chunk.bodies], dict[int, InvalidEvent]()
        for place in (place for place, usual in enumerate(is_usual) if not usual):
            try:
                bodies[place] = intake.checked(bodies[place], now_ms)
            except InvalidEvent as error:
                wrong[place] = error
        chunk = chunk._replace(bodies=bodies)
        if not wrong:
            return self._score_right(chunk, now_ms)
        spoilt = {place for batch in chunk.batches if not wrong.keys().isdisjoint(batch) for place in batch}
        results: list[bytes | Refusal] = [
            refusal_of(wrong[place]) if place in wrong else NOT_DECIDED for place in range(count)
        ]
        right = [place for place in range(count) if place not in wrong and place not in spoilt]
        if right:
            for place, result in zip(right, self._score_right(chunk.chosen(right), now_ms), strict=True):
                results[place] = result
        return results

    def _score_right(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Score payments whose requests are right, whether the compiled reader takes them or not."""
        self._put_right(chunk, now_ms)
        return self._score_read(chunk, now_ms, self._go_on(chunk, loop.FROM_CLAIM))

    def _put_right(self, chunk: Chunk, now_ms: int) -> None:
        self._put(chunk, now_ms)
        self._intake.read_right(chunk.bodies)
        self._frame.make_room(len(chunk.bodies))

    def _go_on(self, chunk: Chunk, step: int) -> int:
        return loop.decide_chunk(self._frame.address, len(chunk.bodies), step)

    def _score_read(self, chunk: Chunk, now_ms: int, status: int) -> Sequence[bytes | Refusal]:
        """Score payments that are read. If their decisions cannot be recorded, all are refused."""
        try:
            if status == loop.CLAIMED_BEFORE:
                return self._score_claimed(chunk, now_ms)
            return self._decide(chunk, now_ms, status)
        except TemporaryFailure as error:
            return [refusal_of(error)] * len(chunk.bodies)

    def _score_claimed(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Decide the payments whose claims were won, and answer the others. Raises TemporaryFailure."""
        answered = self._answered
        assert answered is not None
        claims: Sequence[Claim | Refusal] = answered.claimed(self._payments(chunk))
        if chunk.batches:
            claims, given_back = whole_batches(claims, chunk.batches)
            answered.release(given_back)
        won = [place for place, claim in enumerate(claims) if isinstance(claim, int)]
        slots = [claim for claim in claims if isinstance(claim, int)]
        try:
            if len(won) < len(claims):
                chunk = chunk.chosen(won)
                if won:
                    self._put_right(chunk, now_ms)
            answered.put_slots(slots)
            decided = iter(self._decide(chunk, now_ms, self._go_on(chunk, loop.FROM_LOOK_UP)) if won else ())
        except BaseException:
            answered.release(slots)
            raise
        results: list[bytes | Refusal] = []
        for claim in claims:
            if isinstance(claim, int):
                results.append(next(decided))
            else:
                results.append(results[claim.index] if isinstance(claim, Repeat) else known_answer(claim))
        return results

    def _decide(self, chunk: Chunk, now_ms: int, status: int) -> list[bytes]:
        """Take the payments from where the call has ended to their answers. Raises TemporaryFailure."""
        count, writer, answered, others = len(chunk.bodies), self._writer, self._answered, list[str]()
        try:
            if status != loop.DONE and self._judge(chunk, now_ms, status, others):
                self._numbers[loop.NOT_APPROVED] = len(others)
                self._frame.make_room(count)
                loop.write_chunk(self._frame.address, count)
            frames = writer.frames(count, self._numbers[loop.SIZE])
            if self._stages.is_timed:
                self._note_laps(count)
            try:
                self._outbox.append_frames(frames)
            except OutboxUnsynced:
                # The companion ships the records that are there, so their payments must keep the decision of now. A
                # settled claim without a record is taken over.
                if answered is not None:
                    answered.settle(answered.slots_of(count))
                raise
        except BaseException:
            if answered is not None:
                answered.release(answered.slots_of(count))
            raise
        self._settle(chunk, others)
        if self._stages.is_timed:
            self._stages.lap("append", count)
        return writer.responses(count)

    def _settle(self, chunk: Chunk, others: Sequence[str]) -> None:
        """Settle the claims, make the payments pending, and count the decisions, which are appended."""
        loop.settle_chunk(self._frame.address, len(chunk.bodies))
        for action in others:
            self._metrics.decisions[action].add(1)
        if self._flags is not None:
            for payment_flags in self._flags:
                for flag in payment_flags:
                    self._metrics.flags[flag].add(1)

    def _note_laps(self, count: int) -> None:
        for stage, place in _LAPS:
            if self._frame.laps[place]:
                self._stages.lap(stage, count, self._frame.laps[place] * 1e-9)

    # What the compiled call leaves to Python

    def _judge(self, chunk: Chunk, now_ms: int, status: int, others: list[str]) -> bool:
        """Give each payment without a tail one. `others` gets the actions other than "approve".

        Returns whether the records are not written yet.
        """
        count = len(chunk.bodies)
        if status in (loop.NO_PROFILES, loop.NO_HOPS, loop.NO_VECTORS):
            status = self._fill(chunk, status)
        if status == loop.FILLED:
            if self._look_at_cards(chunk, now_ms, others):
                return True
            status = self._go_on(chunk, loop.FROM_SCORE)
        if status == loop.NO_SCORES:
            scored = self._serving.score_vectors(count)
            if any(scored.models) or any(scored.flags):
                self._give_tails(self._serving, chunk, range(count), scored, now_ms, others)
                return True
            self._put_scores(range(count), scored)
            status = self._go_on(chunk, loop.FROM_TAILS)
        if status == loop.DONE:
            return False
        if self._flags is None:
            self._ask_policy(chunk, now_ms, others)
        else:
            self._give_tails(self._serving, chunk, range(count), self._scored(count), now_ms, others)
        return True

    def _fill(self, chunk: Chunk, status: int) -> int:
        """Help the call to the vectors where the mirror or a profile cannot be read. Returns how it ends after that."""
        mirror = self._features.mirror
        try:
            if mirror is not None and status == loop.NO_PROFILES:
                mirror.follow_growth()
                status = self._go_on(chunk, loop.FROM_LOOK_UP)
            if mirror is None or status == loop.NO_PROFILES:
                return self._fill_without_mirror(chunk)
            if status == loop.NO_HOPS:
                self._note_unreadable(self._features.hops.fill(len(chunk.bodies)))
                status = self._go_on(chunk, loop.FROM_VECTORS)
        except MirrorAbsent:
            return self._fill_without_mirror(chunk)
        return self._fill_readable(chunk, mirror, status)

    def _fill_readable(self, chunk: Chunk, mirror: MirrorReader, status: int) -> int:
        """Leave profiles out that cannot be read, until the call can fill the vectors."""
        count, overlay = len(chunk.bodies), self._overlay
        presence = mirror.presence[: count * self._entities]
        found = presence.copy()
        while status == loop.NO_VECTORS:
            self._note_unreadable(self._features.help_to_read(count, self._numbers[loop.STATUS]))
            status = self._go_on(chunk, loop.FROM_VECTORS)
        # The mirror has these profiles all the same.
        presence[:] = found
        if overlay is not None:
            np.maximum(overlay.presence[: len(found)], found, out=overlay.presence[: len(found)])
        return status

    def _note_unreadable(self, rows: Iterable[int]) -> None:
        """Note payments that have the flag profile_unreadable. The call ends behind the vectors then."""
        self._unreadable |= set(rows)
        if self._unreadable:
            self._numbers[loop.STOPS] = 1

    def _fill_without_mirror(self, chunk: Chunk) -> int:
        self._features.fill_without_mirror(self._payments(chunk).keys)
        self._numbers[loop.AGE_MS] = -1
        self._note_flags([(MIRROR_ABSENT, *self._money_flags(row)) for row in range(len(chunk.bodies))])
        return loop.FILLED if self._numbers[loop.STOPS] else self._go_on(chunk, loop.FROM_SCORE)

    def _look_at_cards(self, chunk: Chunk, now_ms: int, others: list[str]) -> bool:
        """Flag cards that the mirror lacks, and profiles that cannot be read; let the candidate decide about its cards.

        Returns whether all payments have their tails.
        """
        keys, held = self._payments(chunk).keys, self._held_cards
        if self._flags is None and (self._unreadable or held is not None):
            flags = [self._flags_of(row) for row in range(len(chunk.bodies))]
            flagged = flags if held is None else held.flagged(keys, flags)
            if self._unreadable or flagged is not flags:
                self._note_flags([(*one, *self._money_flags(row)) for row, one in enumerate(flagged)])
        if self._split is None or self._candidate is None:
            return False
        arms = self._split.places(keys[self._names.index("card") :: self._entities])
        if not arms[1]:
            return False
        spent_s = [0.0, 0.0]
        for arm, (serving, rows) in enumerate(zip((self._serving, self._candidate), arms, strict=True)):
            begun_s = time.perf_counter()
            if rows:
                scored = serving.models.score(self._vectors[rows])
                self._give_tails(serving, chunk, rows, scored, now_ms, others)
            spent_s[arm] = time.perf_counter() - begun_s
        # The latency in a record leaves out the other arm's work.
        if chunk.arrivals:
            arrivals = self._writer.arrays["arrivals"]
            for rows, others_s in zip(arms, reversed(spent_s), strict=True):
                arrivals[rows] += others_s
        return True

    def _scored(self, count: int) -> Scored:
        """Returns the scores of the compiled call."""
        return Scored(self._writer.arrays["scores"][:count].tolist(), [0] * count, [()] * count)

    def _put_scores(self, rows: Sequence[int], scored: Scored) -> None:
        scores = self._writer.arrays["scores"]
        for row, score in zip(rows, scored.scores, strict=True):
            scores[row] = math.nan if score is None else score

    def _note_flags(self, flags: list[tuple[str, ...]]) -> None:
        """Note the flags of all payments, which Python counts then."""
        self._flags, self._numbers[loop.IS_FLAGGED] = flags, 1

    def _flags_of(self, row: int) -> tuple[str, ...]:
        """Returns the flags about the profiles of a payment whose vector the compiled call has filled."""
        mirror, overlay = self._features.mirror, self._overlay
        assert mirror is not None
        presence = overlay.presence if overlay is not None and overlay.has_table else mirror.presence
        flags = self._features.unknown_flags[presence[row * self._entities : (row + 1) * self._entities].tobytes()]
        if row in self._unreadable:
            flags = (*flags, PROFILE_UNREADABLE)
        return (*flags, OVERLAY_ABSENT) if self._numbers[loop.IS_UNSURE] else flags

    def _money_flags(self, row: int) -> tuple[str, ...]:
        return (UNKNOWN_RATE,) if self._rows[row, AMOUNT] < 0 else ()

    def _ask_policy(self, chunk: Chunk, now_ms: int, others: list[str]) -> None:
        """Give each payment without a kept tail one."""
        tails, scores = self._writer.arrays["tail_numbers"].data, self._writer.arrays["scores"].data
        is_stale = self._numbers[loop.AGE_MS] > self._numbers[loop.STALE_AFTER_MS]
        for row in range(len(chunk.bodies)):
            if tails[row] == loop.NO_TAIL:
                flags = (*self._flags_of(row), *self._money_flags(row), *((MIRROR_STALE,) if is_stale else ()))
                tails[row] = self._tail(self._serving, chunk, row, scores[row], 0, flags, others, now_ms)

    def _give_tails(
        self, serving: Served, chunk: Chunk, rows: Sequence[int], scored: Scored, now_ms: int, others: list[str]
    ) -> None:
        """Give payments their scores and tails, where the flags are not those of a usual chunk, or the model is not."""
        if self._flags is None:
            self._note_flags([(*self._flags_of(row), *self._money_flags(row)) for row in range(len(chunk.bodies))])
        assert self._flags is not None
        self._put_scores(rows, scored)
        tails, is_stale = self._writer.arrays["tail_numbers"].data, self._numbers[loop.AGE_MS] > serving.stale_after_ms
        # The kept tails name the version of the primary model.
        approved = serving.approved if not any(scored.models) else {}
        for row, score, model, of_model in zip(rows, scored.scores, scored.models, scored.flags, strict=True):
            flags = (*self._flags[row], *((MIRROR_STALE,) if is_stale else ()), *of_model)
            self._flags[row] = flags
            kept = approved.get(flags)
            if kept is None or score is None or score >= serving.approved_below:
                tails[row] = self._tail(serving, chunk, row, score, model, flags, others, now_ms)
            elif serving is self._serving:
                tails[row] = kept
            else:
                tails[row] = self._writer.add_tail(serving.writer.kept_tail(kept), self._origin(serving, 0))

    def _tail(
        self,
        serving: Served,
        chunk: Chunk,
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
            facts.payment = self._intake.schema.payment_of(chunk.bodies[row])
            facts.amount, facts.vector = amount if amount >= 0 else None, vector
        facts.score, facts.flags = score, flags
        action, reasons = policy.decide(facts)
        propensity = 1.0
        if action != ACTIONS[APPROVE]:
            reasons += serving.models.reasons(vector, model, policy.reason_features_max)
            if self._exploration is not None and action == ACTIONS[DECLINE]:
                share = policy.explored_share(score, self._exploration.share)
                action, reasons, propensity = self._explore(self._exploration, chunk, row, reasons, now_ms, share)
            if action != ACTIONS[APPROVE]:
                others.append(action)
        return self._writer.add_tail(
            tail(action, reasons, serving.models.versions[model], flags), self._origin(serving, model, propensity)
        )

    def _origin(self, serving: Served, model: int, propensity: float = 1.0) -> int:
        """Returns the place of a model's origin in the writer."""
        first = 0 if serving is self._serving else len(self._serving.writer.origins)
        return first + serving.origin_of(model, propensity)

    def _explore(
        self, exploration: Exploration, chunk: Chunk, row: int, reasons: list[str], now_ms: int, share: float
    ) -> Explored:
        """Returns the action for a payment that the policy declines. The money is spent when this returns."""
        amount = int(self._rows[row, AMOUNT])
        payment_id = self._payments(chunk).ids[row].decode()
        explored = exploration.explore(
            ACTIONS[DECLINE], reasons, payment_id=payment_id, amount=amount, now_ms=now_ms, share=share
        )
        if explored.action == ACTIONS[APPROVE]:
            self._metrics.explored.add(1)
            self._metrics.explored_minor.add(amount)
        return explored

    def _payments(self, chunk: Chunk) -> CheckedPayments:
        """Returns the keys, ids and rows of the payments that were read last."""
        if self._read is None:
            self._read = self._intake.payments_read(chunk.bodies)
            if chunk.callers:
                self._read.callers = chunk.callers
        return self._read


def _parts(count: int, batches: Sequence[range]) -> Iterator[range]:
    """Cut `count` payments into parts of at most ROWS_MAX. A batch is never cut: a longer one is a part of its own."""
    begun = 0
    for unit in units_of(count, batches):
        if unit.stop - begun > ROWS_MAX and unit.start > begun:
            yield range(begun, unit.start)
            begun = unit.start
    yield range(begun, count)
