"""Propensities of a history from its decisions: from the shipped record to the weights of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.history.history import History
from paywarden.models.metrics.evaluation import Days
from paywarden.models.metrics.propensity import inverse_weights
from paywarden.models.policy.exploration import Exploration, ExplorationSettings, FileLedger
from paywarden.models.training.table import LabelRules, training_table
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.archive.propensities import COLUMNS, archived_decisions_of, with_propensities
from paywarden.streams.archive.topic_history import archived_rows, history_of_rows
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.kafka.topic_rows import RowBuilder, TopicRows
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY

SHARE, WEIGHT_MAX = 0.1, 8.0
# The payments of the first days, and days that they reach to.
PAYMENTS, WINDOW = 2_500, Days(FIRST_DAY, FIRST_DAY + 4)
NOW_MS = 1_704_067_200_000


def decision(
    payment_id: str, at_ms: int, action: str, reasons: Sequence[str], propensity: float, score: float = 0.0
) -> dict[str, Any]:
    """Returns a decision as the companion ships it."""
    entry = OutboxEntry(
        request=ScoreRequest(payment_id=payment_id, event_time_ms=at_ms, card_id="c", merchant_id="m", currency="EUR"),
        response=ScoreResponse(payment_id=payment_id, action=action, reasons=reasons, score=score),
        decided_time_ms=at_ms + 5,
        propensity=propensity,
    )
    return decision_of(OutboxEntry.FromString(entry.SerializeToString()))


def explored_world(tmp_path: Path, payment_count: int = PAYMENTS) -> tuple[tuple[MemoryTopic, ...], dict[str, float]]:
    """The small world's topics, and the chance of each payment that the coin let through.

    Every seventh payment would be declined.
    """
    topics = tuple(MemoryTopic(name, batch=500) for name in ("payments", "outcomes", "decisions"))
    payments, outcomes, decisions = topics
    asked = ExplorationSettings(share=SHARE, budget_minor_a_day=10**9, payment_minor_max=10**6)
    coin = Exploration(asked, key=b"k" * 16, ledger=FileLedger(tmp_path / "spent"))
    let_through = {}
    rows = small_world.tables()[0].slice(0, payment_count).to_pylist()
    for number, row in enumerate(rows):
        payment_id, at_ms, partition = row["payment_id"], row["event_time_ms"], number % 3
        verdict, reasons = ("decline", ["by_score"]) if number % 7 == 0 else ("approve", [])
        done = coin.explore(verdict, reasons, payment_id=payment_id, amount=row["amount_minor"], now_ms=at_ms)
        payments.append(partition, {**row, "declined": done.action == "decline"}, at_ms + 200)
        record = decision(payment_id, at_ms, done.action, done.reasons, done.propensity, number % 100 / 100)
        decisions.append(partition, record, at_ms + 300)
        if verdict != done.action:
            let_through[payment_id] = done.propensity
    for row in small_world.tables()[1].to_pylist():
        # Outcomes of later payments are left out with them.
        outcomes.append(int(row["payment_id"][-2:]) % 2, row, row["outcome_time_ms"] + 200)
    return topics, let_through


def archive(topics: Iterable[MemoryTopic], folder: Path) -> None:
    for topic in topics:
        archiver = Archiver(topic, IDS, topic.name, folder, records_max=5000)
        archiver.run(archiver.wanted(None, None), Event(), lambda _: None)


def read_topic(topic: MemoryTopic, columns: Sequence[str] | None = None) -> TopicRows:
    builder = RowBuilder(topic.name, IDS, columns=columns)
    for partition, offsets in topic.ranges(None, None).items():
        for records in topic.records(partition, offsets):
            for record in records:
                builder.add(record)
    return builder.take()


def test_a_table_of_topics_or_of_their_archive_is_weighed_by_the_decisions(tmp_path: Path) -> None:
    topics, let_through = explored_world(tmp_path)
    archive(topics, tmp_path)
    payments, outcomes, decisions = topics
    of_topics, _ = history_of_rows(read_topic(payments), read_topic(outcomes))
    of_topics = with_propensities(of_topics, read_topic(decisions, COLUMNS))
    of_archive, _ = history_of_rows(*archived_rows(tmp_path))
    assert of_archive.propensity is None
    archived = archived_decisions_of(tmp_path, (None, None))
    assert archived is not None
    of_archive = with_propensities(of_archive, archived)
    wanted = [let_through.get(payment_id, 1.0) for payment_id in of_topics.payment_id.to_pylist()]
    assert 20 < len(let_through) < len(wanted) / 50
    for history in (of_topics, of_archive):
        assert history.propensity is not None
        assert history.propensity.tolist() == wanted
    table = training_table(
        of_archive,
        WINDOW,
        engine=small_world.engine(),
        rates=small_world.rates(),
        labels=LabelRules(7, propensity_weight_max=WEIGHT_MAX),
    )
    assert table.weight is not None
    weight = inverse_weights(np.array(wanted)[table.row], WEIGHT_MAX)
    assert np.array_equal(table.weight, weight / weight.mean())
    assert (weight == WEIGHT_MAX).sum() > 10
    # Files of other days are not read.
    first, last = (WINDOW.last + 365) * DAY_MS, None
    none = archived_decisions_of(tmp_path, (first, last))
    assert none is not None
    assert with_propensities(of_archive, none) is of_archive


def test_an_archive_without_decisions_gives_no_propensities(tmp_path: Path) -> None:
    assert archived_decisions_of(tmp_path, (None, None)) is None


# payment, when it was decided, action, reasons, propensity
Said = tuple[int, int, str, tuple[str, ...], float]
DECISIONS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 3),
        st.sampled_from(["approve", "review", "decline"]),
        st.sampled_from([(), ("exploration", "by_score"), ("by_score",)]),
        st.sampled_from([1.0, 0.02, 0.98, 0.0, 0.5]),
    ),
    max_size=12,
)


@given(said=DECISIONS, declined=st.tuples(*[st.sampled_from([None, False, True])] * 5))
def test_the_earliest_decision_of_an_approved_payment_counts_if_the_coin_made_it(
    said: list[Said], declined: tuple[bool | None, ...]
) -> None:
    history = history_of(declined)
    wanted, is_wrong = np.ones(len(declined)), False
    for payment, flag in enumerate(declined):
        own = sorted((at, offset) for offset, (number, at, *_) in enumerate(said) if number == payment)
        if own:
            _, _, action, reasons, propensity = said[own[0][1]]
            if action == "approve" and "exploration" in reasons:
                is_wrong |= propensity == 0.0
                wanted[payment] = 1.0 if flag else propensity
    if is_wrong:
        with pytest.raises(Misconfigured, match=r"wanted propensities above 0 of explored payments, [1-5] of them"):
            with_propensities(history, rows_of(said))
        return
    found = with_propensities(history, rows_of(said)).propensity
    if found is not None:
        assert found.tolist() == wanted.tolist()
    else:
        assert wanted.tolist() == [1.0] * len(declined)


@pytest.mark.parametrize("column", ["vector", "flags"])
def test_no_more_of_a_decision_is_kept_than_asked(column: str) -> None:
    topic = MemoryTopic("decisions")
    topic.append(0, decision("p", NOW_MS, "approve", [], 1.0), NOW_MS)
    assert column not in read_topic(topic, COLUMNS).table.column_names
    assert column in read_topic(topic).table.column_names


def history_of(declined: Sequence[bool | None]) -> History:
    payments = MemoryTopic("payments")
    for number, flag in enumerate(declined):
        row = {"payment_id": f"p{number}", "event_time_ms": NOW_MS, "card_id": "c", "merchant_id": "m"}
        none = dict.fromkeys(("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes"))
        payments.append(0, {**row, **none, "amount_minor": 1, "currency": "EUR", "declined": flag}, NOW_MS)
    outcomes = MemoryTopic("outcomes")
    return history_of_rows(read_topic(payments), read_topic(outcomes))[0]


def rows_of(said: Iterable[Said]) -> TopicRows:
    topic = MemoryTopic("decisions")
    for number, at, action, reasons, propensity in said:
        record = decision(f"p{number}", NOW_MS, action, reasons, propensity)
        topic.append(0, {**record, "decided_time_ms": NOW_MS + at}, NOW_MS)
    return read_topic(topic, COLUMNS)
