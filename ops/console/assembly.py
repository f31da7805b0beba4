"""Builds the console: its parts, and the sections with their pages. A new page is a row in a section below."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.types import ASGIApp

from paywarden.features.profiles.feature_docs import ListedFeature, listed_features
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.ops import wiring
from paywarden.ops.console import idempotency, saved_searches, sessions, webhooks
from paywarden.ops.console.audit_log import AuditLog, audit_log
from paywarden.ops.console.audit_page import audit_section
from paywarden.ops.console.background import Failures, running
from paywarden.ops.console.cases import Cases
from paywarden.ops.console.console_openapi import api_section
from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.decisions.decision_page import DecisionPage
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.notes import EntityNotes
from paywarden.ops.console.decisions.search import DecisionSearch
from paywarden.ops.console.evidence_page import EvidencePages, Packs
from paywarden.ops.console.health import health_watch
from paywarden.ops.console.health.health import Health
from paywarden.ops.console.health.health_watch import HealthWatch
from paywarden.ops.console.inbox import alert_store, stakes
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore, Happened
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.inbox.stakes import Stakes
from paywarden.ops.console.login import Login
from paywarden.ops.console.merchants import Merchants
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.models.models_page import Models
from paywarden.ops.console.models.rollout_plan import index_traffic
from paywarden.ops.console.oidc import OidcProvider
from paywarden.ops.console.outcome_charts import OutcomeCharts
from paywarden.ops.console.page_rows import Missing, Section
from paywarden.ops.console.people import People, PeopleFile
from paywarden.ops.console.policy import saved_drafts
from paywarden.ops.console.policy.drafts import IndexedDecisions
from paywarden.ops.console.policy.policy_page import PolicySection
from paywarden.ops.console.policy.saved_drafts import SavedDrafts
from paywarden.ops.console.rendering import Currencies
from paywarden.ops.console.review.picked import Picked
from paywarden.ops.console.review.review import Review
from paywarden.ops.console.shell import API, Shell
from paywarden.ops.console.webhooks import Webhooks, read_key
from paywarden.ops.deciders import KnownDeciders
from paywarden.ops.times import now_ms
from paywarden.ops.wiring import decision_parts as decisions
from paywarden.ops.wiring import registry
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alert_events import EventWriter
from paywarden.streams.alerts.feed import AlertFeed
from paywarden.streams.alerts.samples import DecisionSampler

_log = logging.getLogger(__name__)

TABLES = (
    *health_watch.TABLES,
    *sessions.TABLES,
    *idempotency.TABLES,
    *alert_store.TABLES,
    *stakes.TABLES,
    *webhooks.TABLES,
    *saved_drafts.TABLES,
    *saved_searches.TABLES,
)
"""The statements that make the tables of all sections."""

_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000
_PEOPLE_EFFECT = "People, roles and tokens are those of that time."


@dataclass(frozen=True)
class Console:
    """The application, and its shell."""

    app: ASGIApp
    shell: Shell


@contextmanager
def console(source: Source, settings: ConsoleSettings, url: str, stop: threading.Event) -> Iterator[Console]:
    """Yield the console, whose background work ends with the block, or earlier when `stop` is set.

    `url`: its address where the settings have none. Raises Misconfigured, DatabaseUnavailable.
    """
    file = PeopleFile(Path(settings.people)) if settings.people else None
    people = file.people if file is not None else People.demo() if settings.is_demo else People()
    audit = audit_log(Path(settings.folder))
    database = ConsoleDatabase(settings.database_path, TABLES)
    try:
        shell = shell_of(settings, people, database, audit, settings.url or url)
        shell.currencies = Currencies(wiring.rate_table(source).reference_currency)
        login, failures = Login(shell, OidcProvider.of(settings)), Failures()
        made = [*sections(source, shell, database, audit), login.section()]
        made.append(Section("background", "", "", (), missing=failures.missing))
        if file is not None:
            made.append(_people_section(file, shell))
        with running(made, stop, failures):
            yield Console(shell.application(made, login.routes), shell)
    finally:
        database.close()


def shell_of(settings: ConsoleSettings, people: People, database: ConsoleDatabase, audit: AuditLog, url: str) -> Shell:
    """Return the frame of all pages."""
    limits = settings.session_idle_minutes * _MINUTE_MS, settings.session_hours * _HOUR_MS
    return Shell(settings, people, sessions.Sessions(database, *limits), audit, url.rstrip("/"))


def sections(source: Source, shell: Shell, database: ConsoleDatabase, audit: AuditLog) -> Sequence[Section]:
    """Return the parts of the console, in the order of the navigation."""
    settings = shell.settings
    kafka, ids = wiring.kafka_settings(source), wiring.late_schema_ids(source)
    decode = Decoder("decisions", ids).decode
    hooks = None
    if settings.webhooks:
        hooks = Webhooks(database, settings.webhooks, read_key(settings.webhook_key_file), lambda: shell.url)
    store = AlertStore(
        database,
        None if hooks is None else hooks.queue,
        None if hooks is None else hooks.queue_case,
        large_case_minor=settings.large_case_minor,
    )
    reader = AlertReader(store, lambda: AlertFeed(kafka, ids), lambda: EventWriter(kafka, ids))
    opened = OpenedIndex(
        lambda: decisions.decision_index(source),
        lambda index, queue: decisions.index_filler(source, index, queue),
        now_ms=now_ms,
    )
    shell.newest_ms = opened.newest_ms
    desk, health = Desk(source, settings.keys), Health(settings.processes, missing=shell.missing)
    watch = HealthWatch(database, health.read)

    def sampler() -> DecisionSampler:
        return DecisionSampler(kafka, ids)

    def happenings(first_ms: int, last_ms: int) -> Sequence[Happened]:
        return [*desk.happenings(first_ms, last_ms), *watch.happenings(first_ms, last_ms)]

    money = Stakes(database, sampler, wiring.rate_table(source).convert, _feature_places(source))
    alert = AlertPage(store, lambda: shell.url, happenings, money.sample_of, feature_meanings(source))
    notes, listed = EntityNotes(store, reader), listed_catalogue(source)
    one = DecisionPage(opened, KnownDeciders(source, None, None), decode, listed, shell.currencies, notes.of)
    follower = registry.reading_registry(source)
    cases = Cases(store, reader, Path(settings.folder) / "files", shell.currencies, shell.names)
    picked = Picked(opened, store, reader, cases)
    found = DecisionSearch(
        opened, notes.page(), *one.pages(), notes=notes.of, picks=picked.form, assigned=picked.assigned
    )
    review = Review(opened, source.section("costs", CostSettings), one.in_words, notes.of, picked)
    return [
        Inbox(store, reader, alert, money.run, missing=shell.missing).section(),
        found.section(),
        review.section(),
        cases.section(),
        Merchants(opened).section(),
        OutcomeCharts(opened, source.section("training", TrainingSettings).label_delay_days).section(),
        *_evidence(source, settings, audit),
        Models(desk, index_traffic(opened, decode), follower).section(),
        PolicySection(source, desk, sampler, IndexedDecisions(source, opened, decode), SavedDrafts(database)).section(),
        health.section((watch.run,) if settings.processes else ()),
        audit_section(audit, lambda event: reader.write([event])),
        *([] if hooks is None else [hooks.section()]),
        api_section(lambda: shell.sections, API),
    ]


def _evidence(source: Source, settings: ConsoleSettings, audit: AuditLog) -> list[Section]:
    """Return the section of evidence; none without an archive."""
    if not settings.archive:
        return []
    key = Path(settings.evidence_key) if settings.evidence_key else None
    packs = Packs(source, Path(settings.archive), Path(settings.folder) / "evidence", key, audit)
    return [EvidencePages(packs).section()]


def _people_section(file: PeopleFile, shell: Shell) -> Section:
    """Return a section without pages, which follows the file of people."""

    def missing() -> list[Missing]:
        if not file.trouble:
            return []
        return [Missing("The file of people", file.trouble_since_ms, file.trouble, _PEOPLE_EFFECT, is_lasting=True)]

    work = (lambda stop: file.follow(shell.take_people, stop),)
    return Section("people", "", "", (), background=work, missing=missing)


def _feature_places(source: Source) -> Callable[[str, str], int | None]:
    """Return a function that says where in a vector a feature is, by the digest of the catalogue and its name."""

    @cache
    def places() -> tuple[str, dict[str, int]]:
        plan = wiring.feature_engine(source).plan
        return plan.digest, {name: place for place, name in enumerate(plan.names)}

    def place(digest: str, name: str) -> int | None:
        own, of_name = places()
        return of_name.get(name) if digest == own else None

    return place


def feature_meanings(source: Source) -> Callable[[str], str]:
    """Return a function that gives a feature's meaning in the settings' catalogue; empty for an unknown one.

    The catalogue is read now. One that cannot be used is tried again for each alert.
    """

    @cache
    def meanings() -> Mapping[str, str]:
        return {one.name: one.meaning for one in listed_features(wiring.catalogue(source))}

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
    """Return a function that gives the digest of the settings' catalogue, and the meaning of each feature."""

    @cache
    def listed() -> tuple[str, Mapping[str, ListedFeature]]:
        features = listed_features(wiring.catalogue(source))
        return wiring.feature_engine(source).plan.digest, {one.name: one for one in features}

    return listed
