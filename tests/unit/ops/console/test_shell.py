"""The shell keeps these away from pages: strangers, wrong roles, other sites' forms, undeclared fields."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.ops.console import rendering
from paywarden.ops.console.page_rows import Done, Field, Page, Section, Shown, Visit, not_found
from paywarden.ops.console.people import Person, Role
from paywarden.ops.console.shell import API, local_path
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from tests.fakes.descriptors import no_descriptors
from tests.services.product.console import TOKEN, URL, ConsoleUnderTest, console_under_test

BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class _View:
    status: str
    message: str
    back: ClassVar[tuple[str, str]] = ("/", "the first page")


def _show(visit: Visit) -> Shown:
    return Shown("refused.html", _View(visit.person.name, visit.text("word")), "A <title>")


def _act(visit: Visit) -> Done:
    visit.did("acted", "thing:1", word=visit.text("word"))
    return Done("/things", f"done: {visit.text('word')}")


def _raising(error: Exception) -> object:
    def show(_: Visit) -> Shown:
        raise error

    return show


WORD = (Field("word", "A word", chars_max=10),)
SECTION = Section(
    "things",
    "Things",
    "/things",
    (
        Page("/things", _show, fields=WORD),
        Page("/things/act", _act, method="POST", roles=frozenset({Role.LEAD}), fields=WORD),
        Page("/things/gone", _raising(not_found("thing 7"))),  # type: ignore[arg-type]
        Page("/things/down", _raising(BrokerUnavailable("Kafka did not answer"))),  # type: ignore[arg-type]
        Page("/things/rule", _raising(Misconfigured("a rule says no"))),  # type: ignore[arg-type]
        Page("/things/bug", _raising(KeyError("secret"))),  # type: ignore[arg-type]
    ),
)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleUnderTest]:
    made = console_under_test(tmp_path)
    yield made
    made.database.close()


def test_a_page_without_login_leads_to_the_login_and_back(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION])
    answer = browser.get("/things?word=hello")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fthings%3Fword%3Dhello")
    assert browser.get(answer.headers["location"]).status_code == 200
    after = browser.post("/login", data={"name": "demo-analyst", "next": "/things?word=hello"})
    assert after.headers["location"] == "/things?word=hello"
    assert "hello" in browser.get("/things?word=hello").text


FOREIGN = (
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://evil.example"},
    {"origin": "https://[evil"},
    {"origin": "null", "sec-fetch-site": ""},
    # A program with a cookie, or a browser that nobody has updated for years.
    {"sec-fetch-site": ""},
)


def test_an_act_takes_role_and_own_site(console: ConsoleUnderTest) -> None:
    analyst, lead = console.browser([SECTION], "demo-analyst"), console.browser([SECTION], "demo-lead")
    form = {"word": "x"}
    for headers in FOREIGN:
        assert lead.post("/things/act", data=form, headers=headers).status_code == 403, headers
        assert lead.post("/logout", headers=headers).status_code == 403, headers
        assert lead.post("/login", data={"name": "demo-analyst"}, headers=headers).status_code == 403, headers
    assert analyst.post("/things/act", data=form).status_code == 403
    assert not [entry for entry in console.audit.newest(100) if entry.act == "acted"]
    answer = lead.post("/things/act", data=form, headers={"origin": URL})
    assert (answer.status_code, answer.headers["location"]) == (303, "/things")
    assert "done: x" in lead.get("/things").text
    assert "done: x" not in lead.get("/things").text
    # A browser without Sec-Fetch-Site says in Origin where the form is from.
    assert lead.post("/things/act", data=form, headers={"origin": URL, "sec-fetch-site": ""}).status_code == 303
    _, entry = [entry for entry in console.audit.newest(100) if entry.act == "acted"]
    assert (entry.by, entry.subject, entry.what) == ("demo-lead", "thing:1", {"word": "x"})


def test_who_wants_what_their_roles_do_not_give_is_in_the_audit_log(console: ConsoleUnderTest) -> None:
    analyst = console.browser([SECTION], "demo-analyst")
    form = {"word": "x"}
    assert analyst.post("/things/act", data=form).status_code == 403
    (entry,) = [entry for entry in console.audit.newest(100) if entry.act == "refused"]
    assert (entry.by, entry.subject, entry.what) == ("demo-analyst", "page:POST /things/act", {})
    # A form that another site sent is no wish of the person.
    lead = console.browser([SECTION], "demo-lead")
    assert lead.post("/things/act", data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert [entry.by for entry in console.audit.newest(100) if entry.act == "refused"] == ["demo-analyst"]


def test_a_bug_in_the_navigation_is_told_on_a_page_of_ours(console: ConsoleUnderTest) -> None:
    """The page that tells of a bug has the same navigation: the browser had three words without a style."""

    def badge(_: Person) -> int:
        raise KeyError("secret")

    answer = console.browser([replace(SECTION, badge=badge)], "demo-lead").get("/things")
    assert answer.status_code == 500
    assert "Something went wrong that should not." in answer.text
    assert "<nav" not in answer.text
    assert "secret" not in answer.text


def test_an_act_that_could_not_be_noted_is_not_done(console: ConsoleUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The act was done without its line, and its person saw that it was not possible."""
    done: list[str] = []

    def act(visit: Visit) -> Done:
        done.append(visit.person.name)
        return _act(visit)

    pages = tuple(replace(page, handler=act) if page.method == "POST" else page for page in SECTION.pages)
    lead = console.browser([replace(SECTION, pages=pages)], "demo-lead")
    form = {"word": "x"}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("paywarden.ops.console.audit_log.reserve", full)
    for answer in (
        lead.post("/things/act", data=form),
        lead.post(f"{API}/things/act", json={"word": "x"}, headers=BEARER),
    ):
        assert answer.status_code == 503
        assert "nothing is shown or done without the audit log" in answer.text
    assert done == []
    monkeypatch.undo()
    assert lead.post("/things/act", data=form).status_code == 303
    assert done == ["demo-lead"]


