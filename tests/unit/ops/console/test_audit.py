"""The audit log finds every edit, removal and reorder."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.ops.console.audit_log import AuditHead, AuditUnavailable, audit_log, public_key, verify
from paywarden.ops.console.audit_page import audit_section, publish_head, published_heads
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.alerts.alert_events import ConsoleEvent
from tests.services.product.console import NOW_MS, console_under_test

COUNT = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a log with eight entries."""
    folder = tmp_path_factory.mktemp("audit")
    log = audit_log(folder)
    for number in range(COUNT):
        log.record(f"p{number % 3}", "viewed", f"payment:{number}", {"why": "é\ud800"}, 1000 + number)
    return folder


def test_a_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    log = audit_log(tmp_path)
    log.record("anna", "viewed", "payment:1", {}, 1)
    with log.path.open("ab") as file:
        file.write(b'{"act":"viewed","at_ms":1')
    assert verify(log.path, public_key(tmp_path / "audit.pub")) == 1
    audit_log(tmp_path).record("anna", "viewed", "payment:2", {}, 2)
    assert verify(log.path, public_key(tmp_path / "audit.pub")) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_edit_removal_or_reorder_is_found(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = (whole / "audit.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["edit", "remove", "reorder", "repeat", "cut"]))
    place = data.draw(st.integers(0, COUNT - 1))
    if kind == "edit":
        at = data.draw(st.integers(0, len(content) - 2))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
        changed = content[:at] + bytes([byte]) + content[at + 1 :]
    elif kind == "remove":
        changed = b"".join(lines[:place] + lines[place + 1 + data.draw(st.integers(0, 2)) :])
    elif kind == "reorder":
        other = data.draw(st.integers(0, COUNT - 1).filter(lambda value: value != place))
        lines[place], lines[other] = lines[other], lines[place]
        changed = b"".join(lines)
    elif kind == "repeat":
        changed = b"".join([*lines[: place + 1], lines[place], *lines[place + 1 :]])
    else:
        changed = b"".join(lines[:place])
    path = tmp_path / "audit.jsonl"
    path.write_bytes(changed)
    (tmp_path / "audit.jsonl.head").write_bytes((whole / "audit.jsonl.head").read_bytes())
    # The head may be one line old: a process that is killed between the two files leaves it so.
    with pytest.raises(Misconfigured):
        verify(path, public_key(whole / "audit.pub"))


def test_an_older_log_with_its_older_head_is_found_by_a_remembered_line(tmp_path: Path) -> None:
    log = audit_log(tmp_path)
    log.record("anna", "viewed", "payment:1", {}, 1)
    older = [(path, path.read_bytes()) for path in tmp_path.glob("audit.jsonl*")]
    log.record("anna", "viewed", "payment:2", {}, 2)
    noted = log.head
    for path, content in older:
        path.write_bytes(content)
    key = public_key(tmp_path / "audit.pub")
    assert verify(log.path, key) == 1
    with pytest.raises(Misconfigured, match="remembered"):
        verify(log.path, key, [noted])
    assert verify(log.path, key, [AuditHead()]) == 1
    with pytest.raises(Misconfigured, match="shorter"):
        log.record("anna", "viewed", "payment:3", {}, 3)


def test_a_log_without_its_key_is_refused(tmp_path: Path) -> None:
    audit_log(tmp_path).record("anna", "viewed", "payment:1", {}, 1)
    (tmp_path / "audit.pem").unlink()
    with pytest.raises(Misconfigured, match="not its key"):
        audit_log(tmp_path)


def test_the_topic_has_the_head_when_it_has_changed(tmp_path: Path) -> None:
    log = audit_log(tmp_path)
    sent: list[ConsoleEvent] = []
    published = publish_head(log, sent.append, AuditHead(), 1)
    log.record("anna", "viewed", "payment:1", {}, 1)
    published = publish_head(log, sent.append, published, 2)
    publish_head(log, sent.append, published, 3)
    assert published_heads(sent, log.name) == [log.head]
    assert published_heads(sent, "another") == []


def no_room(*_: object) -> bool:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_known_before_an_act_and_forgotten_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = audit_log(tmp_path)
    log.require_room()
    log.record("anna", "viewed", "payment:1", {}, 1)
    monkeypatch.setattr("paywarden.ops.console.audit_log.reserve", no_room)
    for _ in range(2):
        with pytest.raises(AuditUnavailable, match=r"nothing is shown or done without the audit log: .*No space left"):
            log.require_room()
    (missing,) = audit_section(log, print).missing()
    assert "No space left" in missing.why
    assert len([line for line in caplog.messages if "the audit log cannot be written" in line]) == 1
    monkeypatch.undo()
    log.require_room()
    assert audit_section(log, print).missing() == []
    log.record("anna", "acknowledged", "alert:3", {}, 3)
    assert verify(log.path, public_key(tmp_path / "audit.pub")) == 2


def test_a_full_disk_leaves_no_head_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line was in the log and the head was not: `admin audit` then reported removed lines."""
    log = audit_log(tmp_path)
    log.record("anna", "viewed", "payment:1", {}, 1)
    monkeypatch.setattr(Path, "write_bytes", no_room)
    for number in range(2, 12):
        log.record("anna", "viewed", f"payment:{number}", {}, number)
        assert verify(log.path, public_key(tmp_path / "audit.pub")) == number


def test_an_auditor_finds_who_saw_a_payment_without_an_address_by_hand(tmp_path: Path) -> None:
    """The page had fields without a form, and looked no further back than a hundred entries."""
    console = console_under_test(tmp_path)
    browser = console.browser([audit_section(console.audit, lambda _: None)], "demo-auditor")
    console.audit.record("anna", "viewed", "payment:p1", {}, NOW_MS)
    for number in range(700):
        console.audit.record("ben", "login_failed" if number % 2 else "viewed", f"payment:x{number}", {}, NOW_MS)
    text = browser.get("/audit").text
    assert all(f'name="{name}"' in text for name in ("by", "act", "subject"))
    assert "100 of the newest 100 entries." in text
    text = browser.get("/audit?subject=payment%3Ap1").text
    assert ("1 of the newest" in text, "<td>anna</td>" in text) == (True, True)
    text = browser.get("/audit?by=ben&act=login+failed").text
    assert "350 of the newest" in text
    assert "<td>viewed</td>" not in text
    assert "700 of the newest" in (text := browser.get("/audit?by=ben").text)
    assert text.count("<td>ben</td>") == 500
    assert "the newest 500 are shown" in text
    console.database.close()
