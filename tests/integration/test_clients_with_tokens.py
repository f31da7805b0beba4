"""The clients of ops/clients at a running `serve` that asks for a token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.services.client_drivers import DRIVERS, Driver
from tests.services.fetch import ServiceMissing
from tests.services.processes import wait_for_listener
from tests.services.scoring_server import PATIENT, Server

TOKEN = "token-of-the-shop"
PATIENT_MS = 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "tokens").write_text(f"shop:{TOKEN}\n", encoding="utf-8")
    (folder / "tokens").chmod(0o600)
    with Server(folder, more=f'{PATIENT}[auth]\ntokens_file = "{folder / "tokens"}"\n') as one:
        one.start()
        wait_for_listener(one.target.removeprefix("http://"))
        yield one


@pytest.mark.parametrize("name", list(DRIVERS))
def test_a_client_scores_at_a_running_server(server: Server, name: str) -> None:
    try:
        command = DRIVERS[name]()
    except ServiceMissing as error:
        pytest.skip(str(error))
    payment: dict[str, Any] = {
        "payment_id": f"{name}-1",
        "event_time_ms": time.time_ns() // 1_000_000,
        "card_id": "card-000001",
        "merchant_id": "Zoë’s",
        "amount_minor": 0,
        "currency": "EUR",
        "ip": "192.0.2.7",
        "utc_offset_minutes": -60,
    }
    with Driver(command) as driver:
        settings = {"urls": [server.target], "deadline_ms": PATIENT_MS, "token": TOKEN}
        assert "ready" in driver.ask(settings=settings)
        first = driver.ask(score=payment)["decision"]
        assert (first["stand_in"], first["payment_id"]) == (False, f"{name}-1")
        assert first["action"] in ("approve", "review", "decline")
        assert 0 < first["score"] < 1
        # The idempotency key brings the decision back, and no other payment may have it.
        assert driver.ask(score=payment)["decision"]["decision_id"] == first["decision_id"]
        refused = driver.ask(score=payment | {"amount_minor": 1})["wrong_request"]
        assert (refused["code"], refused["field"]) == ("already_exists", "payment_id")
        refused = driver.ask(score=payment | {"payment_id": f"{name}-2", "currency": "eur"})["wrong_request"]
        assert (refused["code"], refused["field"]) == ("invalid_argument", "currency")
        load = driver.ask(load={"rate": 500, "seconds": 0.2, "id": f"{name}-load", "cards": 10})["load"]
        assert (load["answered"], load["failed"], load["stand_ins"]) == (100, 0, {})
        driver.ask(settings=settings | {"token": "another-token"})
        assert driver.ask(score=payment)["decision"]["reasons"] == ["stand_in:unauthorized"]
