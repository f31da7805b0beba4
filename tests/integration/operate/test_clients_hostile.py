"""The clients of ops/clients against hosts that are broken or hostile: one suite, through the driver of each client.

Each call ends with a stand-in of the right cause, is counted once, and leaves no connection behind.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.operate.test_clients import PATIENT_MS, SHORT_MS, event, make, payment, score
from tests.services.certificates import Authority
from tests.services.clients.client_drivers import DRIVERS, Driver
from tests.services.fetch import ServiceMissing
from tests.services.hosts.hostile_answers import HOSTILE
from tests.services.hosts.scripted_host import ScriptedHost
from tests.services.hosts.slow_relay import SlowRelay
from tests.services.product.processes import wait_until

# More than the sockets of both sides hold, and far less than an unstopped host would send.
SENT_BYTES_MAX = 64 * 1024 * 1024


@pytest.fixture(scope="module", params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """One driver for the module. Each test gives it settings of its own."""
    try:
        command = DRIVERS[request.param]()
    except ServiceMissing as error:
        pytest.skip(str(error))
    with Driver(command) as running:
        yield running


def connections(driver: Driver, port: int) -> int:
    """Returns how many connections to a port the driver's process holds, in any state."""
    found = psutil.Process(driver.pid).net_connections("tcp")
    return sum(bool(one.raddr) and one.raddr.port == port for one in found)


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_answer_becomes_a_stand_in(driver: Driver, word: str) -> None:
    hostile = HOSTILE[word]
    with ScriptedHost(word) as host:
        make(driver, host, deadline_ms=SHORT_MS if hostile.cause == "late" else PATIENT_MS, queue_max=0)
        decision = score(driver, "p-1")
        expected = (True, hostile.cause, "review", [f"stand_in:{hostile.cause}"])
        assert (decision["stand_in"], decision["outcome"], decision["action"], decision["reasons"]) == expected
        assert decision["attempts"] == (2 if hostile.cause == "broken" else 1)
        # A redirect is not followed.
        assert {request.path for request in host.requests} == {"/v1/score"}
        assert host.sent_bytes < SENT_BYTES_MAX
        if hostile.is_endless or hostile.then != "serve":
            wait_until(lambda: connections(driver, host.port) == 0, "no connection is left")
        # The next call must work after every such answer.
        host.script("answer")
        assert score(driver, "p-2", deadline_ms=PATIENT_MS)["outcome"] == "answered"
        wait_until(lambda: connections(driver, host.port) == 1, "one connection is kept")


def test_an_answer_that_nobody_asked_for_is_given_to_no_call(driver: Driver) -> None:
    with ScriptedHost("twice", "answer") as host:
        make(driver, host, idle_ms=PATIENT_MS)
        assert score(driver, "p-1")["outcome"] == "answered"
        wait_until(lambda: host.played == 1, "the host has sent both")
        assert score(driver, "p-2")["outcome"] == "answered"


def test_a_host_that_floods_a_kept_connection_is_not_listened_to(driver: Driver) -> None:
    """Also by clients that read what comes as it comes: nobody is kept busy by a host that was asked nothing."""
    with ScriptedHost("flood", "answer") as host:
        make(driver, host, idle_ms=PATIENT_MS)
        assert score(driver, "p-1")["outcome"] == "answered"
        wait_until(lambda: host.sent_bytes == _later(lambda: host.sent_bytes), "the host can send no more")
        assert host.sent_bytes < SENT_BYTES_MAX
        assert score(driver, "p-2")["outcome"] == "answered"


def _later(look: Callable[[], int]) -> int:
    time.sleep(0.2)
    return look()


# TLS


class Tls:
    """A host with TLS, and what a client needs for it."""

    def __init__(self, folder: Path, name: str = "server") -> None:
        authority = Authority(folder)
        self.settings: dict[str, Any] = {"ca": authority.path}
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(*authority.sign(name))


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def test_a_certificate_of_another_name_is_no_connection(driver: Driver, tls: Tls) -> None:
    """The certificate is right and of the right authority, and says 127.0.0.1."""
    with ScriptedHost(tls=tls.server) as host:
        make(driver, host, urls=[f"https://localhost:{host.port}"], queue_max=0, **tls.settings)
        assert score(driver, "p-1")["outcome"] == "unreachable"
        wait_until(lambda: connections(driver, host.port) == 0, "no connection is left")
    assert host.requests == []


def test_a_record_that_drips_is_left_at_the_deadline(driver: Driver, tls: Tls) -> None:
    """A timeout of each read would start again with every byte of the record."""
    with ExitStack() as stack:
        host = stack.enter_context(ScriptedHost("answer", "large", tls=tls.server))
        relay = stack.enter_context(SlowRelay(host.port, is_slow=lambda: len(host.requests) > 1))
        make(driver, host, urls=[f"https://127.0.0.1:{relay.port}"], queue_max=0, **tls.settings)
        assert score(driver, "p-1")["outcome"] == "answered"
        assert score(driver, "p-2", deadline_ms=500)["outcome"] == "late"
        wait_until(lambda: connections(driver, relay.port) == 0, "no connection is left")


def test_a_handshake_that_drips_is_left_at_the_deadline(driver: Driver, tls: Tls) -> None:
    with ScriptedHost(tls=tls.server) as host, SlowRelay(host.port, is_slow=lambda: True) as relay:
        make(driver, host, urls=[f"https://127.0.0.1:{relay.port}"], queue_max=0, **tls.settings)
        # A timer may end up to a millisecond before the deadline: then there is no connection yet.
        assert score(driver, "p-1", deadline_ms=500)["outcome"] in ("late", "unreachable")
        wait_until(lambda: connections(driver, relay.port) == 0, "no connection is left")
    assert host.requests == []


def test_a_shadow_call_of_a_hostile_host_ends_and_is_counted(driver: Driver) -> None:
    with ScriptedHost("endless_continues") as host:
        make(driver, host)
        driver.ask(shadow=payment("p-1"), own="decline")
        found = event(driver, "shadow")
        assert (found["own"], found["action"], found["cause"]) == ("decline", None, "failed")
        counted = event(driver, "call")
        assert (counted["operation"], counted["outcome"]) == ("shadow", "failed")
