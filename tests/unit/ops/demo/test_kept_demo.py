"""The payments of a demonstration that is kept running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.demo import kept_load
from paywarden.ops.demo.kept_demo import _prometheus, shift_time_ms
from paywarden.ops.demo.kept_load import (
    LaterPayments,
    send_until,
    shifted,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from paywarden.streams.drift.drift_counts import counted, row_of
from tests.patience import PATIENCE_S
from tests.services.product.console import console_under_test
from tests.unit.streams.drift.test_detection import NOON_MS, World
from tests.worlds.drift.alerts_on_topics import TopicsInMemory
from tests.worlds.small import small_world

# As few as the demonstration has at its start.
_PAYMENTS_A_BLOCK = 75
_TEXTS = ("payment_id", "card_id", "merchant_id", "currency")


def later(count: int, every_ms: int) -> LaterPayments:
    """Returns payments at equal distances, from NOON_MS on."""
    numbers = list(range(count))
    columns: dict[str, list[object]] = {name: [f"{name}-{n}" for n in numbers] for name in _TEXTS}
    columns |= {"event_time_ms": [NOON_MS + every_ms * n for n in numbers], "amount_minor": [100] * count}
    return LaterPayments(pa.table(columns))


def test_later_payments_come_at_their_own_times_and_none_twice() -> None:
    payments = later(120, 1_000)
    minutes = [payments.between(NOON_MS + start, NOON_MS + start + 60_000) for start in (0, 60_000, 120_000)]
    assert [len(minute) for minute in minutes] == [60, 60, 0]
    assert [payment.event_time_ms for payment in minutes[1]] == [NOON_MS + 60_000 + 1_000 * n for n in range(60)]
    assert len({payment.payment_id for minute in minutes for payment in minute}) == 120


@pytest.mark.parametrize("hangs_in", ["the first wait", "its end"])
def test_a_stop_ends_the_demo_whatever_the_load_does(monkeypatch: pytest.MonkeyPatch, hangs_in: str) -> None:
    """`demo --keep` waited for a load that waited for ever, and ignored its own `stop`."""
    monkeypatch.setattr(kept_load, "_STOP_S", 0.2)
    looks = iter([False] * 4)

    async def hanging() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if hangs_in == "its end":
                await asyncio.sleep(PATIENCE_S)

    async def sent() -> None:
        await asyncio.wait_for(send_until(lambda: next(looks, True), hanging, print), PATIENCE_S / 2)

    asyncio.run(sent())


def test_a_load_that_fails_starts_again_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_load, "_AGAIN_S", 0.01)
    loads, said = list[int](), list[str]()

    async def failing() -> None:
        loads.append(1)
        if len(loads) == 1:
            raise Misconfigured("load: cannot connect")

    asyncio.run(send_until(lambda: len(loads) == 3, failing, said.append))
    assert said == ["sending payments failed and starts again: load: cannot connect"]


def test_the_shift_is_an_alert_in_the_inbox_about_ten_minutes_later(tmp_path: Path) -> None:
    """The payments of `demo --keep`, on the clock of drift detection: a demonstration needs 15 minutes for it."""
    shift_ms = shift_time_ms(NOON_MS + 60_000)
    world = World()
    while not world.told.alerts and world.now_ms < shift_ms + 3 * LENGTHS_MS[0]:
        start_ms, world.now_ms = world.now_ms, world.now_ms + LENGTHS_MS[0]
        counts = _counts_of_sent(world, start_ms, lambda start_ms=start_ms: start_ms >= shift_ms)  # type: ignore[misc]
        world.detection.evaluate(start_ms, LENGTHS_MS[0], {world.version: counts})
        assert not world.told.alerts or start_ms >= shift_ms, "usual payments raise no alert"
    (alert, *_) = world.told.alerts
    assert shift_ms < alert.raised_ms <= shift_ms + 2 * LENGTHS_MS[0]
    console = console_under_test(tmp_path)
    store, topics = AlertStore(console.database), TopicsInMemory()
    store.take(FeedBatch((FeedRecord(ALERTS_TOPIC, 0, world.told.records[alert.alert_id]),), {}))
    inbox = Inbox(store, AlertReader(store, lambda: topics, lambda: topics), AlertPage(store, lambda: ""))
    browser = console.browser([inbox.section()], "demo-analyst")
    assert f'href="/inbox/{alert.alert_id}"' in browser.get("/inbox").text
    page = browser.get(f"/inbox/{alert.alert_id}").text
    assert "payments whose channel the reference does not list" in page.lower()
    console.database.close()


def _counts_of_sent(world: World, start_ms: int, is_shifted: Callable[[], bool]) -> Counts:
    """Returns the counts of a block of usual decisions, after the change that the demonstration makes to payments."""
    records = list(world.decisions.records(start_ms, _PAYMENTS_A_BLOCK, LENGTHS_MS[0]))
    usual = [
        ScoreRequest(payment_id=each["payment_id"], amount_minor=100, channel=each["channel"] or "") for each in records
    ]
    amount = small_world.loaded_bundle().manifest.feature_names.index("amount")
    for record, sent in zip(records, shifted(iter(usual), is_shifted), strict=True):
        vector = np.frombuffer(record["vector"], dtype="<f4").copy()
        vector[amount] *= sent.amount_minor / 100
        record |= {"channel": sent.channel or None, "vector": vector.tobytes()}
    _, binning = world.binnings.of(world.version)
    return counted(binning, [row_of(offset, record) for offset, record in enumerate(records)])


def test_prometheus_gets_a_job_for_each_process(tmp_path: Path) -> None:
    text = _prometheus({"serve": "http://127.0.0.1:1", "stream": "http://127.0.0.1:2"}, [tmp_path / "alerts.yml"])
    read = yaml.safe_load(text)
    assert read["rule_files"] == [str(tmp_path / "alerts.yml")]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in read["scrape_configs"]}
    assert jobs == {"serve": ["127.0.0.1:1"], "stream": ["127.0.0.1:2"]}
