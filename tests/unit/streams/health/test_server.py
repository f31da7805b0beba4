from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.health.server import CONNECTIONS_MAX, ConnectionLimits, serving_health
from tests.patience import PATIENCE_S
from tests.services.hosts.flood import flooded
from tests.services.product.processes import wait_until


class FakeHealth:
    def __init__(self) -> None:
        self.is_live = True
        self.missing: list[str] = []
        self.bug: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def live(self) -> bool:
        self.answers.wait(PATIENCE_S)
        if self.bug is not None:
            raise self.bug
        return self.is_live

    def problems(self) -> Sequence[str]:
        return self.missing


@pytest.fixture
def health() -> FakeHealth:
    return FakeHealth()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


# A test that needs other limits gives them as the fixture's parameter.
@pytest.fixture
def address(health: FakeHealth, registry: CollectorRegistry, request: pytest.FixtureRequest) -> Iterator[str]:
    limits: ConnectionLimits | None = getattr(request, "param", None)
    with serving_health(health, registry, host="127.0.0.1", port=0, section="companion", limits=limits) as address:
        yield address


def get(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=PATIENCE_S) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def serving_threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_livez_and_readyz_report_the_health(address: str, health: FakeHealth) -> None:
    assert get(f"{address}/livez")[::2] == (200, b'{"live": true}')
    assert json.loads(get(f"{address}/readyz?verbose")[2]) == {"ready": True, "missing": []}
    health.is_live, health.missing = False, ["the mirror is being filled", "Kafka is away"]
    assert get(f"{address}/livez")[::2] == (503, b'{"live": false}')
    status, headers, body = get(f"{address}/readyz")
    assert status == 503
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(body) == {"ready": False, "missing": health.missing}


def test_metrics_come_from_the_registry(address: str, registry: CollectorRegistry) -> None:
    Gauge("answer", "An answer.", registry=registry).set(42)
    status, headers, body = get(f"{address}/metrics")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert b"\nanswer 42.0\n" in body


