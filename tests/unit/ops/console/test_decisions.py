"""Decisions and reviews in the console: what people see, what they may not, and what a lost database looks like."""

from __future__ import annotations

import math
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from starlette.testclient import TestClient

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops.console.assembly import listed_catalogue
from paywarden.ops.console.decisions.decision_page import DecisionPage
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.links import NODES_MAX, links_of
from paywarden.ops.console.decisions.search import DecisionSearch
from paywarden.ops.console.page_rows import Page, Section, Shown
from paywarden.ops.console.review.review import Review
from paywarden.ops.deciders import KnownDeciders
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable, TemporaryFailure
from paywarden.schemas.settings import read_source
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.decision_index.database import DuckDbDatabase, IndexSilent, IndexUnavailable
from paywarden.streams.decision_index.filler import FillState, VerdictSender
from paywarden.streams.decision_index.index import DecisionIndex, SourcePlace, Stored
from paywarden.streams.decision_index.reviews import AnalystVerdict, ReviewQueue, ReviewRules
from paywarden.streams.decision_index.search import Search
from tests.fakes.kafka import FakeBroker, clients_of
from tests.services.product.console import NOW_MS, TOKEN, ConsoleUnderTest, console_under_test, searched
from tests.services.product.processes import wait_until
from tests.unit.ops.commands.watch.test_decisions import entry
from tests.worlds.small import small_world

IDS = LocalSchemaIds()
CARD = "card-of-17-characters"
HOUR_MS = 3_600_000


def decisions() -> list[dict[str, Any]]:
    """Returns ten decisions of one card, an hour apart; the strictest of the golden payments is under review."""
    made = []
    for number in range(10):
        decision = decision_of(entry(f"pay{number}", number))
        changes = {"card_id": CARD, "decided_time_ms": NOW_MS - (10 - number) * HOUR_MS, "amount_minor": 100_00}
        made.append({**decision, **changes})
    made[3] |= {"action": "review", "decision_id": "d-review", "score": 0.4}
    made[4] |= {"action": "review", "decision_id": "d-other", "score": 0.3}
    return made


class World:
    """A console over an index in a file."""

    def __init__(self, folder: Path, rules: str = "") -> None:
        """`rules`: further lines of [policy]."""
        config = folder / "paywarden.toml"
        config.write_text(
            f'[serve]\nbundle = "{small_world.trained_bundle()}"\nruntime = "{folder}"\n'
            f"[policy]\nreview_at = 0.02\n{rules}",
            encoding="utf-8",
        )
        self.source = read_source(str(config), {})
        self.database = DuckDbDatabase(folder / "index.duckdb")
        self.index = DecisionIndex(self.database, worth=lambda amount, _currency, _time: amount)
        self.queue = ReviewQueue(self.database, ReviewRules(second_share=0.0))
        self.is_lost = False
        self.silent: Callable[[], None] = lambda: None
        self.put(decisions())
        with self.database.transaction() as transaction:
            fraud = {"payment_id": "pay1", "outcome_time_ms": NOW_MS, "label": "fraud", "source": "chargeback"}
            self.index.add_outcomes(transaction, [fraud])
        opened = OpenedIndex(self._opens, None, now_ms=lambda: NOW_MS)
        decode = Decoder("decisions", IDS).decode
        one = DecisionPage(opened, KnownDeciders(self.source, None, None), decode, listed_catalogue(self.source))
        review = Review(opened, CostSettings(), one.in_words)
        self.sections: tuple[Section, ...] = (DecisionSearch(opened, *one.pages()).section(), review.section())
        self.opened = opened
        self.console: ConsoleUnderTest = console_under_test(folder / "console")

    def put(self, told: list[dict[str, Any]]) -> None:
        encoder = Encoder("decisions", IDS.id_of("decisions"))
        with self.database.transaction() as transaction:
            self.index.add_decisions(transaction, [Stored(each, encoder.encode(each)) for each in told])
            self.queue.add_decisions(transaction, told, [self.index.worth(each) for each in told])

    @contextmanager
    def _opens(self) -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
        if self.is_lost:
            raise TemporaryFailure("PostgreSQL does not answer: connection refused")
        self.silent()
        yield self.index, self.queue

    def browser(self, person: str) -> TestClient:
        return self.console.browser(self.sections, person)

    def address(self, payment_id: str) -> str:
        (row,) = self.index.search(Search(payment_id=payment_id)).rows
        return f"/decisions/{row.place.to_text()}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_each_page_says_how_old_the_newest_decision_is(world: World) -> None:
    """The console of a demonstration that had stopped sending showed decisions of nine minutes ago as if current."""
    console = world.console
    console.shell.newest_ms = world.opened.newest_ms
    browser = world.browser("demo-analyst")
    assert "newest decision" not in browser.get("/decisions").text
    now_ms = world.opened._now_ms = console.clock
    for partition, age_s in enumerate((90, 7, 400)):
        with world.database.transaction() as transaction:
            newest_ms = now_ms() - age_s * 1000
            world.index.set_source(transaction, SourcePlace("decisions", partition, 1, newest_ms=newest_ms))
    console.clock.now_ms += 2_000
    assert "newest decision 9 s ago</p>" in browser.get("/review").text
    console.clock.now_ms += 9 * 60_000
    assert "newest decision 9 min ago: late</p>" in browser.get("/decisions").text


