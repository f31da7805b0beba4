"""Records of decisions as the columns that the analysis takes, and a leader without Kafka."""

from __future__ import annotations

import logging
from contextlib import closing
from threading import Event
from typing import Any

import numpy as np
import pytest

from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import DECLINE
from paywarden.models.rollout.plan import RolloutPlan, plan_of
from paywarden.models.rollout.rollout import EventKind, Phase, Rollout, RolloutEvent, Start
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.shares import CANDIDATE, CardSplit
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.admin import watermarks
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record, make_consumer
from paywarden.streams.rollouts.leader import RolloutLeader, decision_columns, is_by_champion
from tests.patience import PATIENCE_S
from tests.worlds.rollout.memory_log import MemoryRolloutLog
from tests.worlds.stream.decision_records import decision

SALT = "00" * 16


def record(number: int, **changes: Any) -> Record:
    ids = LocalSchemaIds()
    value = Encoder("decisions", ids.id_of("decisions")).encode(decision(f"p{number}", **changes))
    return Record("decisions", 0, number, None, value, 0, None)


def led(plan: RolloutPlan) -> tuple[RolloutLeader, Rollout]:
    keeper = RolloutKeeper(MemoryRolloutLog())
    start = Start("r-1", SALT, Version("a"), Version("b"), plan)
    rollout = keeper.take(RolloutEvent(EventKind.STARTED, 0, "ann", "a test", start))
    return RolloutLeader(KafkaSettings(), LocalSchemaIds(), keeper, print, rates=load_rates()), rollout


def test_in_the_shadow_a_leader_needs_no_kafka_and_takes_back_a_candidate_that_is_gone() -> None:
    keeper = RolloutKeeper(MemoryRolloutLog())
    start = Start("r-1", SALT, Version("a"), Version("b"), plan_of([50, 100]), shadow=True)
    keeper.take(RolloutEvent(EventKind.STARTED, 0, "ann", "a test", start))
    served, looks = list[Phase](), list[str]()

    def gone(version: Version) -> str:
        looks.append(version.bundle)
        return "no manifest" if len(looks) == 3 else ""

    leader = RolloutLeader(
        KafkaSettings(bootstrap="127.0.0.1:1"),
        LocalSchemaIds(),
        keeper,
        lambda: served.append(keeper.rollout.phase if keeper.rollout else Phase.PENDING),
        rates=load_rates(),
        gone=gone,
        look_every_s=0.001,
    )
    leader.run(Event())
    assert keeper.rollout is not None
    assert (keeper.rollout.phase, keeper.rollout.cause) == (Phase.ROLLED_BACK, "the candidate is gone: no manifest")
    assert (served, looks) == ([Phase.PENDING, Phase.ROLLED_BACK], ["b"] * 3)


class BreakingLog(MemoryRolloutLog):
    """A log that cannot be read or written while it has a trouble, and that may be gone."""

    trouble = ""
    is_gone = False

    def events(self) -> list[RolloutEvent]:
        if self.trouble:
            raise Misconfigured(self.trouble)
        return [] if self.is_gone else super().events()

    def append(self, event: RolloutEvent, known: int) -> bool:
        if event.kind is EventKind.GONE and self.writes_fail:
            self.writes_fail -= 1
            raise Misconfigured("cannot write")
        return super().append(event, known)

    writes_fail = 3


