"""The findings of `paywarden doctor` about a registry and about brokers that are wrong."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from paywarden.ops.doctor import kafka
from paywarden.ops.doctor.results import results_of
from paywarden.schemas.settings import Source


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Yields the address of a server that answers everything alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


def told(url: str) -> tuple[str, str]:
    """Returns state and words of the registry's one result."""
    source = Source({}, {"PAYWARDEN_REGISTRY_URL": url})
    (result,) = results_of("registry", [kafka.check_registry], source)
    return result.state, str(result)


_IS_NONE = "{url} is no schema registry: give [registry] url the address of its API, such as http://registry:8081"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<!doctype html><title>Login</title>", _IS_NONE),
        (200, b"", _IS_NONE),
        (200, b"{}", _IS_NONE),
        (200, b"[1, 2]", _IS_NONE),
        (404, b"404 page not found", "schema registry {url} answered with status 404: give [registry] url the address"),
        (401, b"{}", "schema registry {url} refused us with status 401: correct [registry] username and password"),
        (
            500,
            b'{"error_code": 50001, "message": "Error in the backend"}',
            "schema registry {url} answered with status 500 (Error in the backend): look at the registry and its log",
        ),
        (502, b"<html>", "schema registry {url} answered with status 502: look at the registry and its log"),
    ],
)
def test_what_a_registry_answers_is_told_with_how_to_mend_it(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as url:
        state, seen = told(url)
    assert state == "error"
    assert seen.startswith(words.format(url=url))
    assert "html" not in seen


def test_an_answer_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def asks(_: object) -> frozenset[str]:
        never.wait()
        return frozenset()

    monkeypatch.setattr(kafka, "registered_subjects", asks)
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.01)
    monkeypatch.setattr(kafka, "_REGISTRY_TRIES", 0)
    state, seen = told("http://127.0.0.1:1")
    never.set()
    assert state == "error"
    assert "has not answered in full within" in seen


def test_a_broker_that_gives_an_address_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients go where a broker says that it is. The doctor said that all topics were missing, and to create them."""
    monkeypatch.setattr(kafka, "require_broker", lambda _: None)
    monkeypatch.setattr(kafka, "embedded_cluster", lambda _: "")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed_port = free.getsockname()[1]
    places = [("no..such.broker", 9092), ("127.0.0.1", closed_port)]
    brokers = {number: SimpleNamespace(host=host, port=port) for number, (host, port) in enumerate(places)}
    admin = SimpleNamespace(list_topics=lambda **_: SimpleNamespace(brokers=brokers))
    monkeypatch.setattr(kafka, "make_admin", lambda _: admin)
    first, *away = results_of("kafka", [kafka.check_kafka], Source({}, {}))
    assert first.state == "ok"
    assert [result.state for result in away] == ["error", "error"]
    assert away[0].seen.startswith(
        "a broker says that it is at no..such.broker:9092, where this host does not reach it"
    )
    assert away[1].seen.endswith(f"127.0.0.1:{closed_port}, where this host does not reach it (Connection refused)")
    assert {result.fix for result in away} == {"correct advertised.listeners of that broker, or DNS and the way to it"}
