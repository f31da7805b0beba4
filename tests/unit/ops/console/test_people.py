"""People, passwords, tokens and logins."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from paywarden.ops.console import login as pages
from paywarden.ops.console.background import running
from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.ops.console.database import ConsoleDatabase, DatabaseUnavailable
from paywarden.ops.console.limits import LoginLimit
from paywarden.ops.console.page_rows import Section
from paywarden.ops.console.people import People, PeopleFile, Person, Role, hashed_password, new_token, token_digest
from paywarden.ops.console.sessions import TABLES
from paywarden.schemas.errors import Misconfigured
from tests.patience import PATIENCE_S
from tests.services.product.console import console_under_test
from tests.services.product.processes import wait_until

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def people_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    token = new_token()
    path = tmp_path_factory.mktemp("people") / "people.toml"
    path.write_text(
        f'[[person]]\nname = "anna"\nroles = ["analyst"]\npassword = "{hashed_password(PASSWORD)}"\n'
        f'[[person]]\nname = "ben"\nroles = ["analyst"]\npassword = "{hashed_password(PASSWORD)}"\n'
        f'[[token]]\nname = "siem"\nroles = ["auditor"]\nsha256 = "{token_digest(token)}"\n'
    )
    path.chmod(0o600)
    return path, token


def test_a_person_is_known_by_password_and_a_program_by_token(people_file: tuple[Path, str]) -> None:
    path, token = people_file
    people = People.read(path)
    anna = people.with_password("anna", PASSWORD)
    assert anna == Person("anna", frozenset({Role.ANALYST}))
    assert people.with_password("anna", PASSWORD + "!") is None
    assert people.with_password("nobody", PASSWORD) is None
    program = people.with_token(token)
    assert program is not None
    assert program.name == "siem"
    assert people.with_token(new_token()) is None
    assert PASSWORD not in path.read_text()
    assert token not in path.read_text()
    assert "argon2" not in repr(people)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "wanted at least one"),
        ("nonsense", "is not TOML"),
        ("[other]", "wanted tables"),
        ('[[person]]\nname = "a"', "person 1"),
        ('[[person]]\nname = "a b"\nroles = ["analyst"]\npassword = "x"', "name: wanted letters"),
        ('[[person]]\nname = "a"\nroles = ["king"]\npassword = "x"', "roles: wanted a list"),
        (
            '[[person]]\nname = "a"\nroles = ["lead"]\npassword = "$argon2id$v=19$m=8,t=1,p=1$aa$aa"',
            "password: wanted a line",
        ),
        ('[[token]]\nname = "a"\nroles = ["lead"]\nsha256 = "00"', "sha256: wanted 64"),
    ],
)
def test_a_wrong_file_of_people_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "people.toml"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(Misconfigured, match=words):
        People.read(path)


def test_demo_people_are_for_a_loopback_address_only() -> None:
    with pytest.raises(Misconfigured, match="loopback"):
        ConsoleSettings(host="0.0.0.0", url="https://console.example")
    with pytest.raises(Misconfigured, match="https"):
        ConsoleSettings(host="0.0.0.0", url="http://console.example", people="people.toml")
    assert not ConsoleSettings(host="0.0.0.0", url="https://console.example", people="people.toml").is_demo


@pytest.mark.parametrize("proxy", ["*", "", "0.0.0.0/0", "::/0", "proxy.example", "10.0.0.9/8"])
def test_nobody_but_named_proxies_may_say_who_the_client_is(proxy: str) -> None:
    with pytest.raises(Misconfigured, match="proxies: wanted addresses of reverse proxies such as"):
        ConsoleSettings(proxies=(proxy,))
    assert ConsoleSettings(proxies=("10.0.0.9", "2001:db8::/120")).proxies


def test_a_login_makes_a_new_session_and_ends_the_old_one(tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    browser = console.browser(person="demo-analyst")
    first = browser.cookies[console.shell.cookie]
    console.log_in(browser, "demo-lead")
    second = browser.cookies[console.shell.cookie]
    assert first != second
    assert console.shell.sessions.of_cookie(first, console.clock()) is None
    set_cookie = browser.post("/login", data={"name": "demo-lead"})
    assert "HttpOnly" in set_cookie.headers["set-cookie"]
    assert "SameSite=lax" in set_cookie.headers["set-cookie"]
    console.database.close()


def test_wrong_passwords_lock_no_other_person_out(
    people_file: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten wrong passwords locked a whole address out: behind a NAT or a proxy everybody has one."""
    console = console_under_test(tmp_path, failed_logins_max=1)
    console.shell.people = People.read(people_file[0])
    # A slow machine gets no further try while the test runs.
    monkeypatch.setattr(pages, "time", SimpleNamespace(monotonic=lambda: 1.0, sleep=lambda _: None))
    tried = list[str]()
    usual = People.with_password

    def counted(people: People, name: str, password: str) -> Person | None:
        tried.append(name)
        return usual(people, name, password)

    monkeypatch.setattr(People, "with_password", counted)
    browser = console.browser()

    def log_in(name: str, password: str = "wrong") -> int:
        return browser.post("/login", data={"name": name, "password": password}).status_code

    # A flood of names that nobody has costs no more CPU than this, and no line of the audit log.
    assert {log_in(f"x{number}") for number in range(15)} == {403}
    assert len(tried) == 10
    assert len([entry for entry in console.audit.newest(100) if entry.act == "login_failed"]) == 10
    assert [log_in("x1") for _ in range(2)] == [429, 429]
    # A wrong password locks this name at this address, and no other name.
    assert [log_in("anna") for _ in range(2)] == [403, 429]
    assert log_in("ben", PASSWORD) == 303
    console.database.close()


