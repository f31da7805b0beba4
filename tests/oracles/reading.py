"""Reads the requests of a chunk before it is scored: wrong ones are refused, each with its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paywarden.scoring.engine.batching.batcher import NOT_DECIDED, Chunk, Refusal, refusal_of
from tests.oracles.step_decoder import CheckedPayments, StepDecoder


class ScoresPayments(Protocol):
    """Scores payments that are read and right."""

    def score_many(
        self, payments: CheckedPayments, now_ms: int, batches: Sequence[range] = ()
    ) -> Sequence[bytes | Refusal]: ...


class ReadsFirst:
    """A scorer for a batcher: it reads a chunk, and its `score_many` answers the payments that are right."""

    intake: StepDecoder

    def score(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        return read_first(self, self.intake, chunk, now_ms)  # type: ignore[arg-type]


def read_first(scorer: ScoresPayments, intake: StepDecoder, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
    """Returns the scorer's answer to each payment that is right, and what is wrong with each of the others."""
    payments, wrong = intake.read(chunk.bodies, now_ms)
    count = len(chunk.bodies)
    spoilt = {place for batch in chunk.batches if not wrong.keys().isdisjoint(batch) for place in batch}
    results: list[bytes | Refusal] = [
        refusal_of(wrong[place]) if place in wrong else NOT_DECIDED for place in range(count)
    ]
    right = [place for place in range(count) if place not in wrong]
    decided = [place for place in right if place not in spoilt]
    if decided:
        payments = payments.chosen([index for index, place in enumerate(right) if place not in spoilt])
        chosen = chunk.chosen(decided)
        payments.arrivals, payments.traces = chosen.arrivals, chosen.traces
        if chosen.callers:
            payments.callers = chosen.callers
        for place, answer in zip(decided, scorer.score_many(payments, now_ms, chosen.batches), strict=True):
            results[place] = answer
    return results
