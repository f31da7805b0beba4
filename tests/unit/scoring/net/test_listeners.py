from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.engine.batching import refusal_budget
from paywarden.scoring.http import http_front
from paywarden.scoring.net import listeners
from paywarden.scoring.net.listeners import accept, open_listener, reserve_port
from paywarden.scoring.net.tls import HTTP_1_1, Tls, TlsSettings
from tests.services.certificates import Authority
from tests.services.product.processes import wait_until
from tests.worlds.endpoint.http_world import WAIT_SECONDS, Client, get, serving


def test_workers_share_a_reserved_port_and_another_parent_cannot_have_it() -> None:
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            reserve_port("127.0.0.1", port)
        with (
            open_listener("127.0.0.1", port, backlog=1) as one,
            open_listener("127.0.0.1", port, backlog=1) as two,
        ):
            assert one.getsockname() == two.getsockname()
            with pytest.raises(Misconfigured):
                reserve_port("127.0.0.1", port)


def test_what_can_be_no_name_of_a_host_is_refused_in_one_line() -> None:
    for host in ("no..name", "n" * 64 + ".example"):
        with pytest.raises(Misconfigured, match=f"cannot listen on {host}:0: '{host}' is no name of a host"):
            reserve_port(host, 0)


@pytest.mark.parametrize("reuse_port", [0, 1])
def test_a_port_that_a_stranger_listens_on_is_refused(reuse_port: int) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(Misconfigured):
            reserve_port("127.0.0.1", stranger.getsockname()[1])


def test_a_port_is_free_at_once_after_a_server_closed_its_connections() -> None:
    with serving() as served, served.connected() as client:
        assert client.ask(get("/livez", headers="Connection: close\r\n")).status == 200
        assert client.is_closed_by_server()
        port = served.port
    with reserve_port("127.0.0.1", port) as held:
        assert held.getsockname()[1] == port


def test_a_host_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(Misconfigured, match=r"cannot listen on nowhere\.invalid:80"):
        reserve_port("nowhere.invalid", 80)


# Accepting


def test_an_overloaded_worker_leaves_connections_in_the_kernels_queue_until_it_has_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Impatient callers opened new connections faster than a worker could score."""
    monkeypatch.setattr(refusal_budget, "REFUSING_SHARE", 0.0)
    monkeypatch.setattr(listeners, "_PACE_S", 3.0)
    with serving() as served:
        batcher = served.server._batcher
        assert batcher is not None
        batcher._limit.stands, batcher._budget._left_s = True, 3.5 * http_front._CONNECTION_S
        with contextlib.ExitStack() as clients:
            asked = [clients.enter_context(served.connected()) for _ in range(6)]
            for client in asked:
                client.send(get("/livez"))
            # The fourth has spent the last of the budget.
            assert [client.reply().status for client in asked[:4]] == [200] * 4
            assert served.server.connections.count == 4
            batcher._limit.stands = False
            assert [client.reply().status for client in asked[4:]] == [200] * 2


class FailingListener(socket.socket):
    """A listening socket whose `accept` fails as often as a test says."""

    failures: int
    accepts: int

    @classmethod
    def opened(cls, failures: int) -> FailingListener:
        listener = cls(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.failures, listener.accepts = failures, 0
        return listener

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepts += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def test_a_listener_goes_on_after_it_could_not_accept(caplog: pytest.LogCaptureFixture) -> None:
    """uvloop's own server closes the listener without a word when `accept` fails."""

    async def echoed() -> bytes:
        listener = FailingListener.opened(failures=2)
        acceptor = await accept(
            Echo, listener, may_go_on=lambda: True, backlog=8, tls=None, protocol=HTTP_1_1, linger_ms=1
        )
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"late, but served")
        answer = await reader.readexactly(16)
        # Two that failed, one connection, one that found nothing more.
        assert listener.accepts == 4
        writer.close()
        acceptor.close()
        return answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(echoed()) == b"late, but served"
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections, and tries again: Too many open files"
    ]


def test_a_connection_that_cannot_be_accepted_does_not_spin_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel goes on saying that a connection waits."""
    monkeypatch.setattr(listeners, "_ACCEPT_PAUSE_S", 3600.0)

    async def accepts_after_many_turns() -> int:
        listener = FailingListener.opened(failures=1000)
        acceptor = await accept(
            Echo, listener, may_go_on=lambda: True, backlog=8, tls=None, protocol=HTTP_1_1, linger_ms=1
        )
        _, writer = await asyncio.open_connection(*listener.getsockname())
        while not listener.accepts:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        writer.close()
        acceptor.close()
        return listener.accepts

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(accepts_after_many_turns()) == 1


def test_of_too_many_handshakes_the_oldest_is_cut_and_a_newcomer_is_served(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    tls = Tls(TlsSettings(certificate=certificate, key=key, handshakes_max=3, handshake_timeout_ms=600_000))
    with serving(tls=tls) as served, contextlib.ExitStack() as opened:

        def connected() -> socket.socket:
            return opened.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_SECONDS))

        silent = [connected() for _ in range(5)]
        # The first two were cut when the fourth and the fifth came. The others still wait for the first byte.
        assert [raw.recv(1) for raw in silent[:2]] == [b"", b""]
        context = ssl.create_default_context(cafile=authority.path)
        with context.wrap_socket(connected(), server_hostname="127.0.0.1") as wrapped:
            assert Client(wrapped).ask(get("/livez")).status == 200
        assert silent[2].recv(1) == b""
        silent[4].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[4].recv(1)


def test_connections_that_end_early_leave_no_descriptor_behind(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    for tls in (None, Tls(TlsSettings(certificate=certificate, key=key))):
        with serving(tls=tls) as served:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_SECONDS) as raw:
                    raw.sendall(b"no handshake and no request\r\n\r\n")
            # Other parts of this process may open a file meanwhile; twenty connections would be twenty.
            wait_until(lambda before=before: len(os.listdir("/proc/self/fd")) < before + 10, "all are closed")  # type: ignore[misc]