def test_guesses_from_many_addresses_are_limited_but_not_the_person() -> None:
    limit = LoginLimit(10, 300.0)
    limit.take("anna", "home", 0.0, is_known=True)
    limit.note_login("anna", "home", 0.0)
    for name, is_known in (("anna", True), ("nobody", False)):
        # A guesser cannot tell which names there are.
        tries = [limit.take(name, f"{number}", 0.0, is_known=is_known) for number in range(200)]
        assert [bool(wait_s) for wait_s in tries] == [False] * 100 + [True] * 100
    assert limit.take("ben", "150", 0.0, is_known=True) == 0.0
    assert limit.take("anna", "home", 0.0, is_known=True) == 0.0
    # A flood of other names makes no limit forget a person.
    for number in range(20_000):
        limit.take(f"x{number}", "5", 0.0, is_known=False)
    assert limit.take("anna", "5", 0.0, is_known=True) > 0


@pytest.mark.parametrize("password", ["1qaz2wsx3edc", "Q1W2E3R4T5Y6", " 1qaz2wsx3edc "])
def test_a_password_that_everybody_tries_first_is_refused(password: str) -> None:
    with pytest.raises(Misconfigured, match="among the most used"):
        hashed_password(password)
    assert hashed_password(f"{password} and more").startswith("$argon2id$")


