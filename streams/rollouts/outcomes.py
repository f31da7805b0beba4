"""Reads the outcomes of a rollout's mature payments, and judges both arms by them.

    decisions, label_days behind ──┐
                                   ├──► OutcomeJoin ──► judge_outcomes ──► log of rollouts
    outcomes, to their end ────────┘

1. This is a second reader of `decisions`, with positions of its own. It begins at the start of the rollout and stays
   `label_days` behind the clock, so it needs memory for mature payments alone. Decisions from after the last step that
   compares are not read.
2. `turn` reads one batch and returns. The leader calls it between two batches of its own, so that a look or an abort
   waits for none of it.
3. When both topics are read up to now, it judges: harm rolls back in any step, and `within` allows a promotion.
4. A leader that starts again reads all of it again. Kafka must keep `decisions` and `outcomes` for the whole rollout
   and `label_days` more. Records that it has dropped are missing in both arms alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from confluent_kafka import Consumer

from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.money import RateTable
from paywarden.models.policy.policy import ACTIONS, is_threshold_reason
from paywarden.models.rollout.judgement import Judgement, judge_outcomes
from paywarden.models.rollout.outcome_join import DAY_MS, JoinedDecisions, KnownOutcomes, OutcomeJoin, payment_numbers
from paywarden.models.rollout.outcomes import outcome_counts
from paywarden.models.rollout.rollout import Phase, Rollout
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.shares import CANDIDATE, CHAMPION, CardSplit
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX
from paywarden.streams.kafka.admin import end_offsets, offsets_at, partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import Record, make_consumer, records_between

ARMS = {"champion": CHAMPION, "candidate": CANDIDATE}
_GROUP = "paywarden-rollout-outcomes"
_ACTIONS = {name: number for number, name in enumerate(ACTIONS)}
# Decisions of the last step that compares come from outboxes that were held up for at most this long.
_HELD_UP_MS = 3_600_000
_DECISIONS, _OUTCOMES = "decisions", "outcomes"


class OutcomeReader:
    """Reads decisions and outcomes of one rollout, batch by batch. Not thread-safe."""

    def __init__(
        self,
        kafka: KafkaSettings,
        ids: SchemaIds,
        keeper: RolloutKeeper,
        rates: RateTable,
        *,
        judge_every_s: float,
    ) -> None:
        """`keeper` knows the rollout, which must have been started. Nothing is read before its first label is due."""
        rollout = keeper.rollout
        assert rollout is not None, "there is a rollout"
        self._kafka, self._keeper, self._rates, self._judge_every_s = kafka, keeper, rates, judge_every_s
        self._decoders = {topic: Decoder(topic, ids) for topic in (_DECISIONS, _OUTCOMES)}
        self._name, self._split = rollout.start.name, CardSplit(bytes.fromhex(rollout.start.salt))
        self._label_ms = round(rollout.start.plan.label_days * DAY_MS)
        self._started_ms = keeper.started_ms
        self._join = OutcomeJoin(rollout.start.plan)
        self._consumer: Consumer | None = None
        # By topic: the next offset of each partition.
        self._next: dict[str, dict[int, int]] = {}
        self._reading: Iterator[None] | None = None
        self._begin_at, self._has_news = 0.0, True

    def close(self) -> None:
        """Close the connection to Kafka."""
        if self._consumer is not None:
            self._consumer.close()

    def turn(self, rollout: Rollout, now_ms: int) -> Judgement | None:
        """Read one batch. Returns a judgement when everything is read and something was new; otherwise None.

        It begins to read again after `judge_every_s`. Raises BrokerUnavailable.
        """
        if rollout.phase is Phase.PENDING or now_ms < self._started_ms + self._label_ms:
            return None
        if self._reading is None:
            if time.monotonic() < self._begin_at:
                return None
            self._begin_at = time.monotonic() + self._judge_every_s
            self._reading = self._read(rollout, now_ms)
        if next(self._reading, self) is None:
            self._has_news = True
            return None
        self._reading = None
        if not self._has_news:
            return None
        self._has_news = False
        mature = self._join.mature(self._keeper.steps_ms, now_ms)
        plan = rollout.start.plan
        return judge_outcomes(plan, outcome_counts(plan, mature))

    def _read(self, rollout: Rollout, now_ms: int) -> Iterator[None]:
        """Read the outcomes that have become mature since the last time, and yield after each batch."""
        if self._consumer is None:
            self._consumer = make_consumer(self._kafka, group_id=_GROUP)
        until_ms = now_ms - self._label_ms
        if rollout.phase is Phase.PROVISIONAL:
            until_ms = min(until_ms, rollout.since_ms + _HELD_UP_MS)
        for records in self._batches(self._consumer, _DECISIONS, until_ms):
            self._add_decisions(records)
            yield
        for records in self._batches(self._consumer, _OUTCOMES, None):
            self._add_outcomes(records)
            yield

    def _batches(self, consumer: Consumer, topic: str, until_ms: int | None) -> Iterator[Sequence[Record]]:
        """Yields the new records of a topic that Kafka got before `until_ms`, or all of them."""
        name = self._kafka.topic(topic)
        ends = end_offsets(consumer, name, partitions_of(self._kafka, topic))
        stops = ends if until_ms is None else offsets_at(consumer, name, ends, until_ms + 1)
        places = self._next.setdefault(topic, {})
        if missing := {partition: end for partition, end in ends.items() if partition not in places}:
            places |= offsets_at(consumer, name, missing, self._started_ms)
        for partition, stop in stops.items():
            if places[partition] >= stop:
                continue
            for records in records_between(consumer, name, partition, range(places[partition], stop)):
                places[partition] = records[-1].offset + 1
                yield records
            places[partition] = stop

    def _add_decisions(self, records: Sequence[Record]) -> None:
        decided = [
            one for one in self._decoded(_DECISIONS, records) if one["rollout"] == self._name and one["arm"] in ARMS
        ]
        self._join.add_decisions(
            JoinedDecisions(
                payment=payment_numbers(one["payment_id"] for one in decided),
                decided_ms=np.array([one["decided_time_ms"] for one in decided], dtype=np.int64),
                position=self._split.positions(entity_key("card", [one["card_id"]]) for one in decided),
                arm=np.array([ARMS[one["arm"]] for one in decided], dtype=np.int8),
                action=np.array([_ACTIONS[one["action"]] for one in decided], dtype=np.int8),
                amount=np.array([self._amount(one) for one in decided], dtype=np.int64),
                by_rule=np.array(
                    [not all(map(is_threshold_reason, one["reasons"])) for one in decided], dtype=np.bool_
                ),
            )
        )

    def _add_outcomes(self, records: Sequence[Record]) -> None:
        known = list(self._decoded(_OUTCOMES, records))
        self._join.add_outcomes(
            KnownOutcomes(
                payment=payment_numbers(one["payment_id"] for one in known),
                known_ms=np.array([one["outcome_time_ms"] for one in known], dtype=np.int64),
                is_fraud=np.array([one["label"] == "fraud" for one in known], dtype=np.bool_),
            )
        )

    def _decoded(self, topic: str, records: Sequence[Record]) -> Iterator[Mapping[str, Any]]:
        """Yields the values of records. A record that cannot be read is left out: another program wrote it."""
        for record in records:
            with suppress(InvalidEvent):
                yield self._decoders[topic].decode(record.value or b"")

    def _amount(self, decision: Mapping[str, Any]) -> int:
        """Returns the amount in the reference currency; 0 where there is no rate, or none that can be."""
        minor = int(decision["amount_minor"])
        if not 0 <= minor <= AMOUNT_MINOR_MAX:
            return 0
        return self._rates.convert(minor, decision["currency"], decision["decided_time_ms"]) or 0