def test_without_descriptors_a_page_says_so_and_the_next_one_works(console: ConsoleUnderTest) -> None:
    """Templates were read when they were first used, and the page of an error could not be made either."""
    # As at the start of a console.
    rendering.environment.cache_clear()
    rendering.templates.cache_clear()
    console.shell.__post_init__()
    with no_descriptors():
        answer = console.shell.refused(503, "no descriptors")
    assert b"no descriptors" in bytes(answer.body)
    assert console.browser([SECTION], "demo-lead").get("/things").status_code == 200


def test_the_api_takes_a_token_and_no_cookie(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION], "demo-lead")
    assert browser.get(f"{API}/things").status_code == 401
    assert browser.get("/things", headers=BEARER).status_code == 200
    stranger = console.browser([SECTION])
    assert stranger.get("/things", headers=BEARER).status_code == 303
    read = stranger.get(f"{API}/things?word=hello", headers=BEARER).json()
    assert read == {"view": {"status": "program", "message": "hello"}, "missing": []}
    done = stranger.post(f"{API}/things/act", json={"word": "x"}, headers=BEARER).json()
    assert done["message"] == "done: x"
    assert stranger.post(f"{API}/things/act", data={"word": "x"}, headers=BEARER).status_code == 415


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/things/gone", 404, "There is no thing 7."),
        ("/things/down", 503, "Kafka did not answer"),
        ("/things/rule", 409, "a rule says no"),
        ("/things/bug", 500, "Something went wrong"),
        ("/nothing", 404, "There is no such page."),
        ("/things?other=1", 400, "has no field"),
        ("/things?word=a&word=b", 400, "wanted one value"),
        ("/things?word=%00", 400, "printable"),
        ("/things?word=%ff", 400, "browsers send"),
        ("/things?word=12345678901", 400, "at most 10 characters"),
    ],
)
def test_every_refusal_is_a_page_that_says_why(console: ConsoleUnderTest, path: str, status: int, words: str) -> None:
    browser = console.browser([SECTION], "demo-lead")
    answer = browser.get(path)
    assert (answer.status_code, words in answer.text) == (status, True)
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    api = browser.get(API + path, headers=BEARER)
    assert (api.status_code, words in api.json()["error"]) == (status, True)


def test_another_host_name_is_refused(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION], "demo-lead")
    assert browser.get("/things", headers={"host": "evil.example"}).status_code == 421
    assert browser.get("/things", headers={"host": "localhost:8090"}).status_code == 200


def test_a_session_ends_by_idleness_and_by_age(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION], "demo-lead")
    for _ in range(24):
        console.clock.now_ms += 29 * 60_000
        assert browser.get("/things").status_code == 200
    console.clock.now_ms += 29 * 60_000
    assert browser.get("/things").status_code == 303
    console.log_in(browser, "demo-lead")
    console.clock.now_ms += 31 * 60_000
    assert browser.get("/things").status_code == 303


BY_SCRIPT = {"sec-fetch-dest": "empty"}


def test_what_an_open_page_asks_by_itself_keeps_no_session_alive(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION], "demo-lead")
    for _ in range(3):
        console.clock.now_ms += 9 * 60_000
        assert browser.get("/things", headers=BY_SCRIPT).status_code == 200
    console.clock.now_ms += 4 * 60_000
    assert browser.get("/things").status_code == 303


def test_logout_ends_the_session_on_the_server(console: ConsoleUnderTest) -> None:
    browser = console.browser([SECTION], "demo-lead")
    cookie = browser.cookies[console.shell.cookie]
    assert browser.post("/logout").status_code == 303
    assert browser.get("/things", headers={"cookie": f"{console.shell.cookie}={cookie}"}).status_code == 303


@given(st.text(max_size=60) | st.sampled_from(["//evil.example", "/\\evil.example", "https://evil.example", "/a\n/b"]))
def test_nobody_is_led_to_another_site(location: str) -> None:
    path = local_path(location)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert path.isprintable()


def test_an_address_of_other_bytes_than_ascii_is_refused(console: ConsoleUnderTest) -> None:
    from tests.fuzz.console_targets import _status

    browser = console.browser([SECTION])
    app = console.shell.application([SECTION], console.login.routes)
    assert _status(app, "GET", "/things", b"?a=\x83", {}, b"", browser) == 400
