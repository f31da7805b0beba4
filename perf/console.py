"""The console with 10,000 alerts: how long the server takes for each page, for searches, and whether decisions agree.

Measured: requests to the application in this process, as a browser makes them, with a session and its checks, the
database and the templates: the inbox in each order and with filters, a page deep in it, an alert's page, and its number
of changes, which every open inbox asks for each second. Also how long the database takes to be rebuilt from the topics.
`…_cpu_…` is the CPU time of a page, which says something on a busy machine, too.
Stubbed: the topics, which are lists in memory, and the socket. Used for: pages p99 under 300 ms. The run checks that a
page has the alerts that it should.

Then pages over an index of `--rows` made decisions of a year, at most 10,000 of them in the review queue: searches, the
queue, the page of a payment and the links that it fetches, charts and CSV, in a file or with `--postgres` in a server
of its own. The decisions go straight into the tables, without the records that a payment's page decodes.

And `--decisions` payments that the real scorer decides, with rules, a segment and reasons, kept in the index and
decided again, as `decisions explain` does: `recomputed_equal_share`, which has to be 1, counts those with the same
score in its 64 bits, the same action and the same reasons.

    python -m perf.console [--alerts N] [--requests N] [--rows N] [--searches N] [--postgres] [--decisions N]
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from httpx2 import Response

from paywarden.models.metrics.costs import CostSettings
from paywarden.ops.console.decisions.decision_page import DecisionPage
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.search import DecisionSearch
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.outcome_charts import OutcomeCharts
from paywarden.ops.console.page_rows import PAGE_SIZE
from paywarden.ops.console.rendering import time_text
from paywarden.ops.console.review.review import Review
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
from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
from paywarden.streams.decision_index.filler import FILL_TIDY_KEYS
from paywarden.streams.decision_index.index import HOUR_MS, DecisionIndex, Stored
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.decision_index.search import ACTIONS, KEYED_SCORE_MIN, Place, key_hash, score_key
from perf.tools.measuring import arguments_of, finish
from perf.worlds.scoring_host import open_host, scorer_of
from tests.services.product.console import NOW_MS, console_under_test, searched
from tests.services.servers.postgres import postgres_server
from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

_BATCH = 500


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--alerts", {"type": int, "default": 10_000, "help": "of the inbox; 0: no pages of it"}),
        ("--requests", {"type": int, "default": 400, "help": "for each kind of page"}),
        ("--rows", {"type": int, "default": 200_000, "help": "decisions of the index; 0: no pages of it"}),
        (
            "--searches",
            {"type": int, "default": 420, "help": "pages of the index: 15 kinds in turn, each at least once"},
        ),
        ("--postgres", {"action": "store_true", "help": "the index in PostgreSQL"}),
        ("--decisions", {"type": int, "default": 10_000, "help": "to decide again; 0: none"}),
    )
    with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as name:
        folder = Path(name)
        figures = pages(folder, arguments.alerts, arguments.requests) if arguments.alerts else {}
        if arguments.rows:
            figures |= index_pages(folder, arguments.rows, arguments.searches, with_postgres=arguments.postgres)
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


# Pages over the index

_CARDS, _MERCHANTS, _RULES, _DAYS, _DAY_MS = 1_000_000, 10_000, 20, 365, 86_400_000
_CHUNK, _REVIEWS = 500_000, 10_000
_START_MS = NOW_MS - _DAYS * _DAY_MS
_DECLINED, _REVIEWED = 0.005, 0.01
# The share of payments with an outcome, and of frauds among these.
_WITH_OUTCOME, _FRAUDS = 0.1, 0.02


def fill(database: Database, rows: int) -> None:
    """Write decisions of a year, a few merchants with most of them, and outcomes into the tables of an index."""
    rng, tables = np.random.default_rng(1), ("card_id", "merchant_id", "device_id")
    sizes = dict(zip(tables, (_CARDS, _MERCHANTS, _CARDS), strict=True))
    names = {kind: pa.array([f"{kind[0]}-{number}" for number in range(size)]) for kind, size in sizes.items()}
    hashes = {kind: np.array([key_hash(kind, name) for name in names[kind].to_pylist()]) for kind in tables}
    rule_hashes = np.array([key_hash("rule", f"rule-{number}") for number in range(_RULES)])
    for first in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - first)
        times = _START_MS + np.arange(first, first + count) * (_DAYS * _DAY_MS) // rows
        payments = [f"p-{number}" for number in range(first, first + count)]
        payment_hashes = np.array([key_hash("payment_id", payment) for payment in payments])
        score, chance = rng.beta(0.08, 25, count), rng.random(count)
        action = (chance < _DECLINED + _REVIEWED).astype(int) + (chance < _DECLINED)
        taken = {kind: rng.integers(size, size=count) for kind, size in sizes.items()}
        taken["merchant_id"] = (_MERCHANTS * rng.random(count) ** 4).astype(int)
        rules = rng.integers(_RULES, size=count)
        amount = rng.integers(100, 90_000, count)
        texts = {kind: names[kind].take(pa.array(taken[kind])) for kind in tables}
        ids = {"decided_time_ms": times, "payment_hash": payment_hashes, "decision_id": [f"d-{p}" for p in payments]}
        plain = {"ip": "", "currency": "EUR", "country": "", "channel": "ecom", "flags": "[]", "model_version": "1"}
        decisions = ids | {name: [text] * count for name, text in plain.items()} | texts
        decisions |= {"payment_id": payments, "event_time_ms": times, "amount_minor": amount, "worth_minor": amount}
        decisions |= {"score": score, "action": action, "country": [("DE", "FR", "BR")[n % 3] for n in range(count)]}
        decisions["reasons"] = [f'["rule:rule-{rule}"]' if a else "[]" for rule, a in zip(rules, action, strict=True)]
        keyed: list[tuple[Any, Any]] = [
            (payment_hashes, slice(None)),
            *((hashes[kind][taken[kind]], slice(None)) for kind in tables),
        ]
        for place in (1, 2):
            of_action = np.flatnonzero(action == place)
            keyed.append((np.full(len(of_action), key_hash("action", ACTIONS[place])), of_action))
        of_rule = np.flatnonzero(action)
        keyed.append((rule_hashes[rules[of_rule]], of_rule))
        bands = np.minimum((score * 100).astype(int), 100)
        of_score = np.flatnonzero(score >= KEYED_SCORE_MIN)
        keyed.append((np.array([score_key(band) for band in range(101)])[bands[of_score]], of_score))
        columns = {"decided_time_ms": times, "payment_hash": payment_hashes, "score": score, "action": action}
        keys = {name: np.concatenate([values[which] for _, which in keyed]) for name, values in columns.items()}
        told = np.flatnonzero(rng.random(count) < _WITH_OUTCOME)
        label = np.where(rng.random(len(told)) < _FRAUDS, "fraud", "genuine")
        outcomes = {"payment_hash": payment_hashes[told], "outcome_time_ms": times[told] + _DAY_MS, "label": label}
        with database.transaction() as transaction:
            transaction.append("decisions", decisions)
            transaction.append("keys", {"hash": np.concatenate([hash_ for hash_, _ in keyed])} | keys)
            transaction.append("outcomes", outcomes | {"source": [""] * len(told)})
        database.tidy(at_least=FILL_TIDY_KEYS)
    database.tidy(at_least=1)
    _derive(database)


def _derive(database: Database) -> None:
    """Fill the tables that follow from the decisions, and the queue."""
    began = f"decided_time_ms - decided_time_ms % {_DAY_MS}"
    sums = (
        "count(*), sum(CASE WHEN action = 2 THEN 1 ELSE 0 END), sum(CASE WHEN action = 2 THEN 0 ELSE worth_minor END)"
    )
    for merchant, more in (("merchant_id", ", merchant_id"), ("''", "")):
        with database.transaction() as transaction:
            transaction.execute(
                f"INSERT INTO tallies SELECT {began}, {merchant}, country, currency, channel, {sums}, 0, 0, 0, 0 "
                f"FROM decisions GROUP BY {began}, country, currency, channel{more} ORDER BY 1"
            )
    with database.transaction() as transaction:
        hour = f"(decided_time_ms - decided_time_ms % {HOUR_MS})"
        transaction.execute(f"INSERT INTO hours SELECT {hour} / {HOUR_MS}, count(*) FROM decisions GROUP BY 1")
        transaction.execute(
            "INSERT INTO reviews SELECT decision_id, decided_time_ms, payment_hash, payment_id, merchant_id, country, "
            "currency, channel, score, worth_minor, 'open', 1, '', '', 0, 0 FROM decisions WHERE action = 1 "
            f"ORDER BY decided_time_ms DESC LIMIT {_REVIEWS}"
        )


def pages_of_index(folder: Path, database: Database, count: int) -> dict[str, float]:
    """Return the quantiles of pages over an index, by kind."""
    index, queue = DecisionIndex(database), ReviewQueue(database, ReviewRules(age_ms_max=_DAYS * _DAY_MS))
    opened = OpenedIndex(lambda: nullcontext((index, queue)), None, now_ms=lambda: NOW_MS)
    one = DecisionPage(
        opened, KnownDeciders(read_source(None, {}), None, None), Decoder("decisions", LocalSchemaIds()).decode
    )
    sections = DecisionSearch(opened, *one.pages()).section(), Review(opened, CostSettings()).section()
    console = console_under_test(folder / "pages")
    client = console.browser([*sections, OutcomeCharts(opened, 7).section()], "demo-analyst")
    rng, rows = random.Random(2), index.count()

    def day() -> str:
        return time_text(_START_MS + rng.randrange(30, _DAYS) * _DAY_MS, "%Y-%m-%dT%H:%M")

    kinds: dict[str, Callable[[], Response]] = {
        "search_payment": lambda: client.get(f"/decisions?payment_id=p-{rng.randrange(rows)}"),
        "search_card": lambda: searched(client, card_id=f"c-{rng.randrange(_CARDS)}"),
        "search_merchant": lambda: client.get(f"/decisions?merchant_id=m-{int(_MERCHANTS * rng.random() ** 4)}"),
        "search_busiest_declined": lambda: client.get("/decisions?merchant_id=m-0&action=decline"),
        "search_score": lambda: client.get(f"/decisions?score_min=0.1&to={day()}"),
        "search_rule": lambda: client.get(f"/decisions?rule=rule-{rng.randrange(_RULES)}&to={day()}"),
        "search_time": lambda: client.get(f"/decisions?to={day()}"),
        "queue": lambda: client.get("/review"),
        "payment_page": lambda: client.get(f"/decisions/p-{rng.randrange(rows)}"),
        "payment_linked": lambda: client.get(f"/decisions/p-{rng.randrange(rows)}/linked"),
        "charts_days": lambda: client.get("/charts"),
        "charts_weeks": lambda: client.get("/charts?by=week&country=DE"),
        "charts_merchant": lambda: client.get("/charts?by=week&merchant_id=m-0"),
        "csv_search": lambda: client.get("/decisions/csv?action=decline"),
        "csv_queue": lambda: client.get("/review/csv"),
    }
    took_ms: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(max(count, len(kinds))):
        name = list(kinds)[number % len(kinds)]
        began = time.perf_counter()
        answer = kinds[name]()
        took_ms[name].append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (name, answer.text)
    console.database.close()
    assert sum(one.payments for one in index.period_counts("week", 0, NOW_MS, {})) == rows
    return {"index_rows": float(rows)} | _quantiles(took_ms)


def index_pages(folder: Path, rows: int, count: int, *, with_postgres: bool) -> dict[str, float]:
    """Return the figures of pages over an index of `rows` decisions, in a file or in a server of its own."""
    with ExitStack() as stack:
        database: Database
        if with_postgres:
            server = stack.enter_context(postgres_server())
            database = PostgresDatabase(server.address, timeout_ms=600_000)
        else:
            database = DuckDbDatabase(folder / "index.duckdb", memory_mb=4096)
        stack.callback(database.close)
        began = time.perf_counter()
        fill(database, rows)
        filled = {"fill_seconds": time.perf_counter() - began, "load_1m": os.getloadavg()[0]}
        if with_postgres:
            with database.transaction() as transaction:
                transaction.execute("ANALYZE")
        return filled | pages_of_index(folder, database, count)


# Decisions that are decided again

_DECIDED_MS = int(small_world.history().event_time_ms[-1]) + 1000
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
        writer.apply(profiles(), {0: 1}, _DECIDED_MS)
    scorer = scorer_of(host, "recomputed")
    for number, request in enumerate(requests_of(small_world.tables()[0].slice(0, count), id_prefix="p-")):
        request.event_time_ms = _DECIDED_MS
        scorer.score([request.SerializeToString()], _DECIDED_MS + number)
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
