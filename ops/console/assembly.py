"""Builds the analysts' pages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    import threading

    from starlette.types import ASGIApp

    from paywarden.features.profiles.feature_docs import ListedFeature
    from paywarden.ops.console.audit import AuditLog
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.decisions.index_connection import OpenedIndex
    from paywarden.ops.console.inbox.reader import AlertReader
    from paywarden.ops.console.inbox.stakes import Stakes
    from paywarden.ops.console.inbox.store import AlertStore, Happened
    from paywarden.ops.console.models.traffic import IndexTraffic
    from paywarden.ops.console.pages import Section
    from paywarden.ops.console.policy.indexed_decisions import IndexedDecisions
    from paywarden.ops.console.rendering.templates import Currencies
    from paywarden.ops.console.settings import ConsoleSettings
    from paywarden.ops.console.shell import Shell
    from paywarden.ops.console.webhooks import Webhooks
    from paywarden.streams.alerts.samples import DecisionSampler

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConsoleParts:
    """The parts from which sections are made."""

    source: Source
    shell: Shell
    database: ConsoleDatabase
    audit: AuditLog


@dataclass(frozen=True)
class Console:
    """The application, and its sections, whose background work `running` starts."""

    app: ASGIApp
    shell: Shell
    sections: tuple[Section, ...]


@contextmanager
def console(source: Source, settings: ConsoleSettings, url: str, stop: threading.Event) -> Iterator[Console]:
    """Yields the console, whose background work ends with the block, or earlier when `stop` is set.

    `url`: its address where the settings have none.

    Raises Misconfigured, DatabaseUnavailable.
    """
    from paywarden.ops.console.audit import audit_log
    from paywarden.ops.console.background import Failures, running
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.login.oidc import OidcProvider
    from paywarden.ops.console.login.pages import Login
    from paywarden.ops.console.login.people_file import PeopleFile
    from paywarden.ops.console.people import sessions
    from paywarden.ops.console.people.people import People
    from paywarden.ops.console.shell import Shell

    file = PeopleFile(Path(settings.people)) if settings.people else None
    people = file.people if file is not None else People.demo() if settings.is_demo else People()
    audit = audit_log(Path(settings.folder))
    database = ConsoleDatabase(settings.database_path, all_tables())
    try:
        limits = sessions.Sessions.of(
            database, idle_minutes=settings.session_idle_minutes, hours=settings.session_hours
        )
        shell = Shell(
            settings, people, limits, audit, (settings.url or url).rstrip("/"), currencies=_currencies(source)
        )
        failures = Failures()
        followed = () if file is None else (file.section(shell.take_people),)
        made = (*sections(ConsoleParts(source, shell, database, audit)), *followed, failures.section())
        login = Login(shell, OidcProvider.of(settings))
        with running(made, stop, failures):
            yield Console(shell.application(made, login.routes), shell, made)
    finally:
        database.close()


def _currencies(source: Source) -> Currencies:
    from paywarden.ops import wiring
    from paywarden.ops.console.rendering.templates import Currencies

    return Currencies(wiring.rate_table(source).reference_currency)


def sections(parts: ConsoleParts) -> Sequence[Section]:
    """Returns the parts of the console, in the order of the navigation."""
    from paywarden.ops.console.audit_page import audit_section
    from paywarden.ops.console.cases.pages import Cases
    from paywarden.ops.console.health.health import Health
    from paywarden.ops.console.health.watch import HealthWatch
    from paywarden.ops.console.idempotency.keyed_acts import KeyedActs
    from paywarden.ops.console.inbox.alert import AlertPage
    from paywarden.ops.console.inbox.pages import Inbox
    from paywarden.ops.console.login.own_sessions import OwnSessions
    from paywarden.ops.console.models.desk import Desk
    from paywarden.ops.console.models.pages import Models
    from paywarden.ops.console.openapi import api_section
    from paywarden.ops.console.policy.pages import PolicySection
    from paywarden.ops.console.shell import API
    from paywarden.ops.wiring import registry

    settings = parts.shell.settings
    desk = Desk(parts.source, settings.keys)
    webhooks = _webhooks(parts)
    store, reader = _alerts(parts, webhooks)
    parts.shell.keyed_acts = KeyedActs(store, reader)
    stakes = _stakes(parts)
    health = Health(settings.processes, missing=parts.shell.missing)
    watch = HealthWatch(parts.database, health.read)
    opened = opened_index(parts.source)
    parts.shell.newest_ms = opened.newest_ms

    def happenings(first_ms: int, last_ms: int) -> Sequence[Happened]:
        return [*desk.happenings(first_ms, last_ms), *watch.happenings(first_ms, last_ms)]

    meanings = feature_meanings(parts.source)
    page = AlertPage(store, lambda: parts.shell.url, happenings, stakes.samples, stakes.segments, meanings)
    return [
        Inbox(store, reader, page, stakes.run, missing=parts.shell.missing).section(),
        *decision_sections(parts.source, opened),
        Cases(
            store, reader, Path(settings.folder) / "files", settings.large_case_minor, parts.shell.currencies
        ).section(),
        Models(desk, index_traffic(parts.source, opened), registry.reading_registry(parts.source)).section(),
        PolicySection(
            parts.source, desk, lambda: _sampler(parts.source), indexed_decisions(parts.source, opened)
        ).section(),
        health.section((watch.run,) if settings.processes else ()),
        audit_section(parts.audit, lambda event: reader.write([event])),
        OwnSessions(parts.shell).section(),
        *_told(webhooks),
        api_section(lambda: parts.shell.sections, API),
    ]


def _alerts(parts: ConsoleParts, webhooks: Webhooks | None) -> tuple[AlertStore, AlertReader]:
    from paywarden.ops import wiring
    from paywarden.ops.console.inbox.reader import AlertReader
    from paywarden.ops.console.inbox.store import AlertStore
    from paywarden.streams.alerts.events import EventWriter
    from paywarden.streams.alerts.feed import AlertFeed

    source = parts.source
    kafka, ids = wiring.kafka_settings(source), wiring.late_schema_ids(source)
    told = (None, None) if webhooks is None else (webhooks.queue, webhooks.queue_event)
    store = AlertStore(parts.database, *told)
    return store, AlertReader(
        store,
        lambda: AlertFeed(kafka, ids),
        lambda: EventWriter(kafka, ids),
    )


def _sampler(source: Source) -> DecisionSampler:
    from paywarden.ops import wiring
    from paywarden.streams.alerts.samples import DecisionSampler

    return DecisionSampler(wiring.kafka_settings(source), wiring.late_schema_ids(source))


def _stakes(parts: ConsoleParts) -> Stakes:
    from paywarden.ops import wiring
    from paywarden.ops.console.inbox.stakes import Stakes

    source = parts.source

    @cache
    def places() -> tuple[str, dict[str, int]]:
        plan = wiring.feature_engine(source).plan
        return plan.digest, {name: place for place, name in enumerate(plan.names)}

    def place(digest: str, name: str) -> int | None:
        own, of_name = places()
        return of_name.get(name) if digest == own else None

    return Stakes(parts.database, lambda: _sampler(source), wiring.rate_table(source).convert, place)


def _webhooks(parts: ConsoleParts) -> Webhooks | None:
    from paywarden.ops.console.webhooks import Webhooks, read_key

    settings = parts.shell.settings
    if not settings.webhooks:
        return None
    return Webhooks(
        parts.database,
        settings.webhooks,
        read_key(settings.webhook_key_file),
        lambda: parts.shell.url,
        large_case_minor=settings.large_case_minor,
    )


def _told(webhooks: Webhooks | None) -> Sequence[Section]:
    """Returns a section without pages that sends webhooks, where there are any."""
    from paywarden.ops.console.pages import Section

    if webhooks is None:
        return ()
    return (Section("webhooks", "", "", (), background=(webhooks.run,), missing=webhooks.missing),)


def all_tables() -> tuple[str, ...]:
    """Returns the statements that make the tables of all sections."""
    from paywarden.ops.console import webhooks
    from paywarden.ops.console.health import watch
    from paywarden.ops.console.idempotency import sent_forms
    from paywarden.ops.console.inbox import stakes, store
    from paywarden.ops.console.people import sessions

    return (
        *watch.TABLES,
        *sessions.TABLES,
        *sent_forms.TABLES,
        *store.TABLES,
        *stakes.TABLES,
        *webhooks.TABLES,
    )


def opened_index(source: Source) -> OpenedIndex:
    """Returns the index of [decision_index], which the console opens when it can, and fills from the topics."""
    import time

    from paywarden.ops.console.decisions.index_connection import OpenedIndex
    from paywarden.ops.wiring import decisions

    return OpenedIndex(
        lambda: decisions.decision_index(source),
        lambda index, queue: decisions.index_filler(source, index, queue),
        now_ms=lambda: time.time_ns() // 1_000_000,
    )


def index_traffic(source: Source, opened: OpenedIndex) -> IndexTraffic:
    """Returns the counter of the index's traffic, for the plan of a rollout."""
    from paywarden.ops.console.models.traffic import IndexTraffic
    from paywarden.ops.wiring import stores
    from paywarden.schemas.avro import Decoder

    return IndexTraffic(opened, Decoder("decisions", stores.late_schema_ids(source)).decode)


