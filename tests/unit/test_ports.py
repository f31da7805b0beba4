"""Ports of a run's services."""

from __future__ import annotations

import random
import socket

import pytest

from tests.services import ports
from tests.services.ports import free_port, free_ports


class Drawn:
    """Draws the given numbers first, and random ones after them."""

    def __init__(self, *numbers: int) -> None:
        self.left = list(numbers)

    def randint(self, lowest: int, highest: int) -> int:
        return self.left.pop(0) if self.left else random.SystemRandom().randint(lowest, highest)


def test_a_run_gives_no_port_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = free_ports(2)
    assert first != other
    # Both are free: only the claims of the run say that a service will listen there.
    third = free_port()
    drawn = Drawn(first, other, third, first)
    monkeypatch.setattr(ports, "_chance", drawn)
    assert free_port() not in (first, other, third)
    assert drawn.left == []


def test_a_port_on_which_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_chance", Drawn(port, port))
        assert free_port() != port
