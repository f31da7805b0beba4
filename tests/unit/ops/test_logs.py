"""Every log line in JSON is an object of its schema."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from paywarden.ops.logs import SCHEMA, JsonLines, set_up_logging

DOCUMENTED: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(DOCUMENTED)
TRACE = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}


def line_of(
    message: str, *, level: int = logging.INFO, extra: dict[str, str] | None = None, error: bool = False
) -> Any:
    record = logging.getLogger("paywarden.test").makeRecord(
        "paywarden.test", level, __file__, 1, message, (), sys.exc_info() if error else None, extra=extra
    )
    text = JsonLines("serve").format(record)
    assert "\n" not in text
    return json.loads(text)


@given(
    message=st.text(),
    level=st.sampled_from([logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]),
    extra=st.sampled_from([None, TRACE]),
)
def test_every_line_keeps_to_the_schema(message: str, level: int, extra: dict[str, str] | None) -> None:
    line = line_of(message, level=level, extra=extra)
    VALIDATOR.validate(line)
    assert line["message"] == message
    assert line["command"] == "serve"
    assert {name: line[name] for name in TRACE if name in line} == (extra or {})


def test_a_traceback_is_one_field() -> None:
    try:
        int("two\nlines")
    except ValueError:
        line = line_of("it failed", error=True)
    VALIDATOR.validate(line)
    assert "ValueError: invalid literal" in line["exception"]


def test_addresses_that_are_asked_are_in_no_log() -> None:
    """The client of webhooks writes a line for each request, with the address, and an address may hold a secret."""
    program = """
import httpx2
from paywarden.ops.logs import set_up_logging
set_up_logging("text")
answer = httpx2.MockTransport(lambda request: httpx2.Response(200))
with httpx2.Client(transport=answer) as client:
    assert client.post("https://hooks.example/a-secret").status_code == 200
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_line_that_repeats_is_written_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    set_up_logging("text")
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    loop, neighbour = logging.getLogger("paywarden.test.loop"), logging.getLogger("paywarden.test.neighbour")
    for number in range(7 * 60):
        now = 10.0 * number
        loop.warning("the store does not answer")
        neighbour.warning("try %d", number % 2)
    loop.warning("the store answers")
    for _ in range(2):
        now += 200
        loop.warning("the store does not answer")
    for _ in range(3):
        loop.error("a file was cut short")
    written = capsys.readouterr().err
    lines = [line.partition("WARNING ")[2] for line in written.splitlines()]
    assert lines.count("the store does not answer") == 2 + 2  # at the start, after an hour, then two separate events
    assert sum(line.startswith("try") for line in lines) == 7 * 60
    assert written.count("a file was cut short") == 3  # three incidents