def test_other_paths_are_refused_and_input_is_never_echoed(address: str) -> None:
    for path in ("/", "/readyz/", "/metrics/x", "/<script>"):
        status, headers, body = get(f"{address}{path}")
        assert (status, body) == (404, b"404: Not Found\n")
        assert headers["Server"] == "paywarden"
    for method in ("POST", "OPTIONS", "DELETE"):
        status, headers, _ = get(f"{address}/livez", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, headers, body = get(f"{address}/livez", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "14", b"")


@pytest.mark.parametrize(
    "sent", [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET /livez HTTP/9.9\r\n\r\n", b"A" * 70_000, b""]
)
def test_a_client_without_http_is_refused_and_others_are_served(address: str, sent: bytes) -> None:
    with connected(address) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while client_reads(client):
            pass
    assert get(f"{address}/livez")[0] == 200


def client_reads(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("address", [ConnectionLimits(connection_s=0.3)], indirect=True, ids=["0.3 s"])
def test_a_slow_client_is_cut_at_its_deadline(address: str) -> None:
    with connected(address) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\nX: ")
        wait_until(lambda: is_cut(client), "the connection is cut", every_s=0.05)
    wait_until(lambda: serving_threads() == 0, "its thread has ended")


@pytest.mark.parametrize("address", [ConnectionLimits(connection_s=0.3)], indirect=True, ids=["0.3 s"])
def test_a_server_without_a_connection_sleeps(address: str) -> None:
    assert get(f"{address}/livez")[0] == 200
    wait_until(lambda: serving_threads() == 0, "the connection has ended")
    # Another file's test may have left one: this test's is the newest.
    server = [thread for thread in threading.enumerate() if thread.name == "health"][-1]
    status = Path(f"/proc/self/task/{server.native_id}/status")

    def slept() -> bool:
        """Whether nothing woke it in a second. It wakes once more, at the deadline that the connection had."""
        before = status.read_text(encoding="utf-8")
        time.sleep(1.0)
        after = status.read_text(encoding="utf-8")
        return _switches(after) == _switches(before)

    wait_until(slept, "it sleeps for a second")


def _switches(status: str) -> list[str]:
    return re.findall(r"ctxt_switches:\s*(\d+)", status)


def is_cut(client: socket.socket) -> bool:
    """Returns whether the server has cut the connection; sends one more byte if not."""
    try:
        client.sendall(b"x")
        client.settimeout(0.01)
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_hanging_clients_keep_no_probe_out_and_threads_stay_bounded(address: str) -> None:
    with ExitStack() as stack:
        hanging = [stack.enter_context(connected(address)) for _ in range(3 * CONNECTIONS_MAX)]
        for _ in range(5):
            assert get(f"{address}/livez")[0] == 200
        # A thread ends a moment after the connection whose place it gives up.
        wait_until(lambda: serving_threads() <= CONNECTIONS_MAX, "threads are as few as connections")
        # The newest connections are still open.
        hanging[-1].sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert hanging[-1].recv(100).startswith(b"HTTP/1.0 200")


def test_a_client_that_comes_again_and_again_keeps_no_probe_out(address: str) -> None:
    with flooded(address, "/livez", 100) as flood:
        while flood.made < 1000:
            assert get(f"{address}/livez")[0] == 200


@pytest.mark.parametrize("address", [ConnectionLimits(room_timeout_s=0.05)], indirect=True, ids=["0.05 s"])
def test_new_connections_are_refused_while_all_threads_are_busy(address: str, health: FakeHealth) -> None:
    health.answers.clear()
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(address)) for _ in range(CONNECTIONS_MAX + 2)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client_reads(clients[-1]) == b""
        wait_until(lambda: serving_threads() == CONNECTIONS_MAX, "only busy threads are left")
        health.answers.set()
    assert get(f"{address}/livez")[0] == 200


@pytest.mark.parametrize("address", [ConnectionLimits(connection_s=0.3)], indirect=True, ids=["0.3 s"])
def test_a_client_that_does_not_read_blocks_no_other(address: str, registry: CollectorRegistry) -> None:
    Gauge("large", "x" * 10_000_000, registry=registry)
    with connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert get(f"{address}/livez")[0] == 200
        wait_until(lambda: serving_threads() == 0, "its thread has ended")


def test_the_end_of_the_block_ends_the_server_and_its_connections(registry: CollectorRegistry) -> None:
    # Its deadline would end the connection later than the client waits.
    limits = ConnectionLimits(connection_s=2 * PATIENCE_S)
    with serving_health(
        FakeHealth(), registry, host="127.0.0.1", port=0, section="companion", limits=limits
    ) as address:
        client = connected(address)
        wait_until(lambda: serving_threads() == 1, "it is served")
    assert client.recv(1) == b""
    client.close()
    wait_until(lambda: serving_threads() == 0, "its thread has ended")
    with pytest.raises(OSError, match="refused"):
        connected(address)


def test_a_bug_in_the_health_report_is_logged_and_ends_nothing(
    address: str, health: FakeHealth, caplog: pytest.LogCaptureFixture
) -> None:
    health.bug = KeyError("bug")
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="closed"):
        get(f"{address}/livez")
    wait_until(lambda: "could not be answered" in caplog.text, "it is logged")
    assert get(f"{address}/readyz")[0] == 200


def test_an_address_that_cannot_be_bound_is_named(registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for wrong, host in ((port, "127.0.0.1"), (70_000, "127.0.0.1"), (0, "no.such.host.invalid")):
            with (
                pytest.raises(Misconfigured, match=rf"\[companion\] http_host, http_port: .* {host}:{wrong}: "),
                serving_health(FakeHealth(), registry, host=host, port=wrong, section="companion"),
            ):
                pass


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_ipv6_address_is_announced_in_a_usable_form(registry: CollectorRegistry) -> None:
    with serving_health(FakeHealth(), registry, host="::1", port=0, section="companion") as address:
        assert address.startswith("http://[::1]:")
        assert get(f"{address}/livez")[0] == 200
