"""A console that listens, over topics in memory and an index in a file: for a real browser."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvicorn

from paywarden.features.profiles.plan import Plan
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops import wiring
from paywarden.ops.console.assembly import listed_catalogue
from paywarden.ops.console.audit_page import audit_section
from paywarden.ops.console.background import running
from paywarden.ops.console.cases import Cases
from paywarden.ops.console.console_openapi import api_section
from paywarden.ops.console.decisions.decision_page import DecisionPage
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.notes import EntityNotes
from paywarden.ops.console.decisions.search import DecisionSearch
from paywarden.ops.console.evidence_page import EvidencePages, Packs
from paywarden.ops.console.health.health import Health
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.inbox.segments import SegmentCounts
from paywarden.ops.console.inbox.stakes import AlertSample
from paywarden.ops.console.merchants import Merchants
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.models.models_page import Models
from paywarden.ops.console.models.rollout_plan import index_traffic
from paywarden.ops.console.outcome_charts import OutcomeCharts
from paywarden.ops.console.page_rows import Section
from paywarden.ops.console.people import Person
from paywarden.ops.console.policy.drafts import IndexedDecisions
from paywarden.ops.console.policy.policy_page import PolicySection
from paywarden.ops.console.policy.saved_drafts import SavedDrafts
from paywarden.ops.console.rendering import Currencies
from paywarden.ops.console.review.picked import Picked
from paywarden.ops.console.review.review import Review
from paywarden.ops.console.shell import API
from paywarden.ops.deciders import KnownDeciders
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alerts import State
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.ledger import MerchantLedger
from paywarden.streams.decision_index.reviews import AnalystVerdict, ReviewQueue, ReviewRules
from tests.services.product.console import console_under_test
from tests.unit.ops.commands.watch.test_evidence import World as Archived
from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record
from tests.worlds.stream.decision_records import decision

POLICY = {
    "review_at": 0.3,
    "decline_at": 0.8,
    "rules": [{"name": "large", "when": "amount > 100000", "action": "review"}],
}
_HOUR_MS = 3_600_000


@dataclass
class Running:
    """A console that listens. Its topics are in memory, its index has `decisions`; `decide` adds some."""

    url: str
    topics: TopicsInMemory
    decisions: list[dict[str, Any]]
    processes: Processes
    decide: Callable[[list[dict[str, Any]]], None]
    # The verdicts that wait for their topic.
    verdicts: Callable[[], list[AnalystVerdict]]


@dataclass
class Processes:
    """The states that a stream and a scoring host report. `away`: processes that do not answer."""

    lag: int = 12
    away: set[str] = field(default_factory=set)

    def __call__(self, address: str) -> tuple[int, str]:
        name, what = address.removeprefix("http://").split(":")[0], address.rpartition("/")[2]
        if name in self.away:
            raise OSError
        if what == "readyz":
            return 200, "{}"
        if name == "stream":
            return 200, f"paywarden_stream_consumer_lag {self.lag}\npaywarden_drift_partition_behind_seconds 0.4\n"
        buckets = "".join(
            f'paywarden_request_seconds_bucket{{le="{edge}"}} {count}\n'
            for edge, count in (("0.001", 900), ("0.0025", 995), ("+Inf", 1000))
        )
        return 200, f"paywarden_mirror_age_seconds 0.3\npaywarden_decisions_total 1000\n{buckets}"


def some_decisions(now: int, plan: Plan) -> list[dict[str, Any]]:
    """Returns 60 decisions of the last two days about five cards; each ninth is under review."""
    made = []
    digest = policy_digest(Source({"policy": POLICY}, {}).section("policy", PolicySettings), {})
    for number in range(60):
        score = number * 37 % 60 / 60
        action = "review" if number % 9 == 0 else "decline" if score > 0.9 else "approve"
        made.append(
            decision(
                f"pay-{number:03d}",
                decided_time_ms=now - number * 45 * 60_000 - 60_000,
                event_time_ms=now - number * 45 * 60_000 - 60_050,
                card_id=f"card-of-customer-{number % 5}",
                merchant_id=f"shop-{number % 3}",
                device_id=f"device-of-customer-{number % 7}",
                ip=None,
                mcc=None,
                country="DE",
                channel="pos" if number % 3 else "ecom",
                amount_minor=(number * 7919 % 400 + 1) * 1000,
                score=score,
                action=action,
                reasons=["rule:large"] if action == "review" else [],
                catalogue_digest=plan.digest,
                policy_digest=digest,
                vector=bytes(4 * len(plan.names)),
            )
        )
    return made


class _Recent:
    def __init__(self, decisions: list[dict[str, Any]]) -> None:
        self._decisions = decisions

    def between(self, _: int, __: int) -> list[dict[str, Any]]:
        return self._decisions

    def close(self) -> None:
        pass


def _sample(_: str) -> AlertSample:
    labels = ("< 10", "10 to 20", "≥ 20", "missing")
    segments = (
        SegmentCounts("channel=ecom", labels, (120, 60, 20, 0), (40, 50, 110, 0), 90.0),
        SegmentCounts("channel=pos", labels, (150, 90, 60, 0), (140, 95, 65, 0), 5.0),
    )
    return AlertSample(("pay-050", "pay-051"), ("pay-001", "pay-002"), segments)


@contextmanager
def served_console(
    folder: Path,
    models: Mapping[str, Any] | None = None,
    keys: str = "",
    people: Sequence[Person] = (),
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Running]:
    """Yields a console with eight alerts and 60 decisions, which ends with the block.

    `models`: settings of a registry; `keys`: the folder of its people's keys. `people` come to the demo people.
    `changes`: fields of all decisions.
    """
    console = console_under_test(folder)
    topics, now, processes = TopicsInMemory(), now_ms(), Processes()
    shift: dict[str, Any] = {
        "first_seen_time_ms": now - 1_500_000,
        "window_start_time_ms": now - 300_000,
        "window_end_time_ms": now,
    }
    for number in range(8):
        topics.put(alert_record(number, time_ms=now - 900_000 + number, **shift))
    topics.put(alert_record(2, state=State.ESCALATED, time_ms=now - 300_000, **{**shift, "value": 0.8}))
    store = AlertStore(console.database)
    reader = AlertReader(store, lambda: topics, lambda: topics)
    console.shell.clock = now_ms
    known = console.shell.people
    console.shell.people = replace(known, people={**known.people, **{one.name: one for one in people}})
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    console.shell.url = url
    settings: dict[str, Any] = {
        "serve": {"bundle": str(folder / "none"), "runtime": str(folder)},
        "policy": POLICY,
        **({} if models is None else {"models": models}),
    }
    source, ids = Source(settings, {}), LocalSchemaIds()
    decisions = [{**one, **changes} for one in some_decisions(now, wiring.feature_engine(source).plan)]
    desk = Desk(source, keys)
    database = DuckDbDatabase(folder / "index.duckdb", memory_mb=256, threads=1)
    index = DecisionIndex(database, worth=lambda amount, _currency, _time: amount)
    queue = ReviewQueue(database, ReviewRules(second_share=0.0))
    encoder, decoder = Encoder("decisions", ids.id_of("decisions")), Decoder("decisions", ids)

    def decide(more: list[dict[str, Any]]) -> None:
        with database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(one, encoder.encode(one)) for one in more])
            queue.add_decisions(transaction, more, [index.worth(one) for one in more])

    decide(decisions)
    with database.transaction() as transaction:
        index.add_outcomes(
            transaction,
            [
                {"payment_id": f"pay-{number:03d}", "outcome_time_ms": now, "label": label, "source": "chargeback"}
                for number, label in (
                    (9, "fraud"),
                    (18, "fraud"),
                    (27, "genuine"),
                    (5, "fraud"),
                    (10, "fraud"),
                    (13, "genuine"),
                )
            ],
        )
    MerchantLedger(database, now_ms=now_ms).step()
    opened = OpenedIndex(lambda: nullcontext((index, queue)), None, now_ms=now_ms)
    console.shell.currencies = Currencies("EUR")
    known_deciders, listed = KnownDeciders(source, None, None), listed_catalogue(source)
    notes = EntityNotes(store, reader)
    one = DecisionPage(opened, known_deciders, decoder.decode, listed, console.shell.currencies, notes.of)
    page = AlertPage(store, lambda: url, desk.happenings, _sample)
    Archived(payments=300).write(folder / "archive")
    packs = Packs(source, folder / "archive", folder / "evidence", None, console.audit)
    cases = Cases(store, reader, folder / "files", people=console.shell.names)
    picked = Picked(opened, store, reader, cases)
    found = DecisionSearch(
        opened, notes.page(), *one.pages(), notes=notes.of, picks=picked.form, assigned=picked.assigned
    )
    sections: list[Section] = [
        Inbox(store, reader, page, missing=console.shell.missing).section(),
        found.section(),
        Review(opened, CostSettings(), one.in_words, notes.of, picked).section(),
        Merchants(opened).section(),
        OutcomeCharts(opened, 7).section(),
        EvidencePages(packs).section(),
        cases.section(),
        Models(desk, index_traffic(opened, decoder.decode)).section(),
        PolicySection(
            source,
            desk,
            lambda: _Recent(decisions),
            IndexedDecisions(source, opened, decoder.decode),
            SavedDrafts(console.database),
        ).section(),
        Health(
            ["stream=http://stream:9102", "host-1=http://host-1:8081"], processes, missing=console.shell.missing
        ).section(),
        audit_section(console.audit, lambda event: reader.write([event])),
        console.login.section(),
    ]
    sections.append(api_section(lambda: sections, API))
    app = console.shell.application(sections, console.login.routes)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    try:
        with running(sections):
            thread.start()
            yield Running(url, topics, decisions, processes, decide, lambda: queue.unsent(10_000))
            server.should_exit = True
            thread.join(10)
    finally:
        listener.close()
        database.close()
        console.database.close()
