"""Leads a rollout on live decisions: judges the decisions, takes steps, and rolls back.

    log of rollouts ──► deployment file of this host            `deploy`, at every change; other hosts follow the log
    topic decisions ──► columns ──► RolloutAnalysis ──► a look every 10 s ──► log of rollouts
    decisions and outcomes, when labels are mature ──► OutcomeReader ──► a look every minute ──► log of rollouts

1. A pending rollout begins when decisions come from hosts that have the candidate loaded: their records name it.
2. Bounds of high scores come from the champion's decisions in the hour before the rollout, or before it left the
   shadow. They stay the same after a restart, because the same decisions are read again.
3. A leader that starts again reads the decisions since the running step began, and is where it was.
4. While Kafka is away there are no looks, so no step goes on. `paywarden rollout abort` works: it changes the
   deployment file of its host by itself.
5. Mature outcomes are judged in every step and while the rollout is provisional (streams/rollouts/outcomes.py).
6. While the clock is behind the log, steps wait. If the candidate's bundle is gone, the rollout is rolled back.
7. While a producer leaves a transaction open on `decisions` or `outcomes`, no step goes on and outcomes are not judged:
   the records behind it cannot be read. Harm that is seen meanwhile rolls back. Other looks find no data, and enter
   that in the log of rollouts, which shows that somebody leads. This process's log names the partitions that are held
   up.
8. Decisions without a latency do not count if the plan measures it.
9. If the log cannot be used once the leader leads (a full disk, a file that was replaced), it warns, keeps its counts
   and tries again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from threading import Event
from typing import Any, TypeVar

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import ACTIONS
from paywarden.models.rollout.judgement import Judgement
from paywarden.models.rollout.rollout import (
    ClockBehind,
    EventKind,
    Phase,
    Rollout,
    RolloutEvent,
)
from paywarden.models.rollout.rollout_analysis import EventBounds, RolloutAnalysis, RolloutDecisions
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.shares import CardSplit
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, Misconfigured
from paywarden.streams.kafka.admin import end_offsets, make_admin, offsets_at, partitions_of, watermarks
from paywarden.streams.kafka.client import KafkaSettings, PartitionId
from paywarden.streams.kafka.reading import RANGE_BATCH, Record, consume, make_consumer, records_between
from paywarden.streams.kafka.stalls.end_offsets import EndsWatch
from paywarden.streams.kafka.stalls.open_transactions import OpenTransactions
from paywarden.streams.kafka.topic_identity import embedded_cluster
from paywarden.streams.rollouts.outcomes import ARMS, OutcomeReader

_log = logging.getLogger(__name__)

_GROUP = "paywarden-rollout"
# The champion's decisions that the bounds are made from, and how many of them at most.
_BOUNDS_MS, _BOUNDS_MAX = 3_600_000, 200_000
_WAIT_S = 0.5
_US_A_MS = 1_000
_RETRY_S = 2.0
_WARN_EVERY_S = 60.0
# Mature outcomes are judged once in this many looks: labels come by the day.
_LOOKS_AN_OUTCOME = 6
_BY = "rollout lead"
# An unknown card is a normal case, and no fault of a version.
_USUAL_FLAGS = "unknown_"

_Result = TypeVar("_Result")


class RolloutLeader:
    """Leads the newest rollout of a log. One process of a deployment runs it; it is not thread-safe."""

    def __init__(
        self,
        kafka: KafkaSettings,
        ids: SchemaIds,
        keeper: RolloutKeeper,
        deploy: Callable[[], object],
        *,
        rates: RateTable,
        gone: Callable[[Version], str] = lambda _: "",
        look_every_s: float = 10.0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`deploy` makes this host serve what the log says; it is called at each change, and raises nothing.

        `rates`: for the money of outcomes. `gone` returns why a version cannot be served any more; empty if it can.
        """
        self._kafka, self._ids, self._decoder, self._keeper = kafka, ids, Decoder("decisions", ids), keeper
        self._rates, self._gone = rates, gone
        self._deploy, self._look_every_s, self._now_ms = deploy, look_every_s, now_ms
        # What this host serves: the rollout, its phase and its share.
        self._served: tuple[str, Phase, int] | None = None
        self._shown = ""
        # When the next warning of each kind is due.
        self._warn_at: dict[str, float] = {}

    def run(self, stop: Event) -> None:
        """Lead until the rollout has ended, or `stop` is set. Raises Misconfigured without a rollout to lead."""
        rollout = self._follow()
        if rollout is None:
            raise Misconfigured("rollout lead: there has been no rollout: begin one with `paywarden rollout start`")
        while not (stop.is_set() or rollout.has_ended):
            try:
                if rollout.in_shadow:
                    self._keep_in_shadow(rollout, stop)
                else:
                    self._lead(rollout, stop)
            except BrokerUnavailable as error:
                _log.warning("no looks, and no step goes on: %s", error)
                stop.wait(_RETRY_S)
            rollout = self._follow() or rollout

    def _follow(self) -> Rollout | None:
        """Read the log, make this host serve its releases, and return the rollout.

        The first time it raises Misconfigured if the log cannot be read. Later it warns, and the next call tries again.
        """
        return self._followed() if self._served is None else self._try("files", self._followed)

    def _followed(self) -> Rollout | None:
        rollout = self._keeper.refresh()
        if rollout is None:
            if self._served is not None:
                raise Misconfigured("rollout lead: the log of rollouts is gone, or empty: put it back")
            return None
        if rollout.line != self._shown:
            self._shown = rollout.line
            _log.info("%s", rollout.line)
        wanted = rollout.start.name, rollout.phase, rollout.share
        if wanted != self._served:
            self._deploy()
            self._served = wanted
        return rollout

    def _keep_in_shadow(self, rollout: Rollout, stop: Event) -> None:
        """Wait until somebody resumes the rollout or ends it; `shadow report` compares meanwhile."""
        look_at = 0.0
        while rollout.in_shadow and not stop.is_set():
            if time.monotonic() >= look_at:
                self._look(None, rollout)
                look_at = time.monotonic() + self._look_every_s
            stop.wait(min(_WAIT_S, self._look_every_s))
            rollout = self._follow() or rollout

    def _lead(self, rollout: Rollout, stop: Event) -> None:
        """Read decisions and look, until the rollout has ended or Kafka is away."""
        topic, partitions = self._kafka.topic("decisions"), partitions_of(self._kafka, "decisions")
        outcomes = OutcomeReader(
            self._kafka, self._ids, self._keeper, self._rates, judge_every_s=self._look_every_s * _LOOKS_AN_OUTCOME
        )
        with closing(outcomes), closing(make_consumer(self._kafka, group_id=_GROUP)) as consumer:
            admin = make_admin(self._kafka)
            watch = EndsWatch(admin, topic, lambda: [(topic, partition) for partition in partitions])
            transactions = OpenTransactions(admin, self._places)
            ends = end_offsets(consumer, topic, partitions)
            analysis: RolloutAnalysis | None = None
            if rollout.phase is not Phase.PROVISIONAL:
                analysis = RolloutAnalysis(self._keeper, self._bounds(consumer, topic, ends, rollout), by=_BY)
                begin = offsets_at(consumer, topic, ends, analysis.counts_from_ms or rollout.since_ms)
                consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in begin.items()])
            split, look_at = CardSplit(bytes.fromhex(rollout.start.salt)), 0.0
            judged: Judgement | None = None
            while not (stop.is_set() or rollout.has_ended):
                if rollout.phase is Phase.PROVISIONAL:
                    # All cards are the candidate's: there is nothing left to compare but outcomes.
                    stop.wait(min(_WAIT_S, self._look_every_s))
                elif records := self._decided(consume(consumer, RANGE_BATCH, _WAIT_S).records, rollout):
                    assert analysis is not None, "nothing leads back from provisional"
                    if rollout.phase is Phase.PENDING:
                        self._take(RolloutEvent(EventKind.READY, self._now_ms(), _BY))
                    analysis.add(decision_columns(records, split, rollout.start.plan.segments))
                watch.look()
                if not watch.trouble():
                    transactions.look()
                    is_whole = not transactions.held
                    judged = (outcomes.turn(rollout, self._now_ms()) if is_whole else None) or judged
                    if is_whole and judged is not None:
                        event = RolloutEvent(EventKind.OUTCOMES, self._now_ms(), _BY, judgement=judged)
                        # One that cannot be written waits: no other comes until there are new outcomes.
                        judged = None if self._take(event) else judged
                    if time.monotonic() >= look_at:
                        self._look(analysis, rollout, is_whole=is_whole)
                        look_at = time.monotonic() + self._look_every_s
                rollout = self._follow() or rollout

    def _places(self) -> list[PartitionId]:
        """Returns the partitions of all topics that a rollout is judged by."""
        topics = {name: partitions_of(self._kafka, name) for name in ("decisions", "outcomes")}
        return [(self._kafka.topic(name), number) for name, numbers in topics.items() for number in numbers]

    def _look(self, analysis: RolloutAnalysis | None, rollout: Rollout, *, is_whole: bool = True) -> None:
        """Check that the candidate is still there, and judge its decisions."""
        if why := self._gone(rollout.start.candidate):
            self._take(RolloutEvent(EventKind.GONE, self._now_ms(), _BY, why))
        elif analysis is not None:
            self._try("files", lambda: analysis.look(self._now_ms(), is_whole=is_whole))

    def _take(self, event: RolloutEvent) -> bool:
        """Put an event into the log, unless the rollout has ended meanwhile. Returns False to try again later."""

        def put() -> bool:
            found = self._keeper.refresh()
            if found is not None and not found.has_ended:
                self._keeper.take(event)
            return True

        return self._try("files", put) or False

    def _try(self, kind: str, work: Callable[[], _Result]) -> _Result | None:
        """Returns the result of work with the log or a file. If it fails, warns once a minute, and returns None."""
        try:
            return work()
        except Misconfigured as error:
            self._warn("clock" if isinstance(error, ClockBehind) else kind, "%s", error)
            return None

    def _warn(self, kind: str, text: str, *values: object) -> None:
        now = time.monotonic()
        if now >= self._warn_at.get(kind, 0.0):
            self._warn_at[kind] = now + _WARN_EVERY_S
            _log.warning(text, *values)

    def _decided(self, records: Sequence[Record], rollout: Rollout) -> list[Mapping[str, Any]]:
        """Returns the decisions of this rollout. Those without a latency are left out if the plan measures it."""
        name, needs_latency = rollout.start.name, _is_timed(rollout)
        decided = [one for one in self._decisions(records) if one["rollout"] == name and one["arm"] in ARMS]
        kept = [one for one in decided if one["latency_us"] is not None] if needs_latency else decided
        if len(kept) < len(decided):
            self._warn(
                "latency",
                '%d decisions have no latency and do not count: set [rollout] leave_out = ["slow"]',
                len(decided) - len(kept),
            )
        return kept

    def _decisions(self, records: Sequence[Record]) -> Iterator[Mapping[str, Any]]:
        """Yields the decisions in records. A record that cannot be read is no decision of ours."""
        for record in records:
            with suppress(InvalidEvent):
                yield self._decoder.decode(record.value or b"")

    def _bounds(self, consumer: Consumer, topic: str, ends: Mapping[int, int], rollout: Rollout) -> EventBounds:
        """Returns the bounds of the champion's decisions in the hour before the candidate could get cards."""
        until_ms = self._keeper.offered_ms
        hour = range(until_ms - _BOUNDS_MS, until_ms)
        if knows_times := not embedded_cluster(make_admin(self._kafka)):
            first, last = (offsets_at(consumer, topic, ends, time_ms) for time_ms in (hour.start, hour.stop))
        else:
            # The broker of demonstrations finds no record by its time, and has few.
            first, last = {partition: watermarks(consumer, topic, partition)[0] for partition in ends}, dict(ends)
        scores: list[float] = []
        latencies: list[float] = []
        for partition, begin in first.items():
            most = _BOUNDS_MAX // len(first)
            offsets = range(max(begin, last[partition] - most), last[partition])
            for records in records_between(consumer, topic, partition, offsets) if offsets else ():
                for one in self._decisions(records):
                    is_of_hour = knows_times or one["decided_time_ms"] in hour
                    if is_of_hour and one["model_version"] and is_by_champion(one, rollout):
                        scores.append(one["score"])
                        if one["latency_us"] is not None:
                            latencies.append(max(1, one["latency_us"]) / _US_A_MS)
        _log.info("%s: bounds from %d decisions of the hour before", rollout.start.name, len(scores))
        if not _is_timed(rollout):
            # Plans without `slow` do not use the latency.
            latencies = [1.0]
        elif scores and not latencies:
            raise Misconfigured(
                "rollout lead: the champion's decisions before the rollout have no latency: "
                'start with [rollout] leave_out = ["slow"]'
            )
        return EventBounds.of_champion(np.array(latencies), np.array(scores))


