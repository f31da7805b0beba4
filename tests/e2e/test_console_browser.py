"""The console in a real browser: Debian's Chromium, driven by Playwright, as a person would use it."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from paywarden.ops.console.background import running
from paywarden.ops.console.cases.pages import Cases
from paywarden.ops.console.health.health import Health
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.pages import Inbox
from paywarden.ops.console.inbox.reader import AlertReader
from paywarden.ops.console.inbox.store import AlertStore
from paywarden.ops.console.models.desk import Desk
from paywarden.ops.console.models.pages import Models
from paywarden.ops.console.openapi import api_section
from paywarden.ops.console.pages import Section
from paywarden.ops.console.policy.pages import Policy
from paywarden.ops.console.shell import API
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.console import all_tables
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alerts import Severity, State
from paywarden.streams.alerts.records import ACKNOWLEDGEMENTS_TOPIC
from tests.patience import PATIENCE_S
from tests.services.console import console_under_test
from tests.services.missing_tools import CHROMIUM
from tests.worlds.alerts_on_topics import TopicsInMemory, alert_record, kinds

playwright_api = pytest.importorskip("playwright.sync_api", reason=CHROMIUM.reason)
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason=CHROMIUM.reason)
_CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason=CHROMIUM.reason)

# Where to put pictures for the documents; nowhere without it.
_PICTURES = os.environ.get("PAYWARDEN_PICTURES", "")
_WIDE, _PHONE = {"width": 1120, "height": 960}, {"width": 390, "height": 844}
_SCRIPT_BYTES_MAX = 60_000


@dataclass
class Running:
    """A console that listens, over topics in memory."""

    url: str
    topics: TopicsInMemory


POLICY = {"rules": [{"name": "large", "when": "amount > 100000", "action": "review"}]}


class _NoDecisions:
    def between(self, _: int, __: int) -> list[dict[str, Any]]:
        return [{"reasons": ["rule:large"]}, {"reasons": []}]

    def close(self) -> None:
        pass


class _Now:
    def __call__(self) -> int:
        return now_ms()


@pytest.fixture(scope="module")
def running_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("console")
    console = console_under_test(folder)
    with console.database.write() as connection:
        for table in all_tables():
            connection.execute(table)
    topics = TopicsInMemory()
    now = now_ms()
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
    console.shell.clock = _Now()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    console.shell.url = url
    desk = Desk(Source({"rollout": {"log": str(folder / "rollouts.jsonl")}}, {}), "")
    sections: list[Section] = [
        Inbox(store, reader, AlertPage(store, lambda: url, desk.happenings)).section(),
        Cases(store, reader, folder / "files", 1_000_000).section(),
        Models(desk).section(),
        Policy(Source({"policy": POLICY}, {}), desk, _NoDecisions).section(),
        Health([]).section(),
    ]
    sections.append(api_section(lambda: sections, API))
    app = console.shell.application(sections, console.login.routes)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with running(sections):
        thread.start()
        yield Running(url, topics)
        server.should_exit = True
        thread.join(PATIENCE_S)
    listener.close()
    console.database.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with (
        playwright_api.sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])) as browser,
    ):
        yield browser


@pytest.fixture
def page(chromium: Any, running_console: Running) -> Iterator[Any]:
    """A page of somebody who has logged in by the keyboard alone."""
    context = chromium.new_context(viewport=_WIDE, base_url=running_console.url)
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(f"{said.text} {said.location}") if said.type == "error" else None)
    made.goto("/")
    made.get_by_role("button", name="demo-analyst").focus()
    made.keyboard.press("Enter")
    made.wait_for_url("**/inbox")
    yield made
    assert errors == []
    context.close()


def _picture(page: Any, name: str) -> None:
    if _PICTURES:
        page.screenshot(path=str(Path(_PICTURES) / f"{name}.png"))


def test_an_alert_is_found_and_acknowledged_by_keys_and_the_list_is_live(page: Any, running_console: Running) -> None:
    topics = running_console.topics
    page.wait_for_selector("[data-rows] tr")
    _picture(page, "console-inbox")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("a")
    page.get_by_text("Acknowledged: alert alert-00002.").wait_for()
    assert kinds(topics.topics[ACKNOWLEDGEMENTS_TOPIC]) == ["acknowledged"]
    # Somebody else's alert appears without a reload: the test waits for it as long as a slow machine may take.
    topics.put(alert_record(77, severity=Severity.CRITICAL, time_ms=now_ms(), subject="feature:brand_new"))
    page.get_by_role("link", name="brand_new").wait_for(timeout=60_000)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Then and now").wait_for()


def test_pages_fit_a_phone_and_have_no_serious_finding(page: Any) -> None:
    axe = axe_api.Axe()
    page.goto("/cases")
    page.get_by_label("What it is about").fill("A ring of cards")
    page.get_by_label("First payment or alert").fill("alert:alert-00002")
    page.get_by_role("button", name="Open a case").click()
    page.get_by_role("heading", name="A ring of cards").wait_for()
    addresses = [
        "/inbox",
        "/inbox/alert-00002",
        "/cases",
        page.url,
        "/models",
        "/policy",
        "/health",
        "/api",
    ]
    for number, address in enumerate(addresses):
        page.set_viewport_size(_WIDE)
        page.goto(address)
        if address == "/inbox/alert-00002":
            _picture(page, "console-alert")
        found = axe.run(page).response["violations"]
        serious = [
            (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, (address, serious)
        page.set_viewport_size(_PHONE)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, address
        if number in (0, 1):
            _picture(page, f"console-phone-{number}")
    page.set_viewport_size(_WIDE)


def test_pages_work_without_script_and_have_little_of_it(chromium: Any, running_console: Running) -> None:
    context = chromium.new_context(base_url=running_console.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/inbox/alert-00001")
    assert axe_api is not None
    page.get_by_role("button", name="demo-lead").click()
    page.get_by_label("Note", exact=True).fill("seen without script")
    page.get_by_role("button", name="Note it").click()
    assert "seen without script" in page.content()
    script = context.request.get("/static/console.js")
    assert 0 < len(script.body()) < _SCRIPT_BYTES_MAX
    context.close()
