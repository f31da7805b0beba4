from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.listeners import open_listener, reserve_port, unix_listener
from tests.worlds.http_world import get, serving


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


# Unix domain sockets


def test_a_unix_socket_is_for_its_owner_and_group_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with unix_listener(str(path), backlog=1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_socket_file_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    with unix_listener(path, backlog=1), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_socket_that_somebody_listens_on_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with unix_listener(path, backlog=4):
        with pytest.raises(Misconfigured, match="another process listens there"), unix_listener(path, backlog=1):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(Misconfigured, match=r"unix_socket: .*no socket"), unix_listener(str(path), backlog=1):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["nowhere/socket", "x" * 200])
def test_a_path_that_cannot_be_used_is_one_clear_error(tmp_path: Path, path: str) -> None:
    full = str(tmp_path / path)
    with pytest.raises(Misconfigured, match="cannot listen on"), unix_listener(full, backlog=1):
        pass


def test_a_socket_that_took_the_place_of_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with unix_listener(str(path), backlog=1):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()
