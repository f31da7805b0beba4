"""The API has everything that the pages do, in documents that fit, and no address that lets a stranger in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from paywarden.ops.console.assembly import sections
from paywarden.ops.console.case import case_subject
from paywarden.ops.console.console_openapi import openapi
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.page_rows import Done, Section
from paywarden.ops.console.people import Person, Role, token_digest
from paywarden.ops.console.shell import API, CONTENT_SECURITY_POLICY
from paywarden.ops.console.webhooks import Webhooks, signature
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from tests.services.product.console import ConsoleUnderTest, console_under_test
from tests.unit.ops.console.test_shell import BEARER, FOREIGN
from tests.worlds.drift.alerts_on_topics import NOW_MS, alert_record

DAY_MS = 86_400_000


@dataclass
class Whole:
    """The console with every section that it has, without a broker."""

    console: ConsoleUnderTest
    sections: tuple[Section, ...]


@contextmanager
def whole_console(folder: Path, **changed: Any) -> Iterator[Whole]:
    """Yields the console with every section that it has. `changed`: settings of [console]."""
    console = console_under_test(folder, **changed)
    source = Source(
        {
            "kafka": {"bootstrap": "127.0.0.1:1"},
            "decision_index": {"path": str(folder / "decisions.duckdb")},
        },
        {},
    )
    made = (*sections(source, console.shell, console.database, console.audit), console.login.section())
    yield Whole(console, made)
    for section in made:
        section.close()
    console.database.close()


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Whole]:
    with whole_console(tmp_path) as made:
        yield made


def test_no_address_lets_a_stranger_a_wrong_role_or_a_foreign_form_in(whole: Whole) -> None:
    """Over all addresses there are, as they are declared: one that is added later is tried, too."""
    stranger = whole.console.browser(whole.sections)
    people = {role: whole.console.browser(whole.sections, f"demo-{role.replace('_', '-')}") for role in Role}
    pages = [(page, method) for section in whole.sections for page in section.pages for method in page.methods]
    assert len(pages) > 20
    for page, method in pages:
        path = page.path.replace("{", "").replace("}", "")
        answer = stranger.request(method, path)
        assert answer.status_code == (303 if method == "GET" else 401), page.path
        assert stranger.request(method, API + path).status_code == 401, page.path
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        for role, browser in people.items():
            if role not in page.roles:
                assert browser.request(method, path).status_code == 403, (page.path, role)
        allowed = people[next(iter(sorted(page.roles)))]
        if method == "POST":
            for headers in FOREIGN:
                refused = allowed.post(path, data={}, headers=headers)
                assert (refused.status_code, "Another site sent this form" in refused.text) == (403, True), page.path
        else:
            for shown in (allowed.get(path), allowed.get(f"{path}?made-up=1")):
                assert shown.status_code < 500, page.path
                assert "content-security-policy" in shown.headers
                assert 'style="' not in shown.text
                assert "<script>" not in shown.text
                assert "onclick" not in shown.text
            assert shown.status_code == 400, page.path


def test_each_role_gets_by_page_and_token_what_the_page_declares_and_no_more(whole: Whole) -> None:
    """Every role at every address, as a person and as a program."""
    shell = whole.console.shell
    tokens = {token_digest(f"pwc_{role}"): Person(f"program-{role}", frozenset({role})) for role in Role}
    shell.people = replace(shell.people, tokens=tokens)
    # The shell decides before any handler runs.
    stubs = tuple(
        replace(one, pages=tuple(replace(page, handler=lambda _: Done("/", "done")) for page in one.pages))
        for one in whole.sections
    )
    people = {role: whole.console.browser(stubs, f"demo-{role.replace('_', '-')}") for role in Role}
    program = whole.console.browser(stubs)
    pages = [(page, method) for section in stubs for page in section.pages for method in page.methods]
    needs = "This needs the role"
    for page, method in pages:
        path = page.path.replace("{", "").replace("}", "")
        for role, person in people.items():
            bearer = {"authorization": f"Bearer pwc_{role}"}
            if method == "POST":
                answers = person.post(path, data={}), program.post(API + path, json={}, headers=bearer)
            else:
                answers = person.get(path), program.get(API + path, headers=bearer)
            for answer in answers:
                assert (needs in answer.text) == (role not in page.roles), (method, path, role, answer.text)
                assert role in page.roles or answer.status_code == 403, (method, path, role)
    # Nobody but the five roles has anything: the table above is not empty on either side.
    assert any(role not in page.roles for page, _ in pages for role in Role)
    assert any(page.roles == {Role.MODEL_OWNER} for page, _ in pages)


def test_the_document_of_the_api_names_every_address_and_field(whole: Whole) -> None:
    document = openapi(whole.sections, API)
    pages = [page for section in whole.sections for page in section.pages]
    assert {(path, method.upper()) for path, methods in document["paths"].items() for method in methods} == {
        (API + page.path, method) for page in pages for method in page.methods
    }
    text = json.dumps(document)
    assert all(f'"{field.name}"' in text for page in pages for field in page.fields)
    # What may stand in no address is no parameter of one.
    search = document["paths"][f"{API}/decisions"]
    assert "card_id" not in json.dumps(search["get"])
    assert search["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["card_id"]
    assert not any("Idempotency-Key" in json.dumps(one["parameters"]) for one in search.values())
    assert "Idempotency-Key" in json.dumps(document["paths"][f"{API}/cases/open"]["post"]["parameters"])
    browser = whole.console.browser(whole.sections, "demo-operator")
    assert browser.get("/openapi.json").json()["openapi"] == "3.1.0"
    assert browser.get(f"{API}/openapi.json", headers=BEARER).json()["paths"]


@dataclass
class Receiver:
    """A system that receives alerts."""

    status: int = 200
    got: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def __call__(self, url: str, body: bytes, headers: Any) -> int:
        self.got.append((url, body, dict(headers)))
        if self.status == 0:
            raise OSError
        return self.status


def test_a_webhook_is_signed_and_sent_until_it_is_answered(tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    receiver = Receiver(status=0)
    key = b"k" * 32
    hooks = Webhooks(console.database, ["https://h.example"], key, lambda: "https://c.example", console.clock, receiver)
    with console.database.write() as connection:
        hooks.queue(connection, alert_record(1))
    waits = []
    for _ in range(5):
        assert hooks.send_due()
        assert not hooks.send_due()
        before = console.clock.now_ms
        console.clock.now_ms = console.database.read("SELECT next_ms FROM webhooks")[0]["next_ms"]
        waits.append(console.clock.now_ms - before)
    assert waits == [1000, 2000, 4000, 8000, 16000]
    assert "h.example" in hooks.missing()[0].what
    receiver.status = 204
    assert hooks.send_due()
    assert not hooks.missing()
    _, body, headers = receiver.got[-1]
    assert json.loads(body)["link"] == "https://c.example/inbox/alert-00001"
    assert headers["paywarden-signature"] == signature(key, body, console.clock.now_ms // 1000)
    assert len({sent[2]["paywarden-delivery"] for sent in receiver.got}) == 1
    with console.database.write() as connection:
        hooks.queue(connection, alert_record(2))
    receiver.status = 500
    console.clock.now_ms += DAY_MS
    assert hooks.send_due()
    assert not console.database.read("SELECT * FROM webhooks")
    console.database.close()


def test_webhooks_are_told_of_what_changed_a_case_and_of_nothing_twice(tmp_path: Path) -> None:
    console, receiver = console_under_test(tmp_path), Receiver()
    hooks = Webhooks(
        console.database,
        ["https://h.example"],
        b"k" * 32,
        lambda: "https://c.example",
        console.clock,
        receiver,
    )
    store = AlertStore(console.database, hooks.queue, hooks.queue_case, large_case_minor=100)
    subject, money = case_subject("c1"), {"field": "money_minor", "before": "0", "after": "500"}
    acts: list[tuple[str, str, dict[str, str]]] = [
        ("opened", "anna", {"title": "A ring"}),
        ("noted", "anna", {"note": "card 17 is Ben's"}),
        ("changed", "anna", money),
        # An act that needs two people, and a change that another person made first: both break a rule.
        ("closed", "anna", {"verdict": "fraud"}),
        ("changed", "ben", money),
        ("proposed", "anna", {"verdict": "fraud"}),
        ("closed", "ben", {"verdict": "fraud"}),
    ]
    events = [
        ConsoleEvent(subject, kind, by, console.clock.now_ms + number, what)
        for number, (kind, by, what) in enumerate(acts)
    ]
    events.append(ConsoleEvent("alert:a1", "assigned", "anna", 1, {"to": "ben"}))
    records = [FeedRecord(EVENTS_TOPIC, number, event.to_record()) for number, event in enumerate(events)]
    store.take(FeedBatch(tuple(records[:4]), {}))
    store.take(FeedBatch(tuple(records[2:]), {}))
    while hooks.send_due():
        pass
    told = [json.loads(body) for _, body, _ in receiver.got]
    assert [(one["change"], one["by"]) for one in told] == [
        ("opened", "anna"),
        ("noted", "anna"),
        ("changed", "anna"),
        ("proposed", "anna"),
        ("closed", "ben"),
    ]
    assert {one["link"] for one in told} == {"https://c.example/cases/c1"}
    assert (told[2]["field"], told[2]["before"], told[2]["after"]) == ("money_minor", "0", "500")
    assert (told[-1]["is_open"], told[-1]["verdict"]) == (False, "fraud")
    assert "Ben's" not in str(told)
    # A console that begins with an empty database tells nothing old.
    store.begin_again([EVENTS_TOPIC], NOW_MS)
    store.take(FeedBatch(tuple(records), {}), tells=False)
    assert not hooks.send_due()
    console.database.close()


def test_a_webhook_that_is_led_elsewhere_goes_nowhere_else(tmp_path: Path) -> None:
    """A receiver must not make the console call a system inside: a redirect is an answer like any other."""
    asked: list[str] = []

    class Redirect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("location", "/inside")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    console = console_under_test(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        hooks = Webhooks(console.database, [url], b"k" * 32, lambda: "", console.clock)
        with console.database.write() as connection:
            hooks.queue(connection, alert_record(1))
        for _ in range(3):
            assert hooks.send_due()
            console.clock.now_ms = console.database.read("SELECT next_ms FROM webhooks")[0]["next_ms"]
        server.shutdown()
    assert asked == ["/hook"] * 3
    assert hooks.missing()[0].why == "it answered 307; one message waits"
    console.database.close()
