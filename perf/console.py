"""The console with 10,000 alerts: how long the server takes for each page, for searches, and whether decisions agree.

Measured: requests to the application in this process, as a browser makes them, with a session and its checks, the
database and the templates: the inbox in each order and with filters, a page deep in it, an alert's page, and its number
of changes, which every open inbox asks for each second. Also how long the database takes to be rebuilt from the topics.
`…_cpu_…` is the CPU time of a page, which says something on a busy machine, too.
Stubbed: the topics, which are lists in memory, and the socket. Used for: pages p99 under 300 ms. The run checks that a
page has the alerts that it should.

Then searches of an index of `--rows` made decisions (`search_…_ms`), as a page does, without its HTML: every row must
meet what was asked for, newest first. And `--decisions` payments that the real scorer decides, with rules, a segment
and reasons, kept in the index and decided again, as `decisions explain` does: `recomputed_equal_share`, which has to be
1, counts those with the same score in its 64 bits, the same action and the same reasons.

    python -m perf.console [--alerts N] [--requests N] [--rows N] [--searches N] [--decisions N] [--json FILE]
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.page_rows import PAGE_SIZE
from paywarden.ops.deciders import KnownDeciders
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.outbox import OutboxReader
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.alerts.feed import FeedBatch, FeedPosition, FeedRecord
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.search import ACTIONS, Place, Search, key_hash
from perf.tools.measuring import arguments_of, finish
from perf.worlds.scoring_host import open_host, scorer_of
from tests.services.product.console import console_under_test
from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles
from tests.worlds.stream.decision_records import decision

_BATCH = 500


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--alerts", {"type": int, "default": 10_000, "help": "of the inbox"}),
        ("--requests", {"type": int, "default": 400, "help": "for each kind of page"}),
        ("--rows", {"type": int, "default": 200_000, "help": "decisions of the index; 0: no searches"}),
        ("--searches", {"type": int, "default": 360, "help": "of all kinds in turn"}),
        ("--decisions", {"type": int, "default": 10_000, "help": "to decide again; 0: none"}),
    )
    with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as name:
        folder = Path(name)
        figures = pages(folder, arguments.alerts, arguments.requests)
        if arguments.rows:
            figures |= searches(folder / "searched.duckdb", arguments.rows, arguments.searches)
        if arguments.decisions:
            figures |= recomputed(folder, arguments.decisions)
    finish(figures, arguments.json)


def _quantiles(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {
        f"{name}_{words}_ms": float(np.quantile(row, share))
        for name, row in values.items()
        for words, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


# Pages of the inbox


def pages(folder: Path, alerts: int, requests: int) -> dict[str, float]:
    """Return the figures of pages."""
    console = console_under_test(folder)
    store = AlertStore(console.database)
    records = [FeedRecord(ALERTS_TOPIC, number, alert_record(number)) for number in range(alerts)]
    began = time.perf_counter()
    for start in range(0, alerts, _BATCH):
        position = {ALERTS_TOPIC: FeedPosition("perf", min(alerts, start + _BATCH))}
        store.take(FeedBatch(tuple(records[start : start + _BATCH]), position))
    rebuild_s = time.perf_counter() - began
    topics = TopicsInMemory()
    reader = AlertReader(store, lambda: topics, lambda: topics)
    # One read of nothing: the pages know that the topics can be reached.
    stop = threading.Event()
    topics.put()
    threading.Timer(0.2, stop.set).start()
    store.take(FeedBatch((), {topic: FeedPosition(topics.identity, 0) for topic in topics.topics}))
    reader.run(stop)
    client = console.browser([Inbox(store, reader, AlertPage(store, lambda: "")).section()], "demo-analyst")
    orders = [f"/inbox?sort={sort}" for sort in ("worst", "newest", "oldest", "affected", "money", "evidence")]
    form = {"q": "country"}
    by_text = client.post("/inbox", data=form).headers["location"]
    choices = [*orders, "/inbox?severity=critical", by_text, "/inbox?state=all&cause=traffic", "/inbox?page=150"]
    times: dict[str, list[float]] = {
        f"{name}{cpu}": [] for name in ("alerts", "alert_page", "version") for cpu in ("", "_cpu")
    }
    chance = np.random.default_rng(7)
    for number in range(requests):
        for name, address in (
            ("alerts", choices[number % len(choices)]),
            ("alert_page", f"/inbox/alert-{int(chance.integers(alerts)):05d}"),
            ("version", "/inbox/version"),
        ):
            began, cpu_began = time.perf_counter(), time.process_time()
            answer = client.get(address)
            times[name].append((time.perf_counter() - began) * 1000)
            # All threads of this process, the test client's included.
            times[f"{name}_cpu"].append((time.process_time() - cpu_began) * 1000)
            assert answer.status_code == 200, address
            if address in orders:
                assert answer.text.count('type="checkbox"') == min(PAGE_SIZE, alerts)
    console.database.close()
    return {"alerts": float(alerts), "rebuild_seconds": rebuild_s} | _quantiles(times)


# Searches of the index

_CARDS, _MERCHANTS, _RULES, _DAYS = 100_000, 10_000, 20, 100
_START_MS, _DAY_MS = 1_704_067_200_000, 86_400_000
_CHUNK = 20_000


def _made_decisions(rows: int) -> Iterator[dict[str, Any]]:
    """Yield decisions over 100 days: a few merchants have most payments, and 3 % of the scores are from 0.02 on."""
    rng = random.Random(1)
    for number in range(rows):
        score = rng.betavariate(0.08, 25)
        action = ACTIONS[(score > 0.1) + (score > 0.25)]
        time_ms = _START_MS + number * _DAYS * _DAY_MS // rows
        yield decision(
            f"p-{number}",
            decided_time_ms=time_ms,
            event_time_ms=time_ms,
            card_id=f"card-{rng.randrange(_CARDS)}",
            merchant_id=f"m-{int(_MERCHANTS * rng.random() ** 4)}",
            device_id=f"d-{rng.randrange(_CARDS)}",
            ip=None,
            score=score,
            action=action,
            reasons=[] if action == ACTIONS[0] else [f"rule:rule-{rng.randrange(_RULES)}"],
        )


def _day(rng: random.Random) -> int:
    return _START_MS + rng.randrange(_DAYS) * _DAY_MS


_SEARCHES: Mapping[str, Callable[[random.Random, int], Search]] = {
    "payment": lambda rng, rows: Search(payment_id=f"p-{rng.randrange(rows)}"),
    "card": lambda rng, _: Search(card_id=f"card-{rng.randrange(_CARDS)}"),
    "device": lambda rng, _: Search(device_id=f"d-{rng.randrange(_CARDS)}"),
    "merchant": lambda rng, _: Search(merchant_id=f"m-{int(_MERCHANTS * rng.random() ** 4)}"),
    "busiest_merchant": lambda *_: Search(merchant_id="m-0", action="decline"),
    "card_at_merchant": lambda rng, _: Search(card_id=f"card-{rng.randrange(_CARDS)}", merchant_id="m-0"),
    "rule": lambda rng, _: Search(rule=f"rule-{rng.randrange(_RULES)}", last_ms=_day(rng)),
    "score": lambda rng, _: Search(score_min=0.3, last_ms=_day(rng)),
    "since": lambda rng, _: Search(first_ms=_day(rng)),
    "newest": lambda *_: Search(),
}


def searches(path: Path, rows: int, count: int) -> dict[str, float]:
    """Fill an index, and return the quantiles of searches, over all and by kind."""
    rng, took_ms = random.Random(1), dict[str, list[float]]()
    with closing(DuckDbDatabase(path, memory_mb=4096)) as database:
        index, decisions = DecisionIndex(database), list(_made_decisions(rows))
        for first in range(0, rows, _CHUNK):
            with database.transaction() as transaction:
                index.add_decisions(transaction, [Stored(each, b"") for each in decisions[first : first + _CHUNK]])
        database.tidy(at_least=1)
        for number in range(count):
            name = list(_SEARCHES)[number % len(_SEARCHES)]
            search = _SEARCHES[name](rng, rows)
            began = time.perf_counter()
            page = index.search(search)
            took_ms.setdefault(f"search_{name}", []).append((time.perf_counter() - began) * 1000)
            places = [row.place for row in page.rows]
            assert places == sorted(places, reverse=True)
            assert all(search.score_min <= row.score <= search.score_max for row in page.rows)
            assert all(search.action in ("", row.action) and search.card_id in ("", row.card_id) for row in page.rows)
            assert not search.payment_id or [row.payment_id for row in page.rows] == [search.payment_id]
    every = [value for values in took_ms.values() for value in values]
    return {"index_rows": float(rows)} | _quantiles({"search": every, **took_ms})


# Decisions that are decided again

_NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
_SETTINGS = """\
[mirror]
path = "{folder}/mirror"
[outbox]
directory = "{folder}/outbox"
[serve]
bundle = "{bundle}"
metrics = "{folder}/metrics"
runtime = "{folder}/serve"
[limits]
past_ms_max = 315_360_000_000
[policy]
review_at = 0.01
decline_at = 0.05
[[policy.rules]]
name = "busy"
when = "card_count_1h >= 3"
action = "review"
[[policy.rules]]
name = "large"
when = "amount > 300_00 and score > 0.004"
action = "decline"
[[policy.segments]]
name = "online"
when = 'channel == "ecom"'
review_at = 0.006
"""
_AT_ONCE = 100


def recomputed(folder: Path, count: int, *, is_broken: bool = False) -> dict[str, float]:
    """Return the share of `count` decisions that are equal; `is_broken` changes the last bit of one stored score."""
    ids = LocalSchemaIds()
    encoder, decoder = Encoder("decisions", ids.id_of("decisions")), Decoder("decisions", ids)
    config = folder / "recomputed.toml"
    config.write_text(_SETTINGS.format(bundle=small_world.trained_bundle(), folder=folder), encoding="utf-8")
    decisions = _decided(config, count)
    if is_broken:
        decisions[0]["score"] = float(np.nextafter(decisions[0]["score"], 1.0))
    with closing(DuckDbDatabase(folder / "recomputed.duckdb")) as database:
        index = DecisionIndex(database)
        with database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, encoder.encode(each)) for each in decisions])
        places = [Place(each["decided_time_ms"], key_hash("payment_id", each["payment_id"])) for each in decisions]
        known = KnownDeciders(read_source(str(config), {}), None, None)
        began, found = time.perf_counter(), list[bool]()
        for first in range(0, count, _AT_ONCE):
            bodies = index.bodies(places[first : first + _AT_ONCE]).values()
            found += [known.recomputed(decoder.decode(body)).is_equal for body in bodies]
        took_s = time.perf_counter() - began
    assert len(found) == count
    return {"recomputed_equal_share": sum(found) / count, "recomputed_per_second": count / took_s}


def _decided(config: Path, count: int) -> list[dict[str, Any]]:
    """Return decisions that a scorer made, in the form of their topic."""
    host = open_host(config)
    with closing(MirrorWriter(host.mirror)) as writer:
        writer.apply(profiles(), {0: 1}, _NOW_MS)
    scorer = scorer_of(host, "recomputed")
    for number, request in enumerate(requests_of(small_world.tables()[0].slice(0, count), id_prefix="p-")):
        request.event_time_ms = _NOW_MS
        scorer.score([request.SerializeToString()], _NOW_MS + number)
    scorer.scorer.close_mirror()
    reader = OutboxReader(host.outbox, "recomputed")
    position, entries = reader.oldest(), list[OutboxEntry]()
    while records := reader.read(position, _AT_ONCE):
        position = records[-1][0]
        entries += [OutboxEntry.FromString(data) for _, data in records]
    assert len(entries) == count
    return [dict(decision_of(entry)) for entry in entries]


if __name__ == "__main__":
    main()
