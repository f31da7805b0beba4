"""A request that is sent twice acts once: a form by its token, a program's by its key."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from paywarden.ops.console.database import DatabaseUnavailable
from paywarden.ops.console.idempotency import KEPT_MS, Idempotency, Sending, digest_of, key_of
from paywarden.ops.console.page_rows import Answer, Done, Field, NothingDone, Page, PageRefused, Section, Visit
from paywarden.ops.console.people import EVERYBODY
from paywarden.ops.console.shell import API
from paywarden.schemas.errors import TemporaryFailure
from tests.patience import PATIENCE_S
from tests.services.product.console import NOW_MS, ConsoleUnderTest, console_under_test
from tests.unit.ops.console.test_shell import BEARER

KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


class Acts:
    """A section whose page notes each word, and raises what a test wants."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.raises: list[Exception] = []

    def act(self, visit: Visit) -> Answer:
        if self.raises:
            raise self.raises.pop()
        self.words.append(visit.text("word"))
        return Done(f"/things/{len(self.words)}", f"noted: {visit.text('word')}", {"number": len(self.words)})

    def section(self) -> Section:
        fields = (Field("word", "A word"), Field("passphrase", "A secret"))
        return Section("things", "Things", "/things", (Page("/things/act", self.act, "", "POST", EVERYBODY, fields),))


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleUnderTest]:
    made = console_under_test(tmp_path)
    yield made
    made.database.close()


def post(browser: TestClient, **fields: str) -> tuple[int, str]:
    answer = browser.post("/things/act", data=fields)
    return answer.status_code, answer.headers.get("location", "")


def call(program: TestClient, key: str = KEY, **fields: str) -> tuple[int, Any, bool]:
    """Returns status, content, and whether it is an earlier answer."""
    answer = program.post(f"{API}/things/act", json=fields, headers={**BEARER, "idempotency-key": key})
    return answer.status_code, answer.json(), answer.headers.get("idempotency-replayed") == "true"


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


def test_a_program_gets_the_first_answer_again_and_acts_once(console: ConsoleUnderTest) -> None:
    acts = Acts()
    program = console.browser([acts.section()])
    status, content, is_replayed = call(program, word="a")
    assert (status, content["view"], is_replayed) == (200, {"number": 1}, False)
    assert call(program, word="a") == (200, content, True)
    assert call(program, f'"{KEY}"', word="a") == (200, content, True)
    assert call(program, word="b")[0] == 422
    assert call(program, "another-key-of-16", word="a")[1]["view"] == {"number": 2}
    console.clock.now_ms += KEPT_MS
    assert call(program, word="b")[1]["view"] == {"number": 3}
    assert acts.words == ["a", "a", "b"]


@pytest.mark.parametrize("keys", [["short"], ["x" * 201], ["with a space in it"], ["ü" * 20], [KEY, KEY]])
def test_a_key_that_is_none_is_refused(keys: list[str]) -> None:
    with pytest.raises(PageRefused, match="16 to 200 characters"):
        key_of(keys)


def test_a_refusal_frees_the_key_and_an_unknown_end_takes_it(console: ConsoleUnderTest) -> None:
    acts = Acts()
    program = console.browser([acts.section()])
    for refusal, status in ((PageRefused(409, "Not now."), 409), (NothingDone("Kafka is away"), 503)):
        acts.raises.append(refusal)
        assert call(program, word="a")[0] == status
    assert call(program, word="a")[0] == 200
    for number, error in enumerate((TemporaryFailure("nobody can say"), KeyError("a bug"))):
        acts.raises.append(error)
        key = f"{KEY}{number}"
        assert call(program, key, word="a")[0] in (500, 503)
        status, content, _ = call(program, key, word="a")
        assert (status, "Nobody can say whether" in content["error"]) == (409, True)
    assert acts.words == ["a"]


def test_a_sending_waits_for_the_same_one_that_is_under_way(console: ConsoleUnderTest) -> None:
    """A double click sends the second form while the first one still waits for Kafka."""
    requests, acts = Idempotency(console.database), list[int]()
    begun, goes_on = threading.Event(), threading.Event()

    def act() -> Answer:
        acts.append(1)
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        return Done("/things/1", "done")

    answers = list[tuple[Answer, bool]]()
    work = lambda: answers.append(requests.answer(Sending("k", "r"), act, NOW_MS))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    goes_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert acts == [1]
    assert sorted(is_repeated for _, is_repeated in answers) == [False, True, True]
    assert {answer for answer, _ in answers} == {Done("/things/1", "done")}


def _never() -> Answer:
    raise AssertionError


def test_a_restarted_console_knows_what_was_done_and_what_was_begun(console: ConsoleUnderTest) -> None:
    done, begun = Sending("done", "r"), Sending("begun", "r")
    Idempotency(console.database).answer(done, lambda: Done("/things/1", "done"), NOW_MS)
    # As a console that was killed in the middle of the act leaves it.
    with console.database.write() as connection:
        connection.execute("INSERT INTO requests VALUES ('begun', 'r', ?, NULL)", (NOW_MS,))
    again = Idempotency(console.database)
    assert again.answer(done, _never, NOW_MS + 1) == (Done("/things/1", "done"), True)
    with pytest.raises(PageRefused, match="Nobody can say"):
        again.answer(begun, _never, NOW_MS + 1)
    assert again.answer(begun, lambda: Done("/", "x"), NOW_MS + KEPT_MS) == (Done("/", "x"), False)
    assert [row["key"] for row in console.database.read("SELECT key FROM requests")] == ["begun"]


def test_an_answer_that_cannot_be_kept_is_given_and_acts_no_second_time(
    console: ConsoleUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, write = Idempotency(console.database), console.database.write

    def away(*_: object) -> Any:
        raise DatabaseUnavailable("the disk is full")

    def act() -> Answer:
        monkeypatch.setattr(console.database, "write", away)
        return Done("/", "done")

    assert requests.answer(Sending("k", "r"), act, NOW_MS) == (Done("/", "done"), False)
    with pytest.raises(DatabaseUnavailable):
        requests.answer(Sending("other", "r"), _never, NOW_MS)
    monkeypatch.setattr(console.database, "write", write)
    with pytest.raises(PageRefused, match="Nobody can say"):
        requests.answer(Sending("k", "r"), _never, NOW_MS)


def test_the_digest_says_where_one_field_ends_and_knows_no_passphrase() -> None:
    def digest(*pairs: tuple[str, str]) -> str:
        return digest_of("/p", pairs=pairs)

    assert digest(("a", "bc")) != digest(("ab", "c"))
    assert digest(("a", "1"), ("b", "2")) == digest(("b", "2"), ("a", "1"))
    assert digest(("a", "1"), ("passphrase", "x")) == digest(("a", "1"), ("passphrase", "y"))
    assert digest_of("s", "/p") != digest_of("t", "/p") != digest_of("t/p")


def test_no_secret_is_kept(console: ConsoleUnderTest) -> None:
    acts = Acts()
    program = console.browser([acts.section()])
    call(program, word="a", passphrase="the secret of all")
    kept: Callable[[str], str] = lambda table: json.dumps([tuple(row) for row in console.database.read(table)])  # noqa: E731
    assert "secret" not in kept("SELECT * FROM requests")
    assert KEY not in kept("SELECT * FROM requests")
