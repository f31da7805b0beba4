"""Real scoring hosts that restart, hang and lose workers: all clients of ops/clients at once, and gateways."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.services.clients.client_drivers import DRIVERS, Driver
from tests.services.clients.gateway_kills import killed_under_load
from tests.services.clients.served_clients import Host, load_with_kills, load_with_restarts, running_hosts
from tests.services.fetch import ServiceMissing
from tests.services.hosts.always_well import always_well
from tests.services.servers.gateways import TARGETS, missing_tool, patient_description, running_gateway

PATIENT_MS, SHORT_MS = 60_000, 50
RATE = 20


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Host]]:
    with running_hosts(tmp_path_factory.mktemp("hosts"), 2) as running:
        yield running


@pytest.fixture(scope="module")
def drivers() -> Iterator[Mapping[str, Driver]]:
    """The drivers of all clients whose tools are there: Python's always are."""
    with ExitStack() as stack:
        running = {}
        for name, command in DRIVERS.items():
            try:
                running[name] = stack.enter_context(Driver(command()))
            except ServiceMissing:
                # test_clients.py skips with the reason.
                continue
        yield running


def make(drivers: Mapping[str, Driver], hosts: Sequence[Host], **settings: Any) -> None:
    for driver in drivers.values():
        assert "ready" in driver.ask(settings={"urls": [host.url for host in hosts], **settings})


def test_the_service_and_every_client_understand_each_other(
    drivers: Mapping[str, Driver], hosts: Sequence[Host]
) -> None:
    make(drivers, hosts[:1], deadline_ms=PATIENT_MS)
    for name, driver in drivers.items():
        payment = {
            "payment_id": f"both-{name}",
            "event_time_ms": time.time_ns() // 1_000_000,
            "card_id": "Kärtchen",
            "merchant_id": "merchant-1",
            "amount_minor": 0,
            "currency": "EUR",
            "mcc": "5411",
            "utc_offset_minutes": -60,
        }
        first, again = (driver.ask(score=payment)["decision"] for _ in range(2))
        assert first == again
        assert (first["payment_id"], first["stand_in"]) == (payment["payment_id"], False)
        assert first["decision_id"]
        wrong = driver.ask(score=payment | {"payment_id": f"wrong-{name}", "currency": "XXQ"})["wrong_request"]
        assert (wrong["code"], wrong["field"]) == ("invalid_argument", "currency")


def test_a_host_that_is_stopped_gives_every_call_a_stand_in(
    drivers: Mapping[str, Driver], hosts: Sequence[Host]
) -> None:
    make(drivers, hosts[:1], deadline_ms=SHORT_MS, queue_max=0)
    with hosts[0].stopped():
        for name, driver in drivers.items():
            load = driver.ask(load={"rate": RATE, "seconds": 0.5, "id": f"stopped-{name}", "cards": 10})["load"]
            # A machine that is busy may leave no time for a connection.
            assert sum(load["stand_ins"].values()) == load["calls"] == 10, load
            assert load["stand_ins"]["late"] > 0, load


def test_rolling_restarts_cost_no_caller_the_services_decision(
    drivers: Mapping[str, Driver], hosts: Sequence[Host]
) -> None:
    make(drivers, hosts, deadline_ms=PATIENT_MS)
    load = {"rate": RATE, "seconds": 6.0, "id": "restarted", "cards": 50}
    for name, report in load_with_restarts(drivers, hosts, load, 2).items():
        assert report["answered"] == report["calls"], (name, report)
        assert report["restarts"] > 0


def test_no_payment_is_decided_twice_when_workers_are_killed(
    drivers: Mapping[str, Driver], hosts: Sequence[Host]
) -> None:
    make(drivers, hosts[:1], deadline_ms=PATIENT_MS)
    load = {"rate": RATE, "seconds": 2.0, "id": "killed", "cards": 50}
    for name, report in load_with_kills(drivers, hosts[0], load, 3).items():
        assert (report["duplicates"], report["failed"]) == (0, 0), (name, report)


@pytest.mark.parametrize("target", TARGETS)
def test_no_payment_is_decided_twice_behind_a_gateway_when_workers_are_killed(
    target: str, hosts: Sequence[Host], tmp_path: Path
) -> None:
    if (tool := missing_tool(target)) is not None:
        pytest.skip(tool.reason)
    key = "the-key-of-the-load"
    with always_well() as health:
        ports = [port for host in hosts if (port := urlsplit(host.url).port)]
        description = patient_description(tmp_path, key, ports, health)
        with running_gateway(target, description, tmp_path / target, "") as gateway:
            url = f"http://127.0.0.1:{gateway.http_port}"
            killed = killed_under_load(url, hosts, 4, key=key, name=f"{target}-killed")
    assert killed.double == 0, killed
    assert killed.payments > 0
