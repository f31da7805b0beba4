"""Two worker processes and the overlay: a card's next payment sees its answered one."""

from __future__ import annotations

import http.client
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.policy.policy import OVERLAY_ABSENT
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.overlay_marks import OverlayMarks
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.services.product.scoring_server import Server

PAIRS = 40


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Server]:
    """A host with two workers. Its companion has brought nothing yet, and its marks are trusted."""
    overlay = OverlaySettings(enabled=True, path=str(tmp_path / "overlay"), payments_max=4096, lifetime_ms=120_000)
    more = f'[overlay]\nenabled = true\npath = "{overlay.path}"\npayments_max = 4096\nlifetime_ms = 120000\n'
    with Server(tmp_path, more=more) as made:
        with closing(MirrorWriter(made.mirror)) as writer:
            writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
            with closing(OverlayMarks(overlay, FeatureEngine().plan, made.mirror.path)) as marks:
                marks.begin(writer.newest_transaction())
        made.start("--workers", "2")
        made.listening(2)
        yield made


def paid(host: Server, card: str, name: str) -> ScoreResponse:
    """Returns the answer to a payment on a connection of its own: the kernel gives it to one of the workers."""
    request = ScoreRequest(
        payment_id=name,
        event_time_ms=time.time_ns() // 1_000_000,
        card_id=card,
        merchant_id="m",
        amount_minor=1,
        currency="EUR",
    )
    with closing(http.client.HTTPConnection(urllib.parse.urlsplit(host.target).netloc, timeout=PATIENCE_S)) as client:
        client.request("POST", "/v1/score", request.SerializeToString(), {"Content-Type": "application/x-protobuf"})
        answer = client.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"got {answer.status}")
    return ScoreResponse.FromString(body)


def worker_of(response: ScoreResponse) -> str:
    """The ids of a worker's decisions begin alike."""
    return response.decision_id[:16]


def test_the_next_payment_of_a_card_sees_the_one_before_through_any_worker(host: Server) -> None:
    """As perf/overlay.py measures with 10,000 pairs."""
    others = 0
    for number in range(PAIRS):
        first = paid(host, f"card-{number}", f"{number}-a")
        assert "unknown_card" in first.flags
        time.sleep(0.001)
        second = paid(host, f"card-{number}", f"{number}-b")
        assert not {"unknown_card", OVERLAY_ABSENT} & set(second.flags)
        others += worker_of(first) != worker_of(second)
    assert 0 < others < PAIRS


def test_it_sees_the_one_before_although_its_workers_were_killed_since(host: Server) -> None:
    first = paid(host, "card", "a")
    for worker in host.workers:
        worker.kill()

    def second() -> ScoreResponse | None:
        with suppress(OSError, http.client.HTTPException):
            return paid(host, "card", "b")
        return None

    wait_until(lambda: second() is not None, "new workers answer")
    # The answer that is kept: it was decided once.
    response = second()
    assert response is not None
    assert worker_of(response) != worker_of(first)
    assert not {"unknown_card", OVERLAY_ABSENT} & set(response.flags)
