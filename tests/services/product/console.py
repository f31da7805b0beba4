"""A console without a server: its application in a test client, as a browser or a program would use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import Response
from starlette.testclient import TestClient

from paywarden.ops.console.audit import AuditLog, audit_log
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.idempotency.sent_forms import TABLES as SENT_FORMS
from paywarden.ops.console.login.pages import Login, Provider
from paywarden.ops.console.pages import Section
from paywarden.ops.console.people.people import People, Person, Role, token_digest
from paywarden.ops.console.people.sessions import TABLES, Sessions
from paywarden.ops.console.settings import ConsoleSettings
from paywarden.ops.console.shell import Shell

URL = "http://127.0.0.1:8090"
NOW_MS = 1_760_000_000_000
TOKEN = "pwc_test"
ALL_ROLES = frozenset(Role)


@dataclass
class Clock:
    """A clock that stands until a test moves it."""

    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class ConsoleUnderTest:
    """The shell with demo people, a token with all roles, and `sections`."""

    shell: Shell
    database: ConsoleDatabase
    audit: AuditLog
    clock: Clock
    login: Login

    def browser(self, sections: Sequence[Section] = (), person: str = "") -> TestClient:
        """Returns a browser of the application, logged in as a person if one is named."""
        app = self.shell.application(tuple(sections), self.login.routes)
        client = TestClient(app, base_url=URL, follow_redirects=False, raise_server_exceptions=False)
        if person:
            self.log_in(client, person)
        return client

    def log_in(self, client: TestClient, person: str) -> None:
        """Log a browser in as a demo person."""
        answer = client.post("/login", data={"csrf": csrf_of(client.get("/login").text), "name": person})
        assert answer.status_code == 303, answer.text


def csrf_of(html: str) -> str:
    """Returns the token of the first form on a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', html)
    assert found is not None, html
    return found[1]


def searched(browser: TestClient, path: str = "/decisions", **fields: str) -> Response:
    """Returns the page that a form of this page leads to, as a browser without JavaScript sends it."""
    sent = browser.post(path, data={"csrf": csrf_of(browser.get(path).text), **fields})
    return browser.get(sent.headers["location"]) if sent.status_code == 303 else sent


def console_under_test(folder: Path, provider: Provider | None = None, **settings: object) -> ConsoleUnderTest:
    """Returns a console whose state is in a folder."""
    made = replace(ConsoleSettings(folder=str(folder)), **settings)  # type: ignore[arg-type]
    people = People.demo()
    program = Person("program", ALL_ROLES)
    people = replace(people, tokens={token_digest(TOKEN): program})
    database = ConsoleDatabase(made.database_path, (*TABLES, *SENT_FORMS))
    audit = audit_log(folder)
    sessions = Sessions.of(database, idle_minutes=made.session_idle_minutes, hours=made.session_hours)
    clock = Clock()
    shell = Shell(made, people, sessions, audit, URL, clock)
    return ConsoleUnderTest(shell, database, audit, clock, Login(shell, provider))
