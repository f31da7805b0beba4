"""An act of the API that is sent twice with one Idempotency-Key acts once: on any console, after any restart."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from paywarden.ops.console.assembly import ConsoleParts, all_tables, sections
from paywarden.ops.console.idempotency.keyed_acts import ANSWERED, BEGAN, FREED, KEPT_MS, Body, KeyedActs, keyed
from paywarden.ops.console.inbox.reader import AlertReader
from paywarden.ops.console.inbox.store import AlertStore
from paywarden.ops.console.pages import Answer, Done, Field, Page, PageRefused, Section, Visit
from paywarden.ops.console.people.people import Person, Role, token_digest
from paywarden.ops.console.shell import API
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.events import ConsoleEvent
from tests.patience import PATIENCE_S
from tests.services.product.console import NOW_MS, ConsoleUnderTest, console_under_test
from tests.services.product.processes import wait_until
from tests.unit.ops.console.test_shell import BEARER
from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record

KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


@dataclass
class Host:
    """A console that reads and writes the topics that it shares with others."""

    console: ConsoleUnderTest
    store: AlertStore
    reader: AlertReader

    def program(self, pages: Sequence[Section]) -> TestClient:
        return self.console.browser(pages)


@contextmanager
def host(folder: Path, topics: TopicsInMemory) -> Iterator[Host]:
    folder.mkdir(exist_ok=True)
    console = console_under_test(folder, requests_per_minute=1_000_000)
    with console.database.write() as connection:
        for table in all_tables():
            connection.execute(table)
    feed, stop, store = TopicsInMemory(), threading.Event(), AlertStore(console.database)
    feed.topics = topics.topics
    reader = AlertReader(store, lambda: feed, lambda: topics)
    console.shell.keyed_acts = KeyedActs(store, reader)
    thread = threading.Thread(target=reader.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: not reader.missing(), "the console has read the topics")
        yield Host(console, store, reader)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        console.database.close()


@dataclass
class Acts:
    """Handlers that note what they did, and answer with the number of it."""

    done: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    error: Exception | None = None

    def page(self, page: Page) -> Page:
        def act(visit: Visit) -> Answer:
            if self.error is not None:
                raise self.error
            self.done.append((page.path, {**visit.path, **visit.values}))
            return Done("/", f"act {len(self.done)}", {"number": len(self.done)})

        return replace(page, handler=act)

    def section(self) -> Section:
        page = Page("/things/act", lambda _: Done("/", ""), method="POST", fields=(Field("word", "A word"),))
        return Section("things", "Things", "/things", (self.page(page),))


def send(program: TestClient, key: str = KEY, path: str = "/things/act", **fields: object) -> tuple[int, Any]:
    answer = program.post(API + path, json=fields or {"word": "a"}, headers={**BEARER, "idempotency-key": key})
    return answer.status_code, answer.json()


def _refused_so(program: TestClient, key: str, words: str) -> Callable[[], bool]:
    """Returns whether a request is refused with these words, as a condition to wait for."""

    def is_so() -> bool:
        status, answer = send(program, key)
        return status == 409 and words in answer["error"]

    return is_so


@dataclass
class Two:
    """Two consoles over the same topics."""

    topics: TopicsInMemory
    hosts: tuple[Host, Host]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder, topics = tmp_path_factory.mktemp("two"), TopicsInMemory()
    topics.put(*(alert_record(number) for number in range(3)))
    with host(folder / "one", topics) as one, host(folder / "other", topics) as other:
        yield Two(topics, (one, other))


@pytest.fixture(scope="module")
def acting_pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, ...]:
    """Every page that acts, as the console declares it: one that is added later is tried, too."""
    folder = tmp_path_factory.mktemp("pages")
    console = console_under_test(folder)
    with console.database.write() as connection:
        for table in all_tables():
            connection.execute(table)
    settings = {
        "kafka": {"bootstrap": "127.0.0.1:1"},
        "decision_index": {"path": str(folder / "decisions.duckdb")},
    }
    made = tuple(sections(ConsoleParts(Source(settings, {}), console.shell, console.database, console.audit)))
    assert console.shell.keyed_acts is not None
    for section in made:
        section.close()
    console.database.close()
    return tuple(page for section in made for page in section.pages if page.method == "POST")


def some_value(data: st.DataObject, one: Field) -> str:
    if one.choices:
        return data.draw(st.sampled_from(one.choices))
    if one.kind in ("whole", "number"):
        return str(int(one.low or 0))
    return data.draw(st.text("abcxyz", min_size=1, max_size=8))


@settings(
    deadline=None,
    max_examples=3,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_endpoint_that_acts_does_so_once_for_a_key(
    two: Two, acting_pages: tuple[Page, ...], data: st.DataObject
) -> None:
    acts = Acts()
    things = Section("things", "Things", "/things", tuple(acts.page(page) for page in acting_pages))
    programs = [host.program([things]) for host in two.hosts]
    for page in acting_pages:
        acts.done.clear()
        _check_once(acts, page, programs, data)


def _check_once(acts: Acts, page: Page, programs: Sequence[TestClient], data: st.DataObject) -> None:
    key = secrets.token_hex(16)
    path = page.path.replace("{", "").replace("}", "")
    texts = [one for one in page.fields if one.kind != "file"]
    fields = {one.name: some_value(data, one) for one in texts}
    files = {one.name: ("a.txt", b"content") for one in page.fields if one.kind == "file"}

    def sent(program: TestClient, **changed: str) -> tuple[int, Any, str]:
        headers = {**BEARER, "idempotency-key": key}
        values: dict[str, Any] = {**fields, **changed}
        body: dict[str, Any] = {"data": values, "files": files} if files else {"json": values}
        answer = program.post(API + path, headers=headers, **body)
        return answer.status_code, answer.json(), answer.headers.get("idempotency-replayed", "")

    order = data.draw(st.lists(st.sampled_from(programs), min_size=2, max_size=4))
    (status, first, replayed), *others = [sent(program) for program in order]
    assert (status, first["view"], replayed) == (200, {"number": 1}, "")
    assert all(other == (200, first, "true") for other in others)
    for one in texts:
        if not one.choices and one.kind not in ("whole", "number") and one.name != "passphrase":
            assert sent(order[-1], **{one.name: "another"})[0] == 422, one.name
    assert [path for path, _ in acts.done] == [page.path]


def test_a_restarted_console_and_one_with_an_empty_database_know_the_answer(tmp_path: Path) -> None:
    acts, topics = Acts(), TopicsInMemory()
    with host(tmp_path / "a", topics) as first:
        answer = send(first.program([acts.section()]))
    for folder in ("a", "b"):
        with host(tmp_path / folder, topics) as again:
            assert send(again.program([acts.section()])) == answer
    assert len(acts.done) == 1


def test_a_key_that_is_in_progress_is_refused_on_both_consoles(two: Two) -> None:
    begun, goes_on, acts = threading.Event(), threading.Event(), list[int]()

    def act(_: Visit) -> Answer:
        acts.append(1)
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        return Done("/", "done")

    word = (Field("word", "A word"),)
    section = Section("things", "Things", "/things", (Page("/things/act", act, method="POST", fields=word),))
    programs = [host.program([section]) for host in two.hosts]
    key, answers = "in-progress-0123456789", list[tuple[int, Any]]()
    thread = threading.Thread(target=lambda: answers.append(send(programs[0], key)))
    thread.start()
    assert begun.wait(PATIENCE_S)
    for program in programs:
        wait_until(_refused_so(program, key, "still being worked on"), "the key is in progress")
    goes_on.set()
    thread.join(PATIENCE_S)
    assert (answers[0][0], acts) == (200, [1])


def test_one_of_two_consoles_acts_when_both_get_a_request_at_once(two: Two) -> None:
    """Both see a free key and write that they begin: the topic says who is first."""
    acts = Acts()
    programs = [host.program([acts.section()]) for host in two.hosts for _ in range(2)]
    for number in range(20):
        key, together, answers = f"race-{number:03d}-0123456789", threading.Barrier(len(programs)), list[int]()

        def race(program: TestClient, key: str = key, together: Any = together, answers: Any = answers) -> None:
            together.wait(PATIENCE_S)
            answers.append(send(program, key)[0])

        threads = [threading.Thread(target=race, args=(program,)) for program in programs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(acts.done) == number + 1
        assert set(answers) <= {200, 409}
        assert 200 in answers


def test_a_key_counts_for_one_person(two: Two) -> None:
    acts = Acts()
    (first, _), key = two.hosts, "one-person-0123456789"
    people = first.console.shell.people
    first.console.shell.people = replace(
        people, tokens={**people.tokens, token_digest("pwc_other"): Person("other", frozenset(Role))}
    )
    program = first.program([acts.section()])
    assert send(program, key)[1]["view"] == {"number": 1}
    headers = {"authorization": "Bearer pwc_other", "idempotency-key": key}
    assert program.post(f"{API}/things/act", json={"word": "a"}, headers=headers).json()["view"] == {"number": 2}


def test_a_refusal_frees_the_key_and_an_unknown_end_keeps_it(two: Two) -> None:
    acts = Acts(error=PageRefused(409, "Not now."))
    programs = [host.program([acts.section()]) for host in two.hosts]
    assert send(programs[0], "refused-0123456789")[0] == 409
    acts.error = None
    assert send(programs[0], "refused-0123456789")[1]["view"] == {"number": 1}
    for number, error in enumerate((TemporaryFailure("the broker did not answer"), KeyError("a bug"))):
        acts.error, key = error, f"unknown-{number}-0123456789"
        assert send(programs[0], key)[0] in (500, 503)
        acts.error = None
        for program in programs:
            wait_until(_refused_so(program, key, "nobody can say"), "it is known")
    assert len(acts.done) == 1


def test_while_kafka_is_away_nothing_is_done_with_a_key_and_the_key_stays_free(tmp_path: Path) -> None:
    acts, topics = Acts(), TopicsInMemory()
    with host(tmp_path / "a", topics) as one:
        program = one.program([acts.section()])
        topics.is_away = True
        status, answer = send(program)
        assert (status, acts.done) == (503, [])
        assert "Nothing was done" in answer["error"]
        topics.is_away = False
        assert send(program)[0] == 200


def test_a_killed_console_leaves_a_key_that_never_acts_again(two: Two) -> None:
    first, sent = two.hosts[0], keyed("program", "killed-0123456789", "r")
    acts = first.console.shell.keyed_acts
    assert acts is not None
    two.topics.write(ConsoleEvent(sent.subject, BEGAN, "program", NOW_MS, {"request": "r"}))
    wait_until(lambda: bool(first.store.events(sent.subject)), "it is read")

    def act() -> Body:
        raise AssertionError("it acts a second time")

    for now_ms, words in ((NOW_MS + 1, "still being worked on"), (NOW_MS + 3_600_000, "nobody can say")):
        with pytest.raises(PageRefused, match=words) as refused:
            acts.answer(sent, "program", act, now_ms)
        assert refused.value.status == 409
    body = acts.answer(sent, "program", lambda: Body(200, {"message": "anew"}), NOW_MS + KEPT_MS)
    assert not body.is_replayed


def test_events_that_change_places_or_are_made_up_free_no_key(two: Two) -> None:
    first, sent = two.hosts[0], keyed("program", "places-0123456789", "r")
    acts = first.console.shell.keyed_acts
    assert acts is not None
    late = ConsoleEvent(sent.subject, BEGAN, "program", NOW_MS, {"request": "other"})
    two.topics.write(ConsoleEvent(sent.subject, FREED, "program", NOW_MS, {"of": late.event_id}))
    two.topics.write(late)
    wait_until(lambda: len(list(first.store.events(sent.subject))) == 2, "they are read")
    assert acts.answer(sent, "program", lambda: Body(200, {}), NOW_MS).status == 200
    held = next(one for one in first.store.events(sent.subject) if one.kind == BEGAN and one != late)
    for kind, what in (
        (FREED, {"of": "x"}),
        ("made_up", {}),
        (ANSWERED, {"of": held.event_id, "answer": "bm90aGluZw=="}),
    ):
        two.topics.write(ConsoleEvent(sent.subject, kind, "eve", NOW_MS, what))
    wait_until(lambda: any(one.kind == "made_up" for one in first.store.events(sent.subject)), "they are read")
    wait_until(lambda: len(list(first.store.events(sent.subject))) == 7, "they are read")
    with pytest.raises(PageRefused, match="nobody can say"):
        acts.answer(sent, "program", lambda: Body(200, {}), NOW_MS + 1)


def test_keys_that_are_none_are_refused(two: Two) -> None:
    acts = Acts()
    program = two.hosts[0].program([acts.section()])
    for key in ("short", "x" * 201, '"', "with space 0123456789", '""'):
        assert send(program, key)[0] == 400, key
    headers = [*BEARER.items(), ("idempotency-key", KEY), ("idempotency-key", KEY)]
    assert program.post(f"{API}/things/act", json={}, headers=headers).status_code == 400
    assert not acts.done