def test_a_list_with_cards_is_in_the_audit_log_and_one_without_is_not(world: World) -> None:
    """A program could read the cards of all decisions, page by page, and the log knew nothing of it."""

    def noted() -> list[Mapping[str, str]]:
        return [each.what for each in world.console.audit.newest(20) if each.subject == "decisions"]

    analyst = world.browser("demo-analyst")
    rows = world.index.search(Search(action="review"), count=100).rows
    assert CARD in analyst.get("/decisions?action=review").text
    times = [row.decided_time_ms for row in rows]
    shown = {"shown": str(len(rows)), "first_ms": str(min(times)), "last_ms": str(max(times))}
    assert noted() == [{"action": "review", **shown}]
    assert analyst.get("/api/v1/decisions?action=review", headers={"authorization": f"Bearer {TOKEN}"}).json()["view"][
        "rows"
    ]
    assert len(noted()) == 2
    # Nobody sees a card here.
    assert analyst.get("/decisions?payment_id=nothing").status_code == 200
    auditor = world.browser("demo-auditor")
    assert CARD not in auditor.get("/decisions?action=review").text
    assert len(noted()) == 2


PERSONAL = {"card_id": CARD, "device_id": "device-9", "ip": "10.0.0.9"}


def more(count: int) -> list[dict[str, Any]]:
    """Returns further decisions with everything that is personal."""
    return [
        {**decisions()[0], **PERSONAL, "payment_id": f"more{number}", "decision_id": f"d-more-{number}"}
        for number in range(count)
    ]


def test_personal_values_stand_in_no_address(world: World) -> None:
    world.put(more(60))
    browser = world.browser("demo-analyst")
    sent = browser.post("/decisions", data={**PERSONAL})
    addresses = [sent.headers["location"]]
    found = set[str]()
    for _ in range(3):
        page = browser.get(addresses[-1])
        assert page.status_code == 200, page.text
        # Reload, and Back to it, give the same decisions.
        again = browser.get(addresses[-1]).text
        assert re.findall("more[0-9]+", again) == re.findall("more[0-9]+", page.text)
        found |= set(re.findall("more[0-9]+", page.text))
        # The form has it still, for another search.
        assert all(f'value="{value}"' in page.text for value in PERSONAL.values())
        addresses += [unescape(one) for one in re.findall(r'href="(/decisions\?[^"]*after=[^"]+)"', page.text)]
    assert len(found) == 60
    for address in addresses:
        for value in PERSONAL.values():
            assert value not in unquote(address)
            assert b64encode(value.encode()).decode().rstrip("=")[:-1] not in address


