"""PostgreSQL stops, or only says nothing, under a running console of a team."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.patience import PATIENCE_S
from tests.services.product import internals
from tests.services.product.console import BY_A_BROWSER
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.servers.kafka import KafkaServer, produce
from tests.services.servers.postgres import POSTGRES, postgres_server, programs
from tests.worlds.stream.decision_records import decision
from tests.worlds.stream.topics import read_topic

pytestmark = pytest.mark.skipif(programs() is None, reason=POSTGRES.reason)

_REVIEWS = 6
_MISSING = "The index of decisions cannot be reached"


class _Analyst:
    """A person at a browser."""

    def __init__(self, address: str) -> None:
        # A page that comes later than this never comes.
        self.client = httpx2.Client(base_url=address, timeout=PATIENCE_S, headers=BY_A_BROWSER)
        assert self.post("/login", name="demo-analyst").status_code == 303

    def close(self) -> None:
        self.client.close()

    def post(self, path: str, **form: str) -> httpx2.Response:
        return self.client.post(path, data=form)

    def get(self, path: str) -> httpx2.Response:
        return self.client.get(path)

    def missing(self) -> str:
        """Returns what the console misses, which it says without anybody's page."""
        return self.client.get("/readyz").text

    def claim(self) -> str:
        """Take a payment, or look at the taken one; returns the claim."""
        page = self.get("/review/mine")
        if page.status_code == 404:
            assert self.post("/review/claim").status_code == 303
            page = self.get("/review/mine")
        found = re.search('name="claim" value="([^"]+)"', page.text)
        assert found is not None, page.text
        return found[1]

    def waiting(self) -> int:
        found = re.search("<h2>([0-9]+) waiting", self.get("/review").text)
        return int(found[1]) if found else -1


def _put(settings: KafkaSettings, numbers: range) -> None:
    encoder, now = Encoder("decisions", LocalSchemaIds().id_of("decisions")), now_ms()
    made: list[dict[str, Any]] = [
        decision(f"p{number}", action="review", decided_time_ms=now, event_time_ms=now, score=0.5) for number in numbers
    ]
    produce(settings.bootstrap, settings.topic("decisions"), [("p", encoder.encode(one)) for one in made])


def test_pages_say_what_is_missing_and_nothing_is_lost_while_postgresql_is_away(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="postgres.")
    create_topics(settings, TopicSettings(partitions=1, repartition_partitions=1), ["card"])
    _put(settings, range(_REVIEWS))
    config = tmp_path / "paywarden.toml"
    with postgres_server() as server:
        config.write_text(
            f'[kafka]\nbootstrap = "{settings.bootstrap}"\ntopic_prefix = "{settings.topic_prefix}"\n'
            f'[console]\nport = 0\nfolder = "{tmp_path / "console"}"\n'
            f'[decision_index]\naddress = "{server.address}"\nsecond_review_share = 0.0\n',
            encoding="utf-8",
        )
        values = {"decision_index": {"timeout_ms": 1000}}
        internals.write(tmp_path, values)
        running = PaywardenProcess(tmp_path, config, "console")
        analyst = _Analyst(running.first_line())
        wait_until(lambda: analyst.waiting() == _REVIEWS, "the console knows the reviews", every_s=0.2)
        done = 0
        for number, (away, back) in enumerate([(server.stop, server.start), (server.freeze, server.thaw)]):
            assert analyst.post("/review/decide", claim=analyst.claim(), verdict="fraud", reason="other").is_redirect
            done += 1
            held = analyst.claim()
            away()
            try:
                _require_away(analyst, held)
                _put(settings, range(_REVIEWS + number, _REVIEWS + number + 1))
            finally:
                back()
            # Nobody opens a page for that.
            wait_until(lambda: _MISSING.split(" cannot")[0] not in analyst.missing(), "it is whole again", every_s=0.2)
            # Claims still hold, and records that came meanwhile are in.
            assert analyst.claim() == held
            assert analyst.post("/review/decide", claim=held, verdict="genuine", reason="other").is_redirect
            done += 1
            wait_until(
                lambda left=_REVIEWS + number + 1 - done: analyst.waiting() == left,  # type: ignore[misc]
                "all decisions are in, and no verdict is lost",
                every_s=0.2,
            )
            assert analyst.get("/decisions").status_code == 200
        wait_until(lambda: len(read_topic(settings, "verdicts")) >= done, "the verdicts are on their topic")
        assert len(read_topic(settings, "verdicts")) == done
        analyst.close()
        assert running.stop() == 0


def _require_away(analyst: _Analyst, held: str) -> None:
    """Each page comes, and says what is missing; no act looks as if it were done."""
    asked = ["/decisions", "/review", "/decisions/p1", "/decisions?action=review", "/review/mine"]
    with ThreadPoolExecutor(10) as pool:
        for page in pool.map(analyst.get, asked * 4):
            assert page.status_code == 503, page.text
            assert "PostgreSQL does not answer" in page.text
            assert _MISSING in page.text
            assert re.search("</strong> since (<[^>]*>)?20[0-9-]{8} [0-9:]{5} UTC", page.text)
            assert "No decision" not in page.text
            assert " waiting</h2>" not in page.text
    search = analyst.client.post("/decisions", data={"card_id": "card-1"}, follow_redirects=True)
    assert search.status_code == 503
    refused = analyst.post("/review/decide", claim=held, verdict="fraud", reason="other")
    assert refused.status_code == 503
    # Pages that need no index are there, and show the same.
    for path in ("/inbox", "/cases", "/sessions"):
        page = analyst.get(path)
        assert page.status_code == 200
        assert _MISSING in page.text
    assert "The index of decisions" in analyst.missing()
