"""A form that is sent twice acts once: without JavaScript nothing else stops a second click."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paywarden.ops.console.idempotency.sent_forms import SentForms, digest_of
from paywarden.ops.console.pages import Answer, Done, Field, Page, PageRefused, Section, Visit
from tests.patience import PATIENCE_S
from tests.services.product.console import NOW_MS, ConsoleUnderTest, console_under_test, csrf_of

DAY_MS = 86_400_000


class Acts:
    """A section whose page notes each word, and refuses some."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.refused: set[str] = set()

    def act(self, visit: Visit) -> Answer:
        word = visit.text("word")
        if word in self.refused:
            raise PageRefused(409, "Not now.")
        self.words.append(word)
        return Done(f"/things/{len(self.words)}", f"noted: {word}")

    def section(self) -> Section:
        fields = (Field("word", "A word"), Field("passphrase", "A secret"))
        return Section("things", "Things", "/things", (Page("/things/act", self.act, method="POST", fields=fields),))


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleUnderTest]:
    made = console_under_test(tmp_path)
    yield made
    made.database.close()


def post(browser: TestClient, **fields: str) -> tuple[int, str]:
    answer = browser.post("/things/act", data={"csrf": csrf_of(browser.get("/nowhere").text), **fields})
    return answer.status_code, answer.headers.get("location", "")


def test_a_form_that_is_sent_twice_acts_once_and_leads_to_the_same_place(console: ConsoleUnderTest) -> None:
    acts = Acts()
    browser = console.browser([acts.section()], "demo-analyst")
    first = post(browser, word="a", once="k1")
    assert post(browser, word="a", once="k1") == first == (303, "/things/1")
    assert "The form was sent twice, and counts once. noted: a" in browser.get("/nowhere").text
    # Another form of the same words, the same form filled in again, and a form without a token.
    for number, fields in enumerate(({"once": "k2"}, {"once": "k1", "word": "b"}, {}, {}), 2):
        assert post(browser, **{"word": "a", **fields}) == (303, f"/things/{number}")
    assert acts.words == ["a", "a", "b", "a", "a"]


def test_the_token_of_one_person_does_not_answer_another(console: ConsoleUnderTest) -> None:
    acts = Acts()
    for person in ("demo-analyst", "demo-lead"):
        post(console.browser([acts.section()], person), word="a", once="k1")
    assert acts.words == ["a", "a"]


def test_a_sending_waits_for_the_same_one_that_is_under_way(console: ConsoleUnderTest) -> None:
    """A double click sends the second form while the first one still waits for Kafka."""
    forms, acts, begun, goes_on = SentForms(console.database, DAY_MS), list[int](), threading.Event(), threading.Event()

    def act() -> Answer:
        acts.append(1)
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        return Done("/things/1", "done")

    answers = list[Answer]()
    threads = [threading.Thread(target=lambda: answers.append(forms.answer("d", act, NOW_MS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    goes_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert acts == [1]
    assert {getattr(answer, "location", "") for answer in answers} == {"/things/1"}
    assert len(answers) == 3


def test_a_restarted_console_knows_what_a_form_has_done_for_a_session(console: ConsoleUnderTest) -> None:
    acts = Acts()

    def act() -> Answer:
        acts.words.append("a")
        return Done("/things/1", "done")

    SentForms(console.database, DAY_MS).answer("d", act, NOW_MS)
    SentForms(console.database, DAY_MS).answer("d", act, NOW_MS + 1)
    assert acts.words == ["a"]
    SentForms(console.database, DAY_MS).answer("e", act, NOW_MS + DAY_MS + 1)
    assert [row["digest"] for row in console.database.read("SELECT digest FROM sent_forms")] == ["e"]


def test_the_digest_says_where_one_field_ends_and_knows_no_passphrase() -> None:
    def digest(*pairs: tuple[str, str]) -> str:
        return digest_of("s", "/p", pairs, {})

    assert digest(("a", "bc")) != digest(("ab", "c"))
    assert digest(("a", "1"), ("b", "2")) == digest(("b", "2"), ("a", "1"))
    assert digest(("a", "1"), ("passphrase", "x")) == digest(("a", "1"), ("passphrase", "y"))
    assert digest_of("s", "/p", (), {}) != digest_of("t", "/p", (), {})