def test_an_address_with_a_card_is_refused_and_not_passed_on(world: World) -> None:
    browser = world.browser("demo-analyst")
    answer = browser.get(f"/decisions?card_id={CARD}&action=review")
    assert answer.status_code == 400
    assert "Search with the form of the page" in answer.text
    assert CARD not in answer.text
    # The login comes back to what may stand there.
    stranger = world.console.browser(world.sections)
    to_login = stranger.get(f"/decisions?card_id={CARD}&action=review").headers["location"]
    assert CARD not in to_login
    assert unquote(to_login) == "/login?next=/decisions?action=review"
    # Fields without personal data are unchanged.
    assert "pay3" in browser.get("/decisions?action=review&score_min=0.1").text


def test_a_search_opens_for_its_own_session_alone(world: World) -> None:
    browser = world.browser("demo-analyst")
    address = browser.post("/decisions", data={"card_id": CARD}).headers["location"]
    assert CARD in browser.get(address).text
    other = world.browser("demo-lead")
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for seen, where in ((other, address), (browser, address[:-2] + "zz"), (browser, "/decisions?search=7")):
        answer = seen.get(where)
        assert answer.status_code == 400, where
        assert "This search has ended" in answer.text
    assert browser.get(f"/api/v1{address}", headers=bearer).status_code == 400
    # A program goes on by the address that its own search gave.
    world.put(more(60))
    page = browser.post("/api/v1/decisions", json={"card_id": CARD}, headers=bearer).json()["view"]
    assert CARD not in page["next_path"]
    assert len(browser.get(f"/api/v1{page['next_path']}", headers=bearer).json()["view"]["rows"]) == 25


def test_the_longest_names_in_any_script_can_be_searched_for(world: World) -> None:
    names = dict.fromkeys(PERSONAL, "💳" * 200)
    page = searched(world.browser("demo-analyst"), **names)
    assert page.status_code == 200, page.text
    assert page.text.count(names["ip"]) == 3


def test_an_auditor_sees_no_card_and_cannot_ask_for_one(world: World) -> None:
    browser = world.browser("demo-auditor")
    for address in ("/decisions", world.address("pay3"), "/review"):
        page = browser.get(address)
        assert page.status_code == 200, page.text
        assert CARD not in page.text
    assert searched(browser, card_id=CARD).status_code == 403
    assert browser.post("/review/claim", data={}).status_code == 403


def test_a_review_is_claimed_once_and_its_verdict_is_kept(world: World) -> None:
    first, second = world.browser("demo-analyst"), world.browser("demo-lead")
    assert first.post("/review/claim", data={}).headers["location"].startswith("/review/mine")
    mine = first.get("/review/mine")
    assert "pay3" in mine.text
    second.post("/review/claim", data={})
    assert "pay4" in second.get("/review/mine").text
    claim = mine.text.split('name="claim" value="')[1].split('"')[0]
    form = {"claim": claim, "verdict": "fraud", "reason": "cardholder_denied", "note": "called"}
    stolen = second.post("/review/decide", data=form | {})
    assert stolen.status_code == 409
    assert first.post("/review/decide", data=form | {"reason": "because"}).status_code == 400
    assert first.post("/review/decide", data=form).status_code == 303
    assert first.post("/review/decide", data=form).status_code == 303
    assert [(said.verdict, said.note) for said in world.queue.verdicts_of("d-review")] == [("fraud", "called")]
    assert first.get("/review/mine").status_code == 404
    assert "1 verdict is kept here, and not yet on the topic" in first.get("/review").text


