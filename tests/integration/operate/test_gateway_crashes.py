"""Hosts behind a gateway whose workers crash again and again: their cards stay where they are."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.services.hosts.always_well import always_well
from tests.services.hosts.scripted_host import ScriptedHost
from tests.services.servers.gateways import TARGETS, RunningGateway, missing_tool, patient_description, running_gateway
from tests.worlds.endpoint.http_world import Client, payment, post_json

_KEY = "the-key-of-the-load"
# A worker that is killed breaks two or three calls: some 25 crashes, one right after the other.
_BROKEN = 60
_CARD = hashlib.sha256(b"card").hexdigest()[:32]


@pytest.fixture
def hosts() -> Iterator[list[ScriptedHost]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ScriptedHost()) for _ in range(2)]


def _ask(gateway: RunningGateway, payment_id: str) -> int:
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=PATIENCE_S) as raw:
        headers = f"Authorization: Bearer {_KEY}\r\nx-paywarden-route: {_CARD}\r\n"
        return Client(raw).ask(post_json(payment(payment_id), headers=headers)).status


@pytest.mark.parametrize("target", TARGETS)
def test_a_host_whose_calls_break_between_answers_keeps_its_cards(
    target: str, hosts: list[ScriptedHost], tmp_path: Path
) -> None:
    """A payment that broke may have been decided: its retry has to meet the host that knows."""
    if (tool := missing_tool(target)) is not None:
        pytest.skip(tool.reason)
    with always_well() as health:
        description = patient_description(tmp_path, _KEY, [host.port for host in hosts], health)
        with running_gateway(target, description, tmp_path / target, "") as gateway:
            assert _ask(gateway, "first") == 200
            owner = max(hosts, key=lambda host: len(host.requests))
            other = min(hosts, key=lambda host: len(host.requests))
            for number in range(_BROKEN):
                owner.script("break", "answer")
                assert (_ask(gateway, f"broken-{number}"), _ask(gateway, f"broken-{number}")) == (503, 200)
    assert other.requests == []
