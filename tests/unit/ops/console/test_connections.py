"""The console's connections: which one gives way to a newer one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from paywarden.ops.console.connections import ADDRESS_MAX, CONNECTIONS_MAX, PERSON_MAX, Connections
from paywarden.schemas.rare_line import EVERY_S


@dataclass(eq=False)
class Client:
    """A connection."""

    waits_for_client: bool = True
    is_open: bool = True

    def give_way(self) -> None:
        self.is_open = False


def admitted(connections: Connections, count: int, address: str, *, waiting: bool = True) -> list[Client]:
    made = [Client(waiting) for _ in range(count)]
    assert all(connections.admit(client, address) for client in made)
    return made


def test_the_oldest_connection_of_an_address_gives_way_to_its_next_one() -> None:
    connections = Connections()
    (person,) = admitted(connections, 1, "10.0.0.2")
    answered, *flood = admitted(connections, ADDRESS_MAX, "10.0.0.1")
    answered.waits_for_client = False
    admitted(connections, 50, "10.0.0.1")
    assert [client.is_open for client in flood] == [False] * 50 + [True] * (ADDRESS_MAX - 51)
    # A person at the same address, whose request is being answered, keeps the connection.
    assert (person.is_open, answered.is_open) == (True, True)


def test_a_full_console_drops_the_oldest_connection_without_a_login() -> None:
    connections = Connections()
    for number in range(PERSON_MAX + 10):
        (client,) = admitted(connections, 1, f"10.0.0.{number}")
        connections.prove(client, "anna")
    flood = [admitted(connections, 1, f"10.1.0.{number}")[0] for number in range(CONNECTIONS_MAX)]
    # What a person has beyond the share of a person gives way like any other.
    assert [client.is_open for client in flood].count(True) == CONNECTIONS_MAX - PERSON_MAX
    assert not flood[0].is_open


def test_an_address_whose_requests_are_all_being_answered_gets_no_more() -> None:
    connections = Connections()
    flood = admitted(connections, ADDRESS_MAX, "2001:db8::1", waiting=False)
    assert not connections.admit(Client(), "2001:db8::2"), "the same /64"
    assert connections.admit(Client(), "10.0.0.1")
    connections.forget(flood[0])
    assert connections.admit(Client(), "2001:db8::2")


def test_a_flood_of_connections_has_one_line_of_the_log_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    connections = Connections(lambda: now_s)
    admitted(connections, ADDRESS_MAX + 500, "10.0.0.1")
    now_s = EVERY_S
    admitted(connections, 1, "10.0.0.1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "since the last such line 500 gave way or were refused, now for one from 10.0.0.1" in caplog.text