def test_a_database_that_says_nothing_is_asked_by_one_for_all(world: World) -> None:
    """Each page waited for the time-out, and soon no thread was left for any."""
    asked = list[str]()

    def silent() -> None:
        asked.append(threading.current_thread().name)
        raise IndexSilent("PostgreSQL does not answer: it said nothing for 7 s")

    world.silent = silent
    browser = world.browser("demo-analyst")
    for address in ("/decisions", "/review", "/decisions", world.address("pay1")):
        page = browser.get(address)
        assert page.status_code == 503
        assert "it said nothing for 7 s" in page.text
    assert len(asked) == 1
    stop = threading.Event()
    asker = threading.Thread(target=world.opened.ask, args=(stop,), name="asker")
    asker.start()
    wait_until(lambda: "asker" in asked, "the thread asks")
    world.silent = lambda: None
    wait_until(lambda: not world.opened.missing(), "it is whole again without anybody's page")
    assert browser.get("/decisions").status_code == 200
    assert set(asked[1:]) == {"asker"}
    stop.set()
    asker.join()


def test_an_index_whose_folder_cannot_be_made_takes_no_other_page_with_it(tmp_path: Path) -> None:
    """Every page was an Internal Server Error, since each counts what waits for a review."""
    (tmp_path / "file").touch()
    opened = OpenedIndex(
        lambda: nullcontext((DecisionIndex(DuckDbDatabase(tmp_path / "file/deep/index.duckdb")), None)),  # type: ignore[arg-type]
        None,
        now_ms=lambda: NOW_MS,
    )
    console = console_under_test(tmp_path)
    shown = Shown("refused.html", {"message": "", "back": ("/", "")}, "Other")
    other = Section("other", "Other", "/other", (Page("/other", lambda _: shown),))
    browser = console.browser([Review(opened, CostSettings()).section(), other], "demo-analyst")
    assert browser.get("/other").status_code == 200
    page = browser.get("/review")
    assert page.status_code == 503
    assert "index.duckdb cannot be opened: Not a directory" in page.text
    assert opened.missing()
    console.database.close()


