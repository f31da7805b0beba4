"""A console killed with `kill -9` has lost nothing that it confirmed: acknowledgements, notes, cases, verdicts."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.patience import PATIENCE_S
from tests.services.product.console import BY_A_BROWSER
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.worlds.drift.alerts_on_topics import alert_record
from tests.worlds.stream.decision_records import decision

_ALERTS, _REVIEWS = 12, 12
# The console is killed after this many confirmations, while more are under way.
_CONFIRMED_MIN = 9


class _Person:
    """A person at a browser, who does one act after the other until the console is gone."""

    def __init__(self, address: str, name: str) -> None:
        self._client = httpx2.Client(base_url=address, timeout=60.0, headers=BY_A_BROWSER)
        self.post("/login", name=name)

    def post(self, path: str, **form: str) -> str:
        """Do an act; returns where the console sends the browser, which is its confirmation."""
        answer = self._client.post(path, data=form)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    def get(self, path: str) -> httpx2.Response:
        return self._client.get(path)

    def close(self) -> None:
        self._client.close()


def _put(settings: KafkaSettings) -> None:
    ids = LocalSchemaIds()
    sender = Sender(settings, linger_ms=0)
    alerts, decisions = (Encoder(name, ids.id_of(name)) for name in (ALERTS_TOPIC, "decisions"))
    now = now_ms()
    for number in range(_ALERTS):
        record = alert_record(number, time_ms=now)
        sender.send(settings.topic(ALERTS_TOPIC), alerts.encode(record), key=str(record["alert_id"]).encode())
    for number in range(_REVIEWS):
        one = decision(f"p{number}", action="review", decided_time_ms=now, event_time_ms=now, score=0.5)
        sender.send(settings.topic("decisions"), decisions.encode(one), key=b"p")
    sender.flush(30)


def test_kill_9_of_the_console_loses_nothing_that_it_confirmed(kafka: KafkaServer, tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="killed.")
    create_topics(settings, TopicSettings(partitions=1, repartition_partitions=1), ["card"])
    _put(settings)
    config = tmp_path / "paywarden.toml"

    def console(folder: str) -> PaywardenProcess:
        config.write_text(
            f'[kafka]\nbootstrap = "{settings.bootstrap}"\ntopic_prefix = "{settings.topic_prefix}"\n'
            f'[console]\nport = 0\nfolder = "{tmp_path / folder}"\n'
            f'[decision_index]\npath = "{tmp_path / folder / "index.duckdb"}"\nsecond_review_share = 0.0\n',
            encoding="utf-8",
        )
        return PaywardenProcess(tmp_path, config, "console")

    running = console("one")
    address = running.first_line()
    analyst, lead = _Person(address, "demo-analyst"), _Person(address, "demo-lead")
    wait_until(
        lambda: "alert-00011" in analyst.get("/inbox?state=all").text, "the console knows the alerts", every_s=0.2
    )
    wait_until(lambda: _waiting(lead) == _REVIEWS, "the console knows the reviews", every_s=0.2)
    confirmed: list[tuple[str, str]] = []
    enough = threading.Event()

    def confirm(kind: str, what: str) -> None:
        confirmed.append((kind, what))
        if len(confirmed) >= _CONFIRMED_MIN:
            enough.set()

    def alerts() -> None:
        for number in range(_ALERTS):
            alert_id = f"alert-{number:05d}"
            analyst.post("/inbox/act", alert=alert_id, act="acknowledge")
            confirm("acknowledged", alert_id)

    def cases() -> None:
        for number in range(50):
            place = lead.post("/cases/open", title=f"Case {number}", item=f"payment:p{number}")
            confirm("case", place)
            lead.post(f"{place}/act", act="note", note=f"note {number}")
            confirm("note", f"{place} note {number}")

    def reviews() -> None:
        reviewer = _Person(address, "demo-analyst")
        for _ in range(_REVIEWS):
            reviewer.post("/review/claim")
            mine = reviewer.get("/review/mine").text
            claim = mine.split('name="claim" value="')[1].split('"')[0]
            reviewer.post("/review/decide", claim=claim, verdict="fraud", reason="other")
            confirm("verdict", claim)

    with ThreadPoolExecutor(3) as pool:
        works = [pool.submit(work) for work in (alerts, cases, reviews)]
        assert enough.wait(PATIENCE_S), [work.exception(1) for work in works if work.done()]
        running.kill()
        # Requests that were under way end with an error of the connection.
        assert any(work.exception(PATIENCE_S) is not None for work in works)
    counted = list(confirmed)
    assert {kind for kind, _ in counted} >= {"acknowledged", "case"}

    # One console goes on with its files, and one begins with only the topics.
    _require(console("one"), counted)
    _require(console("two"), counted)


def _require(running: PaywardenProcess, confirmed: list[tuple[str, str]]) -> None:
    """Check that a console knows what was confirmed."""
    person = _Person(running.first_line(), "demo-lead")
    for kind, what in confirmed:
        if kind == "acknowledged":
            _wait_for(person, f"/inbox/{what}", "Seen by demo-analyst")
        elif kind == "case":
            _wait_for(person, what, "payment:")
        elif kind == "note":
            place, _, note = what.partition(" ")
            _wait_for(person, place, note)
    count = sum(kind == "verdict" for kind, _ in confirmed)
    # One more may have been kept without its answer.
    left = {_REVIEWS - count, _REVIEWS - count - 1}
    wait_until(lambda: _waiting(person) in left, f"{count} verdicts are known", every_s=0.2)
    person.close()
    assert running.stop() == 0


def _wait_for(person: _Person, path: str, text: str) -> None:
    wait_until(lambda: text in person.get(path).text, f"{path} says {text}", every_s=0.2)


def _waiting(person: _Person) -> int:
    """Returns how many payments wait for a review; -1 while the index or the topic of verdicts lacks something."""
    text = person.get("/review").text
    found = re.search(r"<h2>([0-9]+) waiting</h2>", text)
    is_whole = "the index is being filled" not in text and "not yet on the topic" not in text
    return int(found[1]) if found and is_whole else -1
