"""A console without a server: its application in a test client, as a browser or a program would use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import Response
from starlette.testclient import TestClient

from paywarden.ops.console.assembly import TABLES, shell_of
from paywarden.ops.console.audit_log import AuditLog, audit_log
from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.login import Login
from paywarden.ops.console.oidc import OidcProvider
from paywarden.ops.console.page_rows import Section
from paywarden.ops.console.people import People, Person, Role, token_digest
from paywarden.ops.console.shell import Shell

URL = "http://127.0.0.1:8090"
NOW_MS = 1_760_000_000_000
TOKEN = "pwc_test"
ALL_ROLES = frozenset(Role)
BY_A_BROWSER = {"sec-fetch-site": "same-origin"}
"""The header of a form that a page of the console sends."""


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
        client = TestClient(
            app, base_url=URL, follow_redirects=False, raise_server_exceptions=False, headers=BY_A_BROWSER
        )
        if person:
            self.log_in(client, person)
        return client

    def log_in(self, client: TestClient, person: str) -> None:
        """Log a browser in as a demo person."""
        answer = client.post("/login", data={"name": person})
        assert answer.status_code == 303, answer.text


def searched(browser: TestClient, path: str = "/decisions", **fields: str) -> Response:
    """Returns the page that a form of this page leads to, as a browser without JavaScript sends it."""
    sent = browser.post(path, data=fields)
    return browser.get(sent.headers["location"]) if sent.status_code == 303 else sent


def console_under_test(folder: Path, provider: OidcProvider | None = None, **settings: object) -> ConsoleUnderTest:
    """Returns a console whose state is in a folder."""
    made = replace(ConsoleSettings(folder=str(folder)), **settings)  # type: ignore[arg-type]
    people = replace(People.demo(), tokens={token_digest(TOKEN): Person("program", ALL_ROLES)})
    database = ConsoleDatabase(made.database_path, TABLES)
    audit, clock = audit_log(folder), Clock()
    shell = shell_of(made, people, database, audit, URL)
    shell.clock = clock
    return ConsoleUnderTest(shell, database, audit, clock, Login(shell, provider))