def odd_decisions(vector: bytes) -> dict[str, dict[str, Any]]:
    """Returns by name what a decision may hold other than the usual `vector`: all of it can be on the topic."""
    vectors = {
        "no vector": b"",
        "a torn vector": vector[:-1],
        "a vector without its last feature": vector[:-4],
        "a vector of twice as many features": vector + vector,
        **{
            f"a vector of {value}": np.full(len(vector) // 4, value, dtype="<f4").tobytes()
            for value in (0.0, math.nan, math.inf, -math.inf, 3e38)
        },
    }
    absent = {"bundle_digest": "", "score": 0.0, "flags": ["model_absent"], "action": "review"}
    return {
        **{name: {"vector": content} for name, content in vectors.items()},
        **{f"no model, and {name}": {**absent, "vector": content} for name, content in vectors.items()},
        "no model, and no flag that says so": {"bundle_digest": "", "flags": []},
        "an unknown model": {"bundle_digest": "ab" * 32, "model_version": "m-gone"},
        "a policy that is gone": {"policy_digest": "cd" * 32},
        "a record without digests": {"policy_digest": "", "bundle_digest": "", "catalogue_digest": ""},
        "another catalogue": {"catalogue_digest": "another"},
        "no reasons for a decline": {"action": "decline", "reasons": []},
        "an empty reason": {"action": "review", "reasons": [""]},
        "a rule that nobody knows": {"action": "review", "reasons": ["rule:<b>gone</b>"]},
        "an explored payment": {"reasons": ["explored", "score_at_or_above_decline_threshold"], "propensity": 0.01},
        "a propensity that is no number": {"propensity": math.nan},
        "a cascade's first model": {"variant": "first"},
        "a shadow arm": {"rollout": "r1", "arm": "shadow", "caller": "bank/<script>"},
        "a stand-in's flags": {"flags": ["late", "fallback_model", "of tomorrow"]},
        "a currency without a rate": {"currency": "XTS"},
        "no currency": {"currency": ""},
        "a negative amount": {"amount_minor": -5},
        "a huge amount": {"amount_minor": 2**62},
        "a time before 1970": {"event_time_ms": -1},
        "a time that no calendar has": {"event_time_ms": 2**62},
        "an offset that no country has": {"utc_offset_minutes": -(2**31)},
        "profiles from the future": {"profile_age_ms": -1, "latency_us": -1},
        "empty texts": {"card_id": "", "merchant_id": "", "country": "", "channel": "", "model_version": ""},
        "no optional field": dict.fromkeys(
            ("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes", "latency_us")
        ),
    }


ODD = list(odd_decisions(b""))


@pytest.fixture(scope="module")
def odd_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A console whose policy reads features, with odd decisions. Each has a card of its own, or the card of all."""
    rule = '[[policy.rules]]\nname = "burst"\nwhen = "card_count_1h > 2"\naction = "review"\n'
    made = World(tmp_path_factory.mktemp("odd"), rule)
    digest = policy_digest(made.source.section("policy", PolicySettings), {})
    told, usual = [], decisions()[0]
    for number, (name, odd) in enumerate(odd_decisions(usual["vector"]).items()):
        for card in (f"card-of-{number}", CARD):
            ids = {"payment_id": f"{name} of {card}", "decision_id": f"odd-{number}-{card}", "card_id": card}
            told.append({**usual, "policy_digest": digest, **ids, **odd, "decided_time_ms": NOW_MS - number})
    made.put(told)
    yield made
    made.database.close()


@pytest.mark.parametrize("name", ODD)
def test_a_page_shows_any_decision_that_can_be_on_the_topic(odd_world: World, name: str) -> None:
    number = ODD.index(name)
    page = odd_world.browser("demo-analyst").get(f"/decisions/{quote(f'{name} of card-of-{number}', safe='')}")
    assert page.status_code == 200, page.text
    for markup in ("<b>", "<script>"):
        assert markup not in page.text
    # The page says what it cannot show.
    said = ("Equal to the bit", "Not equal:", "cannot be decided again here")
    assert any(words in page.text for words in said)
    # Among the others of its card, and as JSON.
    address = f"/api/v1/decisions/{quote(f'{name} of {CARD}', safe='')}"
    answer = odd_world.browser("demo-analyst").get(address, headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (IndexUnavailable("PostgreSQL does not answer: refused"), "The index of decisions"),
        (BrokerUnavailable("Kafka does not answer"), "The topic of verdicts"),
    ],
)
def test_what_keeps_verdicts_from_their_topic_is_told_by_its_name(error: TemporaryFailure, what: str) -> None:
    """Where PostgreSQL was away, pages said that the topic of verdicts could not be reached."""
    stop = threading.Event()

    class Waiting:
        def unsent(self, _: int) -> list[AnalystVerdict]:
            stop.set()
            raise error

    sender = VerdictSender(Waiting(), clients_of(FakeBroker()), IDS, now_ms=lambda: NOW_MS)  # type: ignore[arg-type]
    opened = OpenedIndex(
        lambda: nullcontext((None, None)),  # type: ignore[arg-type]
        lambda *_: (None, sender),  # type: ignore[arg-type]
        now_ms=lambda: NOW_MS,
    )
    opened.send(stop)
    assert [(one.what, one.why) for one in opened.missing()] == [(what, str(error))]


@pytest.mark.parametrize(
    ("is_index_away", "what"), [(True, "The index of decisions"), (False, "The topics of decisions")]
)
def test_what_keeps_the_index_from_its_topics_is_told_by_its_name(*, is_index_away: bool, what: str) -> None:
    class Following:
        state = FillState(trouble="gone", trouble_since_ms=NOW_MS, is_index_away=is_index_away)

        def run(self, _: threading.Event) -> None:
            pass

    class Sending:
        trouble = ""

    opened = OpenedIndex(
        lambda: nullcontext((None, None)),  # type: ignore[arg-type]
        lambda *_: (Following(), Sending()),  # type: ignore[arg-type]
        now_ms=lambda: NOW_MS,
    )
    opened.follow(threading.Event())
    assert [(one.what, one.why) for one in opened.missing()] == [(what, "gone")]


def test_the_queue_says_card_merchant_amount_and_three_reasons(world: World) -> None:
    # A record that names features has these; a score that nothing raised may have none.
    named = ["feature:card_count_1h=7 (+0.83)", "rule:large", "feature:card_new_country=1 (+0.20)"]
    world.put(
        [
            {
                **decisions()[5],
                "payment_id": "named",
                "decision_id": "d-named",
                "action": "review",
                "score": 0.5,
                "reasons": named,
            }
        ]
    )
    page = unescape(world.browser("demo-analyst").get("/review").text)
    rows = page.split("<tbody data-rows>")[1].split("</tbody>")[0].split("</tr>")[:-1]
    assert len(rows) == 3
    for row in rows:
        assert CARD in row
        assert "100.00 EUR" in row
        assert len(re.findall("<li>", row)) <= 3
    (row,) = (row for row in rows if ">named<" in row)
    reasons = re.findall("<li>(.*?)</li>", row)
    assert re.fullmatch(r"[0-9]+ payments? of this card in the last hour; usually [0-9]+", reasons[0])
    assert "ountry is not among the latest 8 different values of this card; so in " in reasons[1]
    assert reasons[2] == "Rule: large"
    assert "Next is <a" in page
    assert "It has waited 5 h and counts 1.21 times. No payment that is free has more." in page
    # Cards were shown: the audit log knows.
    (seen,) = (one for one in world.console.audit.newest(5) if one.subject == "reviews")
    assert seen.what["shown"] == "3"
    # The payment's page says the same.
    shown = unescape(world.browser("demo-analyst").get(world.address("named")).text)
    assert all(f"<li>{one}</li>" in shown for one in reasons)


def test_the_picture_of_links_is_bounded_safe_and_the_same_each_time(world: World) -> None:
    base = decisions()[0]
    made = [
        {
            **base,
            "payment_id": f"link{number}",
            "decision_id": f"d-link-{number}",
            "card_id": f"card-{number}" if number else "<b>&card",
            "device_id": "device-of-many" if number < 40 else f"device-{number}",
            "merchant_id": f"shop-{number}",
            "decided_time_ms": NOW_MS - number * 1000,
        }
        for number in range(90)
    ]
    world.put(made)
    with world.database.transaction() as transaction:
        fraud = {"payment_id": "link3", "outcome_time_ms": NOW_MS, "label": "fraud", "source": "chargeback"}
        world.index.add_outcomes(transaction, [fraud])
    (row,) = world.index.search(Search(payment_id="link0")).rows
    near = [one for entity in world.index.shared_with_frauds(row) for one in entity.newest]
    links = links_of(world.index, row, near, lambda text: text)
    assert links == links_of(world.index, row, near, lambda text: text)
    assert len(links.entities) <= NODES_MAX
    assert {one.value for one in links.entities if one.hop == 0} == {"<b>&card", "device-of-many", "shop-0"}
    assert [one.value for one in links.entities if one.frauds] == ["device-of-many", "card-3", "shop-3"]
    address = f"{world.address('link0')}/linked"
    assert f'data-part="{address}"' in world.browser("demo-analyst").get(world.address("link0")).text
    page = world.browser("demo-analyst").get(address).text
    assert "<b>&" not in page
    assert "card-3 ✕ 1 fraud" in page
    # A person who may not see cards sees none in the picture.
    hidden = world.browser("demo-auditor").get(address).text
    assert "card-3" not in hidden
    assert "device-of-many" not in hidden
    assert "shop-3 ✕ 1 fraud" in hidden
