"""People, passwords, tokens and logins."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.ops.console.limits import RateLimit
from paywarden.ops.console.people.people import People, Person, Role, hashed_password, masked, new_token, token_digest
from paywarden.ops.console.settings import ConsoleSettings
from paywarden.schemas.errors import Misconfigured
from tests.services.product.console import console_under_test, csrf_of

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def people_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    token = new_token()
    path = tmp_path_factory.mktemp("people") / "people.toml"
    path.write_text(
        f'[[person]]\nname = "anna"\nroles = ["analyst"]\npassword = "{hashed_password(PASSWORD)}"\n'
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
    assert "scrypt" not in repr(people)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nonsense", "is not TOML"),
        ("[other]", "wanted tables"),
        ('[[person]]\nname = "a"', "person 1"),
        ('[[person]]\nname = "a b"\nroles = ["analyst"]\npassword = "x"', "name: wanted letters"),
        ('[[person]]\nname = "a"\nroles = ["king"]\npassword = "x"', "roles: wanted a list"),
        ('[[person]]\nname = "a"\nroles = ["lead"]\npassword = "scrypt:1:1:1:aa:aa"', "password: wanted a line"),
        ('[[token]]\nname = "a"\nroles = ["lead"]\nsha256 = "00"', "sha256: wanted 64"),
    ],
)
def test_a_wrong_file_of_people_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "people.toml"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(Misconfigured, match=words):
        People.read(path)


def test_only_analysts_and_leads_see_cards() -> None:
    for role in Role:
        seen = masked("card-0000-1234", Person("p", frozenset({role})))
        assert (seen == "card-0000-1234") == (role in (Role.ANALYST, Role.LEAD))
        assert seen.endswith("1234")
    assert masked("c123", Person("p", frozenset({Role.AUDITOR}))) == "••••••"


def test_demo_people_are_for_a_loopback_address_only() -> None:
    with pytest.raises(Misconfigured, match="loopback"):
        ConsoleSettings(host="0.0.0.0", url="https://console.example")
    with pytest.raises(Misconfigured, match="https"):
        ConsoleSettings(host="0.0.0.0", url="http://console.example", people="people.toml")
    assert not ConsoleSettings(host="0.0.0.0", url="https://console.example", people="people.toml").is_demo


def test_a_login_makes_a_new_session_and_ends_the_old_one(tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    browser = console.browser(person="demo-analyst")
    first = browser.cookies[console.shell.cookie]
    console.log_in(browser, "demo-lead")
    second = browser.cookies[console.shell.cookie]
    assert first != second
    assert console.shell.sessions.of_cookie(first, console.clock()) is None
    set_cookie = browser.post("/login", data={"csrf": csrf_of(browser.get("/login").text), "name": "demo-lead"})
    assert "HttpOnly" in set_cookie.headers["set-cookie"]
    assert "SameSite=lax" in set_cookie.headers["set-cookie"]
    console.database.close()


def test_failed_logins_are_noted_and_limited(tmp_path: Path) -> None:
    console = console_under_test(tmp_path, failed_logins_max=3)
    browser = console.browser()
    csrf = csrf_of(browser.get("/login").text)
    statuses = [browser.post("/login", data={"csrf": csrf, "name": f"x{n}"}).status_code for n in range(5)]
    assert statuses == [403, 403, 403, 429, 429]
    failed = [entry for entry in console.audit.newest(10) if entry.act == "login_failed"]
    assert len(failed) == 3
    assert browser.post("/login", data={"csrf": "wrong", "name": "demo-lead"}).status_code == 403
    console.database.close()


def test_a_bucket_fills_with_time() -> None:
    limit = RateLimit(2, 10.0)
    assert [limit.take("a", 0.0), limit.take("a", 0.0)] == [0.0, 0.0]
    assert limit.take("a", 0.0) == pytest.approx(5.0)
    assert limit.take("b", 0.0) == 0.0
    assert limit.take("a", 5.0) == 0.0