def is_by_champion(decision: Mapping[str, Any], rollout: Rollout) -> bool:
    """Returns whether a decision from before a rollout's first cards is its champion's, by the bundle that scored it.

    The champion may have been an arm of an earlier rollout then, or have been promoted a moment ago. A decision that
    no model scored names no bundle: it counts if it is of no other rollout.
    """
    digest = decision["bundle_digest"]
    if digest:
        return bool(digest == rollout.start.champion.bundle)
    return decision["rollout"] in ("", rollout.start.name)


def _is_timed(rollout: Rollout) -> bool:
    return any(measure.name == "slow" for measure in rollout.start.plan.measures)


def decision_columns(
    decisions: Sequence[Mapping[str, Any]], split: CardSplit, segments: Sequence[str]
) -> RolloutDecisions:
    """Returns records of `decisions` as columns. Each must name a rollout and one of its arms."""
    actions = {name: number for number, name in enumerate(ACTIONS)}
    named = {segment: segment.partition("=")[::2] for segment in segments}
    return RolloutDecisions(
        position=split.positions(entity_key("card", [one["card_id"]]) for one in decisions),
        arm=np.array([ARMS[one["arm"]] for one in decisions], dtype=np.int8),
        decided_ms=np.array([one["decided_time_ms"] for one in decisions], dtype=np.int64),
        score=np.array([one["score"] for one in decisions]),
        action=np.array([actions[one["action"]] for one in decisions], dtype=np.int8),
        is_failed=np.array([not one["model_version"] for one in decisions]),
        is_flagged=np.array([any(not f.startswith(_USUAL_FLAGS) for f in one["flags"]) for one in decisions]),
        latency_ms=np.array(
            [np.nan if one["latency_us"] is None else one["latency_us"] / _US_A_MS for one in decisions]
        ),
        in_segment={
            segment: np.array([str(one.get(field)) == value for one in decisions])
            for segment, (field, value) in named.items()
        },
    )