def feature_meanings(source: Source) -> Callable[[str], str]:
    """Returns a function that gives a feature's meaning in the settings' catalogue; empty for an unknown one.

    The catalogue is read now. One that cannot be used is tried again for each alert: somebody may have fixed it.
    """
    from paywarden.features.profiles.feature_docs import listed_features
    from paywarden.ops.wiring import stores

    @cache
    def meanings() -> Mapping[str, str]:
        return {one.name: one.meaning for one in listed_features(stores.catalogue(source))}

    told = ""

    def meaning(name: str) -> str:
        nonlocal told
        try:
            return meanings().get(name, "")
        except Misconfigured as error:
            # An alert is shown without it. Other parts of the console show the error of the catalogue.
            if str(error) != told:
                _log.warning("alerts do not show the meaning of features: %s", error)
            told = str(error)
            return ""

    # A file that is replaced later by one that does not end would hold up a page, and each page after it.
    meaning("")
    return meaning


def listed_catalogue(source: Source) -> Callable[[], tuple[str, Mapping[str, ListedFeature]]]:
    """Returns a function that gives the digest of the settings' catalogue, and the meaning of each feature."""
    from paywarden.features.profiles.feature_docs import listed_features
    from paywarden.ops.wiring import stores

    @cache
    def listed() -> tuple[str, Mapping[str, ListedFeature]]:
        features = listed_features(stores.catalogue(source))
        return stores.feature_engine(source).plan.digest, {one.name: one for one in features}

    return listed


def indexed_decisions(source: Source, opened: OpenedIndex) -> IndexedDecisions:
    """Returns the decisions of the index, for the page of the policy."""
    from paywarden.ops.console.policy.indexed_decisions import IndexedDecisions
    from paywarden.ops.wiring import stores
    from paywarden.schemas.avro import Decoder

    return IndexedDecisions(source, opened, Decoder("decisions", stores.late_schema_ids(source)).decode)


def decision_sections(source: Source, opened: OpenedIndex) -> list[Section]:
    """Returns `Decisions` and `Review`, over the index. The section `Decisions` follows the topics and closes it."""
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.ops.console.decisions.decision_page import OnePage
    from paywarden.ops.console.decisions.pages import DecisionPages
    from paywarden.ops.console.review.pages import ReviewPages
    from paywarden.ops.deciders import KnownDeciders
    from paywarden.ops.wiring import stores
    from paywarden.schemas.avro import Decoder

    decode = Decoder("decisions", stores.late_schema_ids(source)).decode
    one = OnePage(opened, KnownDeciders(source, None, None), decode, listed_catalogue(source))
    return [
        DecisionPages(opened, one).section(),
        ReviewPages(opened, source.section("costs", CostSettings)).section(),
    ]
