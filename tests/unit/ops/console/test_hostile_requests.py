"""The console refuses any hostile request of a browser or program, at any address, with words and without a bug."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from starlette.testclient import TestClient

from paywarden.ops.console.case import OPENED, case_subject
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.page_rows import Field, Page
from paywarden.ops.console.people import Role
from paywarden.ops.console.shell import API
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, ALERTS_TOPIC, Acknowledgement
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from tests.unit.ops.console.test_api import Whole, whole_console
from tests.unit.ops.console.test_shell import BEARER
from tests.worlds.drift.alerts_on_topics import alert_record

_EDGE = base64.urlsafe_b64encode(b"\x7f" + b"\xff" * 15).decode().rstrip("=")
_LEAST = base64.urlsafe_b64encode((b"\x80" + b"\x00" * 7) * 2).decode().rstrip("=")
TEXTS = (
    *("", " ", "\x00", "a\x00b", "\u202ea", "\ud800", "ａ", "٣", "é" * 150, "x" * 201, "x" * 5_000, "🎴" * 200),
    *("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "${7*7}", "%s%n", "a\r\nX: y"),
    *("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "'; DROP TABLE alerts; --", "%", "_", "\\", "*", "' OR 1=1"),
    *("..", "../../etc/passwd", "..\\..\\x", "/etc/passwd", "//evil.example", "https://evil.example", "javascript:x"),
    *("0", "1", "01", "1_000", "0x10", "1e3", "1e400", "nan", "inf", "-inf", "9" * 30, "9" * 5_000, "1.5", "１"),
    *("2026-10-01T08:30", "0001-01-01T00:00", "9999-12-31T23:59", "2026-02-30T00:00", "10000-01-01T00:00", "-1-01-01"),
    *("true", "null", "[]", "{}", _EDGE, _LEAST, "payment:x", "alert:x", "payment:" + "y" * 190, "payment:a b"),
)  # fmt: skip
JSON_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**400, 1.5, -0.0, [], {}, [[]], [{}], [None], {"a": 1}, ["a", "b"], [1, True]),
    *("\x00", "\ud800", ["x"] * 999, "x" * 60_000),
)


# Requests a page and field; all of them with PAYWARDEN_HOSTILE=1000.
_PICKED = int(os.environ.get("PAYWARDEN_HOSTILE", "2"))


def _write_at_once(reader: AlertReader, events: Sequence[ConsoleEvent | Acknowledgement]) -> bool:
    """Stands in for Kafka: acts are known as soon as they are written."""
    topics = [EVENTS_TOPIC if isinstance(event, ConsoleEvent) else ACKNOWLEDGEMENTS_TOPIC for event in events]
    records = [FeedRecord(topic, 0, event.to_record()) for topic, event in zip(topics, events, strict=True)]
    reader._store.take(FeedBatch(tuple(records), {}))
    return True


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """A console that has an alert and a case with the id `a1`."""
    with (
        pytest.MonkeyPatch.context() as patched,
        whole_console(tmp_path_factory.mktemp("console")) as made,
    ):
        patched.setattr(AlertReader, "write", _write_at_once)
        store = AlertStore(made.console.database)
        store.take(FeedBatch((FeedRecord(ALERTS_TOPIC, 0, {**alert_record(2), "alert_id": "a1"}),), {}))
        opened = ConsoleEvent(case_subject("a1"), OPENED, "anna", 1, {"title": "A ring"})
        store.take(FeedBatch((FeedRecord(EVENTS_TOPIC, 0, opened.to_record()),), {}))
        yield made


def _pages(whole: Whole) -> list[tuple[Page, str]]:
    return [(page, method) for section in whole.sections for page in section.pages for method in page.methods]


def _usual(field: Field) -> str:
    """Returns a value that a field takes, so that a request comes further than to the first check."""
    if field.choices:
        return field.choices[0]
    if field.kind == "time":
        return "2026-10-01T08:30"
    return {"whole": "1", "number": "1", "lines": "a text"}.get(
        field.kind, "payment:p1" if field.name == "item" else "a1"
    )


def _picked(chance: random.Random, values: Sequence[Any]) -> list[Any]:
    return list(values) if len(values) <= _PICKED else chance.sample(values, _PICKED)


def _path_of(page: Page, part: str) -> str:
    return re.sub(r"\{[^}]+\}", quote(part, safe="", errors="surrogatepass"), page.path)


def _require_told(answer: Any, what: object) -> None:
    """A refusal is in words. 503: there is no Kafka here, and it says so."""
    assert answer.status_code < 500 or answer.status_code in (501, 503), (answer.status_code, what, answer.text[-300:])
    assert "Traceback" not in answer.text, what
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers, what


def test_no_value_of_any_field_is_a_bug(hostile: Whole) -> None:
    chance = random.Random(24)
    people = {role: hostile.console.browser(hostile.sections, f"demo-{role.replace('_', '-')}") for role in Role}
    program = hostile.console.browser(hostile.sections)
    tried = 0
    for page, method in _pages(hostile):
        role = min(page.roles)
        usual = {field.name: _usual(field) for field in page.fields if field.kind != "file" and field.is_required}
        for field in (one for one in page.fields if one.kind != "file"):
            for value in _picked(chance, (*field.choices, *TEXTS)):
                given = {**usual, field.name: value}
                path = _path_of(page, "a1")
                _require_told(_asked(people[role], method, path, given), (page, field.name, value))
                if method == "GET":
                    _require_told(_asked(program, method, API + path, given), (page, field.name, value))
            values = JSON_VALUES if method == "POST" else ()
            for odd in _picked(chance, values):
                content = json.dumps({**usual, field.name: odd})
                headers = {**BEARER, "content-type": "application/json"}
                answer = program.post(API + _path_of(page, "a1"), content=content, headers=headers)
                _require_told(answer, (page, field.name, odd))
            tried += 1
        if "{" in page.path:
            for part in _picked(chance, [text for text in TEXTS if text not in ("", ".", "..")]):
                path = _path_of(page, part)
                _require_told(_asked(people[role], method, path, usual), (page, part))
    assert tried > 60
    # An accepted value is shown as text.
    for role, path in (
        (Role.LEAD, "/inbox/a1"),
        (Role.LEAD, "/cases"),
        (Role.LEAD, "/cases/a1"),
        (Role.AUDITOR, "/audit"),
    ):
        text = people[role].get(path).text
        assert "<script>alert" not in text, path
        assert "<img" not in text, path


def test_no_body_is_too_much_or_a_bug(hostile: Whole) -> None:
    people = {role: hostile.console.browser(hostile.sections, f"demo-{role.replace('_', '-')}") for role in Role}
    program = hostile.console.browser(hostile.sections)
    as_json = {**BEARER, "content-type": "application/json"}
    pages = [page for page, method in _pages(hostile) if method == "POST"]
    assert len(pages) > 15
    for page in pages:
        role = min(page.roles)
        browser, path = people[role], _path_of(page, "a1")
        large = b"x" * (page.body_bytes_max + 1)
        bodies: list[tuple[bytes, int]] = [
            *((large, 413), (b"[" * 60_000, 400), (b'"' + b"a" * 60_000, 400), (b"\xff\xfe", 400), (b"[1]", 400)),
            *((b"null", 400), (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, 400), (b'{"made_up": 1}', 400)),
            (json.dumps({f"f{number}": 1 for number in range(3_000)}).encode(), 400),
            (b'{"made_up": [' + b"1," * 20_000 + b"1]}", 400),
        ]
        for body, status in bodies:
            answer = program.post(API + path, content=body, headers=as_json)
            assert answer.status_code == status, (page.path, body[:20], answer.text[:200])
            assert answer.json()["error"]
        form = {"content-type": "application/x-www-form-urlencoded"}
        for more, status in (
            (b"x=" + large, 413),
            (b"a&" * 10_000, 400),
            (b"made-up=1", 400),
            (b"x=\xff", 400),
            (b"once=" + b"1&once=".join([b"2"] * 50) + b"&made-up=1", 400),
        ):
            answer = browser.post(path, content=more, headers=form)
            assert answer.status_code == status, (page.path, more[:20], answer.text[-300:])
        for field in page.fields:
            if field.kind != "file" and not field.is_many:
                twice = urlencode([(field.name, _usual(field))] * 2)
                answer = browser.post(path, content=twice, headers=form)
                assert (answer.status_code, "wanted one value" in answer.text) == (400, True), (page.path, field.name)


@pytest.mark.parametrize(
    "name",
    [
        *("../../../etc/cron.d/x", "..\\..\\boot.ini", "/etc/passwd", "C:\\x.exe", "a\x00.png", "page.html", "x.svg"),
        *("=cmd|' /C calc'!A0.csv", "a\r\nset-cookie: b=c", "\u202egnp.exe", "x" * 121, " ", "..", "con.txt\u200b"),
    ],
)
def test_a_file_of_any_name_is_a_file_in_one_folder(hostile: Whole, name: str) -> None:
    browser = hostile.console.browser(hostile.sections, "demo-analyst")
    boundary = "b0undary"
    content = b"<script>alert(1)</script>" + name.encode()
    parts = [("file", name, content)]
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"'.encode()
        + (f'; filename="{file_name}"'.encode() if file_name else b"")
        + b"\r\nContent-Type: text/html\r\n\r\n"
        + value
        + b"\r\n"
        for field, file_name, value in parts
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = browser.post("/cases/a1/attach", content=body + f"--{boundary}--\r\n".encode(), headers=headers)
    assert answer.status_code in (303, 400), answer.text[-300:]
    folder = Path(hostile.console.shell.settings.folder)
    assert {path.parent for path in folder.rglob("*") if re.fullmatch("[0-9a-f]{64}", path.name)} <= {folder / "files"}
    assert all(re.fullmatch("[0-9a-f]{64}", path.name) for path in folder.glob("files/*"))
    if answer.status_code == 303:
        digest = hashlib.sha256(content).hexdigest()
        assert f"/cases/a1/files/{digest}" in browser.get("/cases/a1").text
        sent = browser.get(f"/cases/a1/files/{digest}")
        assert sent.content == content
        assert sent.headers["content-type"] == "application/octet-stream"
        assert sent.headers["content-disposition"].startswith("attachment; ")
        assert sent.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert sent.headers["x-content-type-options"] == "nosniff"


def _asked(browser: TestClient, method: str, path: str, given: Mapping[str, str]) -> Any:
    encoded = urlencode(given, errors="surrogatepass")
    headers = BEARER if path.startswith(API) else {}
    if method == "POST":
        form = {"content-type": "application/x-www-form-urlencoded"}
        return browser.post(path, content=encoded, headers={**headers, **form})
    return browser.get(f"{path}?{encoded}", headers=headers)
