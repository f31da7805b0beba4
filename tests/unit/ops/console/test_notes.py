"""Notes about cards, devices and merchants: who sees them, and that an erasure leaves no byte of them."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paywarden.models.metrics.costs import CostSettings
from paywarden.ops.console.cases import Cases
from paywarden.ops.console.decisions.decision_page import DecisionPage
from paywarden.ops.console.decisions.notes import NOTES_MAX, EntityNotes
from paywarden.ops.console.decisions.search import DecisionSearch
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.review.picked import Picked
from paywarden.ops.console.review.review import Review
from paywarden.ops.deciders import KnownDeciders
from paywarden.schemas.avro import Decoder
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC
from paywarden.streams.decision_index.erasure import Erasure
from tests.services.product.console import searched
from tests.unit.ops.console.test_decisions import CARD, IDS, PERSONAL, World, more
from tests.unit.ops.console.test_inbox import World as Topics
from tests.unit.ops.console.test_inbox import _Echo
from tests.worlds.drift.alerts_on_topics import TopicsInMemory

NOTE = "travels <b>until</b> May"


class Noted(World):
    """The console over an index, with notes on topics in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        topics, store = TopicsInMemory(), AlertStore(self.console.database)
        reader = AlertReader(store, lambda: topics, lambda: topics, self.console.clock)
        inbox = Inbox(store, reader, AlertPage(store, lambda: ""))
        self.topics = Topics(self.console, topics, store, reader, inbox)
        reader._make_writer = lambda: _Echo(self.topics)
        notes = EntityNotes(store, reader)
        cases = Cases(store, reader, folder / "files")
        picked = Picked(self.opened, store, reader, cases)
        known, decode = KnownDeciders(self.source, None, None), Decoder("decisions", IDS).decode
        one = DecisionPage(self.opened, known, decode, notes=notes.of)
        pages = notes.page(), *one.pages()
        found = DecisionSearch(self.opened, *pages, notes=notes.of, picks=picked.form, assigned=picked.assigned)
        review = Review(self.opened, CostSettings(), one.in_words, notes.of, picked)
        self.sections = (found.section(), review.section(), cases.section())
        self.merchant = more(1)[0]["merchant_id"]

    def note(self, browser: TestClient, of: str, note: str = NOTE, **more: str) -> int:
        return browser.post("/decisions/note", data={"of": of, "note": note, **more}).status_code

    def erase(self, until_ms: int, **ids: str) -> None:
        erasure = Erasure.of(ids, until_ms)
        assert erasure is not None
        _Echo(self.topics).write(erasure.event("forget"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Noted]:
    made = Noted(tmp_path)
    made.put(more(1))
    yield made
    made.database.close()
    made.console.database.close()


def test_a_note_is_with_the_entity_and_its_payments_for_those_who_see_cards(world: Noted) -> None:
    analyst, lead, auditor = (world.browser(f"demo-{name}") for name in ("analyst", "lead", "auditor"))
    for of in (f"card_id:{CARD}", "device_id:device-9", "merchant_id:" + world.merchant):
        assert world.note(analyst, of, f"{NOTE} {of[:4]}", back="/decisions/more0") == 303
    page = lead.get(world.address("more0")).text
    assert [f"{unescape(NOTE)} {kind}" in unescape(page) for kind in ("card", "devi", "merc")] == [True] * 3
    assert "<b>until</b>" not in page
    assert "<small>demo-analyst, <time" in page
    found = searched(lead, card_id=CARD).text
    assert "until&lt;/b&gt; May card" in found
    assert "until&lt;/b&gt; May devi" not in found
    lead.post("/review/claim", data={})
    assert "until&lt;/b&gt; May card" in lead.get("/review/mine").text
    # Another card's payments, and people who see no cards, get none.
    assert "until" not in searched(lead, card_id="another-card").text
    assert "until" not in auditor.get(world.address("more0")).text
    assert world.note(auditor, f"card_id:{CARD}") == 403
    # Neither topic nor audit log has the card's id.
    told = [one for one in world.topics.topics.topics[EVENTS_TOPIC] if one is not None]
    assert CARD not in repr(told)
    noted = [one for one in world.console.audit.newest(30) if one.act == "noted"]
    assert [one.what["kind"] for one in reversed(noted)] == ["card_id", "device_id", "merchant_id"]
    assert CARD not in repr(noted)


@pytest.mark.parametrize(
    "form",
    [
        {"of": "ip:10.0.0.9"}, {"of": "card_id:"}, {"of": "card_id"}, {"note": " \n "}, {"note": "x" * 1_001},
        {"note": "a\x00b"},
    ],
)  # fmt: skip
def test_a_note_that_is_none_is_refused(world: Noted, form: dict[str, str]) -> None:
    assert world.note(world.browser("demo-analyst"), **{"of": f"card_id:{CARD}", **form}) == 400
    assert not world.topics.topics.topics[EVENTS_TOPIC]


def test_an_entity_has_room_for_so_many_notes(world: Noted) -> None:
    analyst = world.browser("demo-analyst")
    answers = [world.note(analyst, f"card_id:{CARD}", f"note {number}") for number in range(NOTES_MAX + 1)]
    assert answers == [303] * NOTES_MAX + [409]


def test_an_erasure_leaves_no_byte_of_a_cards_notes(world: Noted, tmp_path: Path) -> None:
    analyst, now = world.browser("demo-analyst"), world.console.clock.now_ms
    world.note(analyst, f"card_id:{CARD}", "a-note-to-forget")
    world.note(analyst, f"device_id:{PERSONAL['device_id']}", "a-note-that-stays")
    # A combination is not the card.
    world.erase(now, card_id=CARD, merchant_id=world.merchant)
    assert "a-note-to-forget" in searched(analyst, card_id=CARD).text
    world.erase(now, card_id=CARD)
    assert "a-note-to-forget" not in searched(analyst, card_id=CARD).text
    assert "a-note-that-stays" in searched(analyst, device_id=PERSONAL["device_id"]).text
    files = b"".join(path.read_bytes() for path in (tmp_path / "console").rglob("*") if path.is_file())
    assert b"a-note-to-forget" not in files
    assert b"a-note-that-stays" in files
    # A note from before the erasure that comes later stays out; one from after it is new.
    world.note(analyst, f"card_id:{CARD}", "came-too-late")
    assert "came-too-late" not in searched(analyst, card_id=CARD).text
    world.console.clock.now_ms += 1
    world.note(analyst, f"card_id:{CARD}", "a-new-beginning")
    assert "a-new-beginning" in searched(analyst, card_id=CARD).text
    # A console that reads its topics again comes to the same.
    world.topics.store.begin_again([EVENTS_TOPIC], now)
    world.topics.topics.identity = "again"
    world.topics.read()
    text = searched(analyst, card_id=CARD).text
    assert ["a-note-to-forget" in text, "came-too-late" in text, "a-new-beginning" in text] == [False, False, True]
