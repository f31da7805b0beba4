from __future__ import annotations

import socket

import pytest

from schemas.errors import Misconfigured
from scoring.listeners import open_listener, reserve_port
from tests.http_world import (
    get,
    serving,
)


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


@pytest.mark.parametrize("reuse_port", [0, 1])
def test_a_port_that_a_stranger_listens_on_is_refused(reuse_port: int) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(Misconfigured):
            reserve_port("127.0.0.1", stranger.getsockname()[1])


def test_a_port_can_be_had_again_at_once_after_a_server_that_closed_its_connections() -> None:
    with serving() as served, served.connected() as client:
        assert client.ask(get("/livez", headers="Connection: close\r\n")).status == 200
        assert client.is_closed_by_server()
        port = served.port
    with reserve_port("127.0.0.1", port) as held:
        assert held.getsockname()[1] == port


def test_a_host_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(Misconfigured, match=r"cannot listen on nowhere\.invalid:80"):
        reserve_port("nowhere.invalid", 80)