def test_a_log_that_cannot_be_used_ends_no_leader(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk ended it at the next step: a rollback that was in the log then reached no worker of this host."""
    log, served, looks = BreakingLog(), list[Phase](), 0
    keeper = RolloutKeeper(log)
    start = Start("r-1", SALT, Version("a"), Version("b"), plan_of([50, 100]), shadow=True)
    keeper.take(RolloutEvent(EventKind.STARTED, 0, "ann", "a test", start))

    def gone(_: Version) -> str:
        """Break one thing a look. In the end the candidate is gone, and that cannot be written for a while."""
        nonlocal looks
        looks += 1
        leader._warn_at.clear()
        log.trouble, log.is_gone = {1: "Is a directory", 2: "line 2 is damaged"}.get(looks, ""), looks == 3
        return "no manifest" if looks > 3 else ""

    def deploy() -> None:
        assert keeper.rollout is not None
        served.append(keeper.rollout.phase)

    kafka = KafkaSettings(bootstrap="127.0.0.1:1")
    leader = RolloutLeader(kafka, LocalSchemaIds(), keeper, deploy, rates=load_rates(), gone=gone, look_every_s=0.001)
    leader.run(Event())
    assert served == [Phase.PENDING, Phase.ROLLED_BACK]
    for words in ("Is a directory", "line 2 is damaged", "the log of rollouts is gone, or empty", "cannot write"):
        assert words in caplog.text, caplog.text


def test_a_leader_that_cannot_read_the_log_at_its_start_says_so_and_ends() -> None:
    leader, _ = led(plan_of([50, 100]))
    log = BreakingLog()
    leader._keeper = RolloutKeeper(log)
    log.trouble = "line 2 is damaged"
    with pytest.raises(Misconfigured, match="line 2 is damaged"):
        leader.run(Event())


def test_the_columns_of_decisions_are_what_their_records_say() -> None:
    ours = decision("p1", card_id="C1", arm="candidate", action="decline", latency_us=1_500, country="FR", score=0.7)
    other = decision("p2", card_id="C2", arm="champion", latency_us=None, model_version="", flags=["unknown_card"])
    split = CardSplit(bytes.fromhex(SALT))
    columns = decision_columns([ours, other], split, ["country=FR"])
    assert columns.position.tolist() == [split.position(b"card:C1"), split.position(b"card:C2")]
    assert (columns.arm[0], columns.action[0], columns.score[0]) == (CANDIDATE, DECLINE, 0.7)
    assert columns.latency_ms[0] == 1.5
    assert np.isnan(columns.latency_ms[1])
    assert (columns.is_failed.tolist(), columns.is_flagged.tolist()) == ([False, True], [False, False])
    assert columns.in_segment["country=FR"].tolist() == [True, False]


def test_decisions_without_a_latency_count_only_where_none_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    records = [
        record(1, rollout="r-1", arm="candidate", latency_us=7),
        record(2, rollout="r-1", arm="champion"),
        record(3, rollout="r-2", arm="champion", latency_us=7),
        Record("decisions", 0, 4, None, b"no decision", 0, None),
    ]
    for leave_out, kept in (((), ["p1"]), (("slow",), ["p1", "p2"])):
        leader, rollout = led(plan_of([50, 100], leave_out=leave_out))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [one["payment_id"] for one in leader._decided(records, rollout)] == kept
        assert ("1 decisions have no latency and do not count" in caplog.text) == (leave_out == ())


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"bundle_digest": "a"}, True),
        ({"bundle_digest": "a", "rollout": "r-0", "arm": "champion"}, True),
        ({"bundle_digest": "c", "rollout": "r-0", "arm": "candidate"}, False),
        # It was the champion until a moment ago.
        ({"bundle_digest": "c"}, False),
        ({"bundle_digest": "", "rollout": "r-0", "arm": "champion"}, False),
        ({"bundle_digest": "", "rollout": "r-1", "arm": "champion"}, True),
        ({"bundle_digest": "", "rollout": ""}, True),
    ],
)
def test_the_hour_before_has_the_champions_decisions_alone(changes: dict[str, Any], counts: bool) -> None:
    """After an aborted rollout of more than an hour the next one found no decision of the champion."""
    _, rollout = led(plan_of([50, 100]))
    assert is_by_champion(decision("p1", **changes), rollout) is counts


def test_bounds_come_from_the_hour_before_on_the_broker_of_demonstrations_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That broker finds no record by its time: a rollout in `demo --keep` had no bounds, and could not be led."""
    broker = EmbeddedBroker()
    kafka, ids = KafkaSettings(bootstrap=broker.bootstrap), LocalSchemaIds()
    encoder, started_ms = Encoder("decisions", ids.id_of("decisions")), 1_700_000_000_000
    sender = Sender(kafka, linger_ms=0)
    for number in range(60):
        # Twenty are too old, twenty of the hour before, and twenty came after the start.
        decided_ms = started_ms + (number // 20 - 2) * 3_600_000 + 3_590_000 * (number < 40) + number % 20
        one = decision(f"p{number}", decided_time_ms=decided_ms, bundle_digest="a" * 64, latency_us=900)
        sender.send("decisions", encoder.encode(one), key=b"k", partition=number % 2)
    sender.flush(PATIENCE_S)
    keeper = RolloutKeeper(MemoryRolloutLog())
    start = Start("r-1", SALT, Version("a" * 64), Version("b" * 64), plan_of([50, 100]))
    rollout = keeper.take(RolloutEvent(EventKind.STARTED, started_ms, "ann", "a test", start))
    leader = RolloutLeader(kafka, ids, keeper, print, rates=load_rates())
    with closing(make_consumer(kafka, group_id="test")) as consumer, caplog.at_level(logging.INFO):
        ends = {partition: watermarks(consumer, "decisions", partition)[1] for partition in range(2)}
        leader._bounds(consumer, "decisions", ends, rollout)
    assert sum(ends.values()) == 60
    assert "r-1: bounds from 20 decisions of the hour before" in caplog.text
    broker.close()