def test_many_tries_at_once_are_as_limited_as_one_after_the_other(
    people_file: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit was looked at before the password was tried, and counted after: a burst had forty tries for ten."""
    console = console_under_test(tmp_path, failed_logins_max=3)
    console.shell.people = People.read(people_file[0])
    tried, may_go_on = list[tuple[str, str]](), threading.Event()

    def slow(_: People, name: str, password: str) -> None:
        tried.append((name, password))
        assert may_go_on.wait(PATIENCE_S)

    monkeypatch.setattr(People, "with_password", slow)
    browser = console.browser()

    def guess(number: int) -> int:
        status = browser.post("/login", data={"name": "anna", "password": f"guess {number}"}).status_code
        if status == 429:
            may_go_on.set()
        return status

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(guess, range(8)))
    assert statuses == [403] * 3 + [429] * 5
    assert len(tried) == 3
    console.database.close()


def test_a_password_that_was_typed_as_a_name_is_in_no_log(people_file: tuple[Path, str], tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    console.shell.people = People.read(people_file[0])
    browser = console.browser()
    for name in (PASSWORD, "anna"):
        assert browser.post("/login", data={"name": name, "password": "x" * 12}).status_code == 403
    by_name, by_password = console.audit.newest(2)
    assert by_name.what == {"name": "anna", "address": "testclient"}
    assert by_password.what["name"].startswith("unknown ")
    assert PASSWORD not in console.audit.path.read_text()
    console.database.close()


def test_a_person_sees_their_sessions_and_ends_them_with_the_password(
    people_file: tuple[Path, str], tmp_path: Path
) -> None:
    console = console_under_test(tmp_path)
    console.shell.people = People.read(people_file[0])
    section = console.login.section()
    browsers = [console.browser([section]) for _ in range(3)]
    for browser in browsers:
        form = {"name": "anna", "password": PASSWORD}
        assert browser.post("/login", data=form).status_code == 303
    mine, stolen, phone = browsers
    text = mine.get("/sessions").text
    assert text.count('data-name="By">this console') == 3
    assert text.count("this one") == 2, "the tag, and the button"
    form = {"which": "others", "password": "wrong password"}
    assert mine.post("/sessions/end", data=form).status_code == 403
    assert stolen.get("/sessions").status_code == 200
    assert mine.post("/sessions/end", data={**form, "password": PASSWORD}).status_code == 303
    assert stolen.get("/sessions").headers["location"].startswith("/login")
    assert phone.get("/sessions").headers["location"].startswith("/login")
    assert "Ended 2 sessions." in mine.get("/sessions").text
    assert mine.post("/sessions/end", data={**form, "which": "all", "password": PASSWORD}).status_code == 303
    assert mine.get("/sessions").headers["location"].startswith("/login")
    acts = [entry.act for entry in console.audit.newest(20)]
    assert (acts.count("ended_sessions"), acts.count("login_failed")) == (2, 1)
    program = mine.get("/api/v1/sessions", headers={"authorization": f"Bearer {people_file[1]}"})
    assert program.json()["view"]["sessions"] == []
    console.database.close()


def test_every_page_names_a_lost_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page, the login and the logout answered 500, as for a bug."""
    console = console_under_test(tmp_path)
    browser = console.browser([console.login.section()], "demo-lead")

    def is_away(*_: object) -> None:
        raise DatabaseUnavailable("the console's database console.sqlite does not answer: disk I/O error")

    for name in ("read", "write"):
        monkeypatch.setattr(ConsoleDatabase, name, is_away)
    answers = [browser.get(path) for path in ("/", "/sessions", "/nothing")]
    answers += [browser.post(path, data={}) for path in ("/logout", "/sessions/end")]
    for answer in (answers[0], answers[1], *answers[3:]):
        assert (answer.status_code, "does not answer: disk I/O error" in answer.text) == (503, True)
    assert answers[2].status_code == 404
    console.database.close()


def test_a_database_that_is_removed_or_replaced_is_told_and_heals(tmp_path: Path) -> None:
    """SQLite went on in a file without a name, and new threads in an empty one: some pages worked, others did not."""
    console = console_under_test(tmp_path)
    browser = console.browser([console.login.section()], "demo-lead")
    path = console.database.path
    moved = path.with_name("moved.sqlite")
    path.rename(moved)
    for make in (lambda: None, lambda: path.write_bytes(b"")):
        make()
        answer = browser.get("/sessions")
        assert (answer.status_code, "was removed or replaced while it was open" in answer.text) == (503, True)
    moved.replace(path)
    assert browser.get("/sessions").status_code == 200
    console.database.close()


def test_a_damaged_database_is_told_with_the_way_out(tmp_path: Path) -> None:
    """The error had only SQLite's words: an operator did not know that the file may be deleted."""
    path = tmp_path / "console.sqlite"
    path.write_bytes(b"no database at all " * 500)
    with pytest.raises(
        DatabaseUnavailable, match=r"file is not a database\. Move it .* away and start the console again"
    ):
        ConsoleDatabase(path, TABLES)
    path.unlink()
    ConsoleDatabase(path, TABLES).close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(DatabaseUnavailable, match="Move it"):
        ConsoleDatabase(path, TABLES).read("SELECT * FROM sessions")
    path.unlink()
    for beside in path.parent.glob("console.sqlite-*"):
        beside.unlink()
    with closing(ConsoleDatabase(path, TABLES)) as anew:
        assert anew.read("SELECT * FROM sessions") == []


def test_wrong_tokens_are_noted_as_often_as_somebody_may_fail(tmp_path: Path) -> None:
    console = console_under_test(tmp_path, failed_logins_max=3)
    browser = console.browser([console.login.section()])
    for token in ("pwc_guess", "", "x"):
        for _ in range(3):
            answer = browser.get("/api/v1/sessions", headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 401
    assert browser.get("/api/v1/sessions").status_code == 401
    acts = [entry.act for entry in console.audit.newest(20)]
    assert acts == ["token_refused"] * 3
    assert "pwc_guess" not in console.audit.path.read_text()
    console.database.close()


def _person(name: str, role: str) -> str:
    return f'[[person]]\nname = "{name}"\nroles = ["{role}"]\npassword = "{hashed_password(PASSWORD)}"\n'


def _looked(file: PeopleFile) -> list[bool]:
    """A changed file counts once it has stood still for a round."""
    return [file.look() for _ in range(2)]


def test_a_person_who_was_removed_from_the_file_is_out_without_a_restart(tmp_path: Path) -> None:
    """The console read its people at its start: somebody who had left stayed in until it was restarted."""
    path = tmp_path / "people.toml"
    path.write_text(_person("anna", "lead") + _person("ben", "analyst"))
    path.chmod(0o600)
    file = PeopleFile(path)
    console = console_under_test(tmp_path)
    console.shell.take_people(file.people)
    browser = console.browser([console.login.section()])
    work = Section("people", "", "", (), background=(lambda stop: file.follow(console.shell.take_people, stop),))
    data = {"name": "ben", "password": PASSWORD}
    assert browser.post("/login", data=data).status_code == 303
    assert browser.get("/sessions").status_code == 200
    path.write_text(_person("anna", "lead"))
    with running([work]):
        wait_until(lambda: browser.get("/sessions").status_code == 303, "the session has ended")
    assert browser.get("/sessions").headers["location"].startswith("/login")
    console.database.close()


def test_a_file_of_people_that_cannot_be_used_changes_nobody_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "people.toml"
    right = _person("anna", "lead")
    path.write_text(right)
    path.chmod(0o600)
    clock = itertools.count(1).__next__
    file = PeopleFile(path, clock)
    before = file.people

    def folder() -> None:
        path.unlink()
        path.mkdir()

    def pipe() -> None:
        path.rmdir()
        os.mkfifo(path, 0o600)

    def half() -> None:
        path.unlink()
        path.write_text(right[: len(right) // 2])

    def sparse() -> None:
        os.truncate(path, 10 << 30)

    def loop() -> None:
        path.unlink()
        path.symlink_to(path)

    def empty() -> None:
        path.unlink()
        path.touch(0o600)

    for break_it in (path.unlink, path.mkdir, pipe, half, sparse, loop, empty, lambda: path.chmod(0o666)):
        caplog.clear()
        break_it()
        assert _looked(file) + _looked(file) == [False] * 4, break_it
        assert file.people is before
        assert str(path) in file.trouble
        assert [record.levelname for record in caplog.records] == ["ERROR"], break_it
    path.write_text(right + _person("ben", "analyst"))
    path.chmod(0o600)
    assert _looked(file) == [False, True]
    assert (sorted(file.people.people), file.trouble) == (["anna", "ben"], "")
