"""Put the log of rollouts on the topic `rollouts`, for readers that have no file of ours.

The log decides; the topic only tells. A rollback works while Kafka is away, and the events follow when it is back. Each
event has its number in the log, so that publishing twice, or on two hosts at once, repeats records and adds none.
The salt stays in the log: a person who has it can choose cards for an arm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from paywarden.models.rollout.log import event_record
from paywarden.models.rollout.rollout import Rollout, RolloutEvent, after
from paywarden.models.rollout.shares import BASIS_POINTS
from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.admin import make_admin, partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end
from paywarden.streams.kafka.stalls.open_transactions import waiting_now

ROLLOUTS_TOPIC = "rollouts"
_FLUSH_TIMEOUT_S = 30.0


def rollout_records(events: Sequence[RolloutEvent]) -> Iterator[dict[str, Any]]:
    """Yields the record of each event of a log. Raises Misconfigured if an event does not fit the ones before it."""
    rollout: Rollout | None = None
    for number, event in enumerate(events, start=1):
        rollout = after(rollout, event)
        start, judgement = rollout.start, event.judgement
        yield {
            "rollout": start.name,
            "number": number,
            "kind": event.kind.value,
            "time_ms": event.time_ms,
            "by": event.by,
            "why": event.why,
            "phase": rollout.phase.value,
            "share": rollout.share / BASIS_POINTS,
            "cause": rollout.cause,
            "champion_bundle_digest": start.champion.bundle_digest,
            "champion_policy_digest": start.champion.policy_digest,
            "candidate_bundle_digest": start.candidate.bundle_digest,
            "candidate_policy_digest": start.candidate.policy_digest,
            "finding": None if judgement is None else judgement.finding.value,
            "measure": None if judgement is None else judgement.measure,
            "log_evidence": None if judgement is None else judgement.evidence,
            "event": _text(event),
        }


def _text(event: RolloutEvent) -> str:
    record = event_record(event)
    if record["start"] is not None:
        del record["start"]["salt"]
    return json.dumps(record, sort_keys=True, allow_nan=False)


def publish(kafka: KafkaSettings, ids: SchemaIds, events: Sequence[RolloutEvent], tell: Callable[[str], object]) -> int:
    """Publish the events that the topic has not, and return how many there were.

    `tell` gets a line if an open transaction keeps records of the topic from being read: their events may come again.
    Raises BrokerUnavailable; Misconfigured if the topic is missing.
    """
    held = waiting_now(make_admin(kafka), kafka.topic(ROLLOUTS_TOPIC), partitions_of(kafka, ROLLOUTS_TOPIC))
    if held:
        tell(f"{held} for its end, and events among them are published again")
    known = _newest_number(kafka, ids)
    encoder, sender = Encoder(ROLLOUTS_TOPIC, ids.id_of(ROLLOUTS_TOPIC)), Sender(kafka, linger_ms=0)
    new = [record for record in rollout_records(events) if record["number"] > known]
    for record in new:
        sender.send(kafka.topic(ROLLOUTS_TOPIC), encoder.encode(record), key=record["rollout"].encode())
    sender.flush(_FLUSH_TIMEOUT_S)
    return len(new)


def _newest_number(kafka: KafkaSettings, ids: SchemaIds) -> int:
    """Returns the highest number on the topic; 0 for an empty one. Records that cannot be read count for nothing."""
    decoder, newest = Decoder(ROLLOUTS_TOPIC, ids), 0
    partitions = partitions_of(kafka, ROLLOUTS_TOPIC)
    with closing(make_consumer(kafka, group_id="paywarden-rollouts")) as consumer:
        for records in records_to_end(consumer, kafka.topic(ROLLOUTS_TOPIC), partitions):
            for record in records:
                try:
                    newest = max(newest, decoder.decode(record.value or b"")["number"])
                except InvalidEvent:
                    continue
    return newest
