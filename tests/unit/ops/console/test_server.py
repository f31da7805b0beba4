"""The console ends within its time limit, during any request or background work."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from paywarden.ops.console.background import running
from paywarden.ops.console.page_rows import Page, Section, Shown, Visit
from paywarden.ops.console.server import serve
from tests.services.product.console import TOKEN, console_under_test

# Long enough for any machine: a console that waits for its requests would need this long, and fail.
_PATIENCE_S = 60.0


def test_a_request_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    began, released, stop = threading.Event(), threading.Event(), threading.Event()

    def slow(_: Visit) -> Shown:
        began.set()
        released.wait(2 * _PATIENCE_S)
        return Shown("", {}, "Slow")

    console = console_under_test(tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    console.shell.url = url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = console.shell.application((Section("slow", "Slow", "/slow", (Page("/slow", slow),)),))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            headers = {"authorization": f"Bearer {TOKEN}"}
            httpx2.get(f"{url}/api/v1/slow", headers=headers, timeout=2 * _PATIENCE_S).raise_for_status()
        except httpx2.HTTPError as error:
            errors.append(error)

    serving = threading.Thread(target=serve, args=(app, listener, stop), kwargs={"grace_s": 0}, daemon=True)
    asking = threading.Thread(target=ask, daemon=True)
    try:
        serving.start()
        asking.start()
        assert began.wait(_PATIENCE_S)
        stop.set()
        serving.join(_PATIENCE_S)
        assert not serving.is_alive()
        asking.join(_PATIENCE_S)
        # The person gets no answer rather than one that may be wrong.
        assert errors
    finally:
        released.set()
        listener.close()
        console.database.close()


@contextmanager
def _served(proxies: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """Yields the address of a server that answers 204, and says whom it takes for the client."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"x-client", scope["client"][0].encode())]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    stop, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))
    options = {"proxies": proxies}
    serving = threading.Thread(target=serve, args=(app, listener, stop), kwargs=options, daemon=True)
    serving.start()
    try:
        yield listener.getsockname()
    finally:
        stop.set()
        serving.join(_PATIENCE_S)
        listener.close()


def test_a_head_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    with _served() as address, socket.create_connection(address, _PATIENCE_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\ncookie: ")
        got = b""
        # A server that reads on for ever is a timeout, and fails the test.
        with suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"x" * 10_000)
            got = client.recv(1000)
        assert got.startswith(b"HTTP/1.1 400") or not got


def test_the_server_leaves_the_wake_up_pipe_of_signals_alone() -> None:
    """uvloop took it, so SIGTERM did not end a console: its supervisor killed it half a minute later."""
    heard, stop, seen = socket.socketpair(), threading.Event(), list[int]()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        seen.append(signal.set_wakeup_fd(heard[0].fileno()))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        stop.set()

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    heard[0].setblocking(False)
    before = signal.set_wakeup_fd(heard[0].fileno())
    asking = threading.Thread(target=httpx2.get, args=(url,), kwargs={"timeout": _PATIENCE_S}, daemon=True)
    try:
        asking.start()
        serve(app, listener, stop)
        assert seen == [heard[0].fileno()]
    finally:
        signal.set_wakeup_fd(before)
        asking.join(_PATIENCE_S)
        for one in (*heard, listener):
            one.close()


def test_background_work_and_a_close_that_hang_are_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from paywarden.ops.console import background

    monkeypatch.setattr(background, "_END_S", 0.01)
    monkeypatch.setattr(background, "_CLOSE_S", 0.01)
    released, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def orderly(stop: threading.Event) -> None:
        stop.wait()
        ended.set()

    def hangs(_: threading.Event) -> None:
        released.wait(_PATIENCE_S)

    sections = (
        Section("orderly", "", "", (), background=(orderly,)),
        Section("stuck", "", "", (), background=(hangs,), close=lambda: hangs(stop)),
    )
    with running(sections, stop):
        # Work ends with the process's own event, before the last request is answered.
        stop.set()
        assert ended.wait(_PATIENCE_S)
    released.set()
    assert "background work of the section stuck did not end" in caplog.text
    assert "the close of the section stuck did not end" in caplog.text


def test_background_work_that_ends_with_a_bug_begins_again_and_pages_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader of alerts that met a bug left the inbox as it was, and no page said so."""
    from paywarden.ops.console import background

    monkeypatch.setattr(background, "_RETRY_S", 0.0)
    now = [1_000_000]
    failures = background.Failures(lambda: now[0])
    tries, well = list[int](), threading.Event()

    def reads(stop: threading.Event) -> None:
        tries.append(now[0])
        if len(tries) < 4:
            now[0] += 20_000
            raise KeyError("a record that nobody expected")
        well.set()
        stop.wait()

    with background.running([Section("inbox", "Inbox", "/inbox", (), background=(reads,))], failures=failures):
        assert well.wait(_PATIENCE_S)
        (told,) = failures.missing()
        assert (told.what, told.since_ms) == ("The background work of the section inbox", 1_020_000)
        assert told.why == background.FAULT
        assert "a record that nobody expected" in caplog.text
        now[0] += 60_000
        assert failures.missing() == []
        failures.note("inbox")
        assert failures.missing()[0].since_ms == now[0]
