"""Ports for services that get their port as a setting before they listen."""

from __future__ import annotations

import random
import socket

from tests.services.made_once import run_folder

# Below the range from which systems take the ports of outgoing connections. A service's port must still be free when
# the service comes back. Otherwise a client that keeps retrying could get that very port as its own and connect to
# itself.
_LOWEST_PORT, _HIGHEST_PORT = 15_000, 30_000
# Not the random generator that tests seed, which is the same in each process of the run.
_chance = random.SystemRandom()


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 on which no process listens now, and that this run gives to nobody else.

    The processes of a run claim ports in the run's folder. Another program may still take the port a moment later.
    """
    claims = run_folder() / "ports"
    claims.mkdir(exist_ok=True)
    while True:
        port = _chance.randint(_LOWEST_PORT, _HIGHEST_PORT)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                (claims / str(port)).touch(exist_ok=False)
            except OSError:
                continue
            return port


def free_ports(count: int) -> list[int]:
    """Returns different ports, each as `free_port` does."""
    return [free_port() for _ in range(count)]
