"""The console in a real browser: Debian's Chromium, driven by Playwright, as a person would use it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paywarden.ops.times import now_ms
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC
from paywarden.streams.alerts.alerts import Severity
from tests.patience import PATIENCE_S
from tests.services.missing_tools import CHROMIUM
from tests.services.product.console_browser import Running, served_console
from tests.worlds.drift.alerts_on_topics import alert_record, kinds

pytest.importorskip("playwright.sync_api", reason=CHROMIUM.reason)
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason=CHROMIUM.reason)
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason=CHROMIUM.reason)

# Where to put pictures for the documents; nowhere without it.
_PICTURES = os.environ.get("PAYWARDEN_PICTURES", "")
_WIDE, _PHONE = {"width": 1120, "height": 960}, {"width": 390, "height": 844}
_SCRIPT_BYTES_MAX = 60_000
# A slow machine may take its time.
_PATIENCE_MS = 60_000
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def running_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served_console(tmp_path_factory.mktemp("console")) as console:
        yield console


def _logged_in(chromium: Any, running_console: Running, person: str, **more: Any) -> tuple[Any, list[str]]:
    """Returns a page of a person who has logged in by the keyboard alone, and the errors of its script.

    `more`: of the browser, such as its locale.
    """
    context = chromium.new_context(viewport=_WIDE, base_url=running_console.url, **more)
    context.set_default_timeout(_PATIENCE_MS)
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(f"{said.text} {said.location}") if _is_fault(said) else None)
    made.goto("/")
    _tab_to(made, f"button[value={person}]")
    made.keyboard.press("Enter")
    made.wait_for_url("**/inbox")
    return made, errors


def _is_fault(said: Any) -> bool:
    # Chromium tells a page that there is not, and one that refuses an act, as an error of the script, too.
    return said.type == "error" and "/nothing" not in str(said.location) and "status of 409" not in said.text


@pytest.fixture
def page(chromium: Any, running_console: Running) -> Iterator[Any]:
    """A page of an analyst."""
    made, errors = _logged_in(chromium, running_console, "demo-analyst")
    yield made
    assert errors == []
    made.context.close()


def _tab_to(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus, as a person without a mouse does."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab on {page.url}")


def _picture(page: Any, name: str, height: int = 960) -> None:
    if _PICTURES:
        size = page.viewport_size
        page.set_viewport_size({**size, "height": height})
        page.screenshot(path=str(Path(_PICTURES) / f"{name}.png"), full_page="full" in _PICTURES)
        page.set_viewport_size(size)


def test_an_alert_is_found_and_acknowledged_by_keys_and_the_list_is_live(page: Any, running_console: Running) -> None:
    topics = running_console.topics
    page.wait_for_selector("[data-rows] tr")
    _picture(page, "console-inbox", height=1000)
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("a")
    page.get_by_text("Acknowledged: alert alert-00002.").wait_for()
    assert kinds(topics.topics[ACKNOWLEDGEMENTS_TOPIC]) == ["acknowledged"]
    # Another person's alert appears without a reload: the test waits for it as long as a slow machine may take.
    topics.put(alert_record(77, severity=Severity.CRITICAL, time_ms=now_ms(), subject="feature:brand_new"))
    page.get_by_role("link", name="brand new").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Then and now").wait_for()


def test_an_open_inbox_says_that_its_topics_are_lost_and_heals(page: Any, running_console: Running) -> None:
    """It went on to say "Live" over the alerts of then: nobody who looked at it knew that Kafka was away."""
    page.wait_for_selector("[data-rows] tr")
    page.get_by_text("Live", exact=True).wait_for()
    strip = page.get_by_role("region", name="What is missing")
    rows = page.locator("[data-rows] tr").count()
    assert strip.count() == 0
    running_console.topics.is_away = True
    try:
        strip.get_by_text("The topics of alerts cannot be reached").wait_for()
        page.get_by_text("Not live: the topics of alerts cannot be read.").wait_for()
        assert page.locator("[data-rows] tr").count() == rows
        for size in (_WIDE, _PHONE):
            page.set_viewport_size(size)
            found = axe_api.Axe().run(page).response["violations"]
            assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        _picture(page, "missing")
    finally:
        running_console.topics.is_away = False
    page.get_by_text("Live", exact=True).wait_for()
    assert strip.count() == 0


def test_health_is_live_and_says_what_is_old(chromium: Any, running_console: Running) -> None:
    page, errors = _logged_in(chromium, running_console, "demo-operator")
    processes = running_console.processes
    page.goto("/health")
    page.get_by_text("All 2 processes are ready.").wait_for()
    page.get_by_text(re.compile("^Live, as of ")).wait_for()
    processes.lag = 345_678
    began = time.monotonic()
    page.get_by_text("345,678 (usual: at most 100,000)").wait_for()
    _log.info("the page had it after %.0f ms", (time.monotonic() - began) * 1000)
    # The page shows the age of a lost process's numbers; once the process is back, it shows no age.
    processes.away.add("stream")
    page.get_by_text("stream is not ready.").wait_for()
    page.get_by_text("The numbers are those of").wait_for()
    processes.away.clear()
    page.get_by_text("All 2 processes are ready.").wait_for()
    assert page.get_by_text("The numbers are those of").count() == 0
    assert errors == []
    # A page that is live no more says of when it is.
    page.route("**/health/version", lambda route: route.abort())
    page.get_by_text(re.compile(r"Not live: .* What you see is of [0-9:]{8} UTC\.")).wait_for()
    page.unroute("**/health/version")
    page.get_by_text(re.compile("^Live, as of ")).wait_for()
    page.context.close()


def test_decisions_reviews_and_drafts_need_no_mouse(page: Any) -> None:
    page.goto("/decisions")
    _tab_to(page, "input[name=card_id]")
    page.keyboard.type("card-of-customer-4")
    page.keyboard.press("Enter")
    page.wait_for_url("**/decisions?search=*")
    # The card is in no address: histories and the logs of proxies keep addresses.
    assert "card-of-customer-4" not in page.url
    assert page.locator("input[name=card_id]").input_value() == "card-of-customer-4"
    page.reload()
    assert page.locator("input[name=card_id]").input_value() == "card-of-customer-4"
    page.locator("body").press("j")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Decided again").or_(page.get_by_text("cannot be")).first.wait_for()
    page.goto("/review")
    page.keyboard.press("n")
    page.get_by_role("heading", name="at stake").wait_for()
    _picture(page, "console-review")
    _tab_to(page, "input[type=radio]")
    page.keyboard.press("Space")
    _tab_to(page, "select[name=reason]")
    page.keyboard.type("known")
    _tab_to(page, "form[action='/review/decide'] button")
    page.keyboard.press("Enter")
    page.get_by_text("Kept: ").wait_for()
    page.goto("/policy")
    _tab_to(page, "form[action='/policy/drafts'] button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/policy/drafts/*")
    _tab_to(page, "form[action$='/preview'] button")
    page.keyboard.press("Enter")
    # The page follows the replay by itself.
    page.get_by_text("It is done.").wait_for()
    _tab_to(page, "nav a[href='/inbox']")


def test_a_hundred_reviews_by_keyboard_alone_all_arrive_as_verdicts(chromium: Any, tmp_path: Path) -> None:
    with served_console(tmp_path) as running:
        usual = {**running.decisions[0], "action": "review"}
        waiting = [
            {
                **usual,
                "payment_id": f"queued-{number}",
                "decision_id": f"queued-{number}",
                "decided_time_ms": now_ms() - number,
            }
            for number in range(100)
        ]
        running.decide(waiting)
        page, errors = _logged_in(chromium, running, "demo-analyst")
        page.set_viewport_size({"width": 1440, "height": 960})
        page.goto("/review")
        first = page.get_by_role("heading", name=re.compile("^[0-9]+ waiting")).inner_text()
        total = int(first.split()[0])
        assert total >= 100
        began = time.monotonic()
        given = []
        for number in range(total):
            page.keyboard.press("n")
            page.wait_for_url("**/review/mine")
            given.append("fgu"[number % 3])
            page.keyboard.press(given[-1])
            page.keyboard.press("Tab")
            page.keyboard.type("known")
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            page.wait_for_url("**/review")
        _log.info("a review takes %.0f ms by keys", (time.monotonic() - began) * 1000 / total)
        page.get_by_role("heading", name="0 waiting").wait_for()
        assert sorted(one.verdict[0] for one in running.verdicts()) == sorted(given)
        assert errors == []
        page.context.close()


def test_a_queue_and_a_payment_say_why_in_the_persons_locale(chromium: Any, running_console: Running) -> None:
    abroad = {"locale": "de-DE", "timezone_id": "Asia/Tokyo"}
    page, errors = _logged_in(chromium, running_console, "demo-analyst", **abroad)
    axe = axe_api.Axe()
    for number, address in enumerate(("/review", "/decisions/pay-009")):
        page.set_viewport_size({"width": 1440, "height": 960})
        page.goto(address)
        # Tokyo is nine hours ahead: the local time stands beside UTC.
        assert re.search(r"\d\d:\d\d(:\d\d)? UTC \(.*GMT\+9\)", page.locator("time").first.inner_text())
        assert re.search(r"\d,00 EUR", page.locator("main").inner_text())
        if number:
            # It comes when the page stands.
            page.get_by_role("region", name="Linked cards, devices and merchants").wait_for()
        _picture(page, f"why-{number}", height=2600)
        found = axe.run(page).response["violations"]
        assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")], address
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), address
        _picture(page, f"why-phone-{number}", height=4200)
    # Known frauds are marked by a sign and a word, not by a colour alone.
    linked = page.get_by_role("region", name="Linked cards, devices and merchants")
    assert "✕" in linked.inner_text()
    assert "fraud" in linked.inner_text()
    with page.expect_download() as download:
        page.goto("/review")
        page.get_by_role("link", name="CSV").click()
    assert "card-of-customer-" in Path(download.value.path()).read_text("utf-8")
    assert errors == []
    page.context.close()


def test_pages_fit_a_phone_and_have_no_serious_finding(page: Any, chromium: Any, running_console: Running) -> None:
    page.goto("/cases")
    page.get_by_label("What it is about").fill("A ring of cards")
    page.get_by_label("First payment or alert").fill("alert:alert-00002")
    page.get_by_role("button", name="Open a case").click()
    page.get_by_role("heading", name="A ring of cards").wait_for()
    case = page.url
    page.goto("/policy")
    page.get_by_role("button", name="Begin a draft").click()
    page.get_by_text("The text of [policy]").first.click()
    text = page.locator("textarea[name=text]")
    text.fill(text.input_value().replace("decline_at = 0.8", "decline_at = 0.6"))
    page.get_by_role("button", name="Save the text").click()
    page.get_by_role("button", name="Preview this version").click()
    page.get_by_text("It is done.").wait_for()
    page.get_by_role("cell", name="decline").first.wait_for()
    draft = page.url.partition("#")[0]
    page.goto("/policy")
    page.locator("a[href^='/policy/replays/']").first.click()
    replay = page.url
    page.goto("/review")
    page.keyboard.press("n")
    page.wait_for_url("**/review/mine*")
    auditor, errors = _logged_in(chromium, running_console, "demo-auditor")
    stranger = chromium.new_context(viewport=_WIDE, base_url=running_console.url).new_page()
    decision = "/decisions/pay-001"
    pages = [
        *(
            (page, address)
            for address in ("/inbox", "/inbox/alert-00002", "/decisions", decision, f"{decision}/linked", "/review")
        ),
        *((page, address) for address in ("/review/mine", "/cases", case, "/models", "/policy", draft, replay)),
        *(
            (page, address)
            for address in (
                "/policy/rules/large",
                "/health",
                "/sessions",
                "/inbox/nothing",
                "/merchants",
                "/merchants/episodes",
                "/charts?by=week&currency=EUR",
                "/charts",
            )
        ),
        (page, "/merchants/episodes"),
        *((auditor, address) for address in ("/audit", "/decisions", "/review")),
        (stranger, "/login"),
    ]
    axe = axe_api.Axe()
    for number, (browser, address) in enumerate(pages):
        browser.set_viewport_size(_WIDE)
        browser.goto(address)
        named = {"/inbox/alert-00002": "console-alert", replay: "console-replay"}
        _picture(browser, named.get(address, f"page-{number:02d}"), height=1350)
        found = axe.run(browser).response["violations"]
        serious = [
            (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, (address, serious)
        paint_ms = browser.evaluate(
            "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"
        )
        # A page that nobody sees is not painted.
        assert paint_ms is None or paint_ms < _PATIENCE_MS, address
        browser.set_viewport_size(_PHONE)
        wide = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, address
        _picture(browser, f"phone-{number:02d}")
    assert errors == []
    auditor.context.close()
    stranger.context.close()


def test_each_chart_is_saved_as_a_picture(page: Any) -> None:
    for size in ({"width": 1440, "height": 960}, _PHONE):
        page.set_viewport_size(size)
        page.goto("/charts")
        charts = page.locator("section:has(svg)")
        buttons = page.locator("[data-png]:visible")
        assert charts.count() == buttons.count() >= 2
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        serious = [
            one["id"]
            for one in axe_api.Axe().run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []
        _picture(page, f"charts-{size['width']}", height=1800)
        for place in range(buttons.count()):
            with page.expect_download() as download:
                buttons.nth(place).click()
            picture = Path(download.value.path()).read_bytes()
            assert download.value.suggested_filename == f"{charts.nth(place).get_attribute('id')}_day.png"
            width, height = struct.unpack(">II", picture[16:24])
            assert (picture[:8], width, height) == (b"\x89PNG\r\n\x1a\n", 1072, 700)
            # A picture of one colour has a few bytes only.
            assert len(picture) > 10_000
            if _PICTURES:
                (Path(_PICTURES) / f"saved-{size['width']}-{place}.png").write_bytes(picture)


def test_evidence_is_made_read_and_saved_by_a_lead(chromium: Any, running_console: Running) -> None:
    page, errors = _logged_in(chromium, running_console, "demo-lead")
    page.goto("/evidence")
    page.get_by_label("First day (UTC)").fill("2026-01-01")
    page.get_by_label("Last day (UTC)").fill("2026-06-30")
    page.get_by_label("Remote channels").fill("ecom,app")
    page.get_by_role("button", name="Make a pack").click()
    # The page follows the making by itself.
    page.get_by_role("link", name="made").wait_for(timeout=PATIENCE_S * 1000)
    for number, address in enumerate(("/evidence", page.get_by_role("link", name="made").get_attribute("href"))):
        for size in ({"width": 1440, "height": 960}, _PHONE):
            page.set_viewport_size(size)
            page.goto(address)
            found = axe_api.Axe().run(page).response["violations"]
            assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")], address
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
                address
            )
            _picture(page, f"evidence-{number}-{size['width']}", height=2600)
    for name, begin in (
        ("evidence.html", b"<!doctype html>"),
        ("SHA256SUMS", b""),
        ("exemptions.csv", b"quarter,band"),
    ):
        with page.expect_download() as download:
            page.get_by_role("link", name=name, exact=True).click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_bytes().lower().startswith(begin)
    assert errors == []
    page.context.close()


def test_pages_work_without_script_and_have_little_of_it(chromium: Any, running_console: Running) -> None:
    context = chromium.new_context(base_url=running_console.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/inbox/alert-00001")
    assert axe_api is not None
    page.get_by_role("button", name="demo-lead").click()
    page.get_by_label("Note", exact=True).fill("seen without script")
    page.get_by_role("button", name="Note it").click()
    assert "seen without script" in page.content()
    page.goto("/decisions")
    page.locator("input[name=card_id]").fill("card-of-customer-3")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/decisions?search=*")
    found = page.locator("[data-rows] tr").count()
    assert found == sum(one["card_id"] == "card-of-customer-3" for one in running_console.decisions)
    page.goto("/health")
    page.go_back()
    page.reload()
    assert page.locator("[data-rows] tr").count() == found
    assert "card-of-customer-3" not in page.url
    script = context.request.get("/static/console.js")
    assert 0 < len(script.body()) < _SCRIPT_BYTES_MAX
    context.close()


def test_a_form_that_is_clicked_twice_is_sent_once(page: Any) -> None:
    page.goto("/cases")
    refused = page.evaluate(
        """() => [1, 2].map(() => {
            const event = new SubmitEvent("submit", { bubbles: true, cancelable: true });
            document.querySelector("form[action='/cases/open']").dispatchEvent(event);
            return event.defaultPrevented;
        })"""
    )
    assert refused == [False, True]
    # A person who comes back to the page can send it again.
    page.evaluate("dispatchEvent(new Event('pageshow'))")
    page.get_by_label("What it is about").fill("Clicked once more")
    page.get_by_role("button", name="Open a case").click()
    page.get_by_role("heading", name="Clicked once more").wait_for()
