from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.tokens import Tokens
from tests.fakes.descriptors import no_descriptors
from tests.services.product.processes import wait_until
from tests.worlds.endpoint.http_world import PATIENT, UNHURRIED, get, payment, post_json, serving

FIRST, SECOND = "first-token-0123456789", "second.token~0123456789=="


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", f"# who may ask\n\ngateway:{FIRST}\n{SECOND}\n")


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_every_token_of_the_file_is_allowed_and_nothing_else(file: Path) -> None:
    tokens = Tokens(str(file))
    assert tokens.caller_of(bearer(FIRST)) is not None
    assert tokens.caller_of(bearer(SECOND)) is not None
    assert tokens.caller_of(f"bearer  {FIRST} ".encode()) is not None
    for wrong in (None, b"", b"Bearer", b"Bearer ", FIRST.encode(), f"Basic {FIRST}".encode()):
        assert tokens.caller_of(wrong) is None
    for wrong_token in (FIRST[:-1], FIRST + "x", FIRST.upper(), f"gateway:{FIRST}", f"{FIRST}, Bearer {FIRST}"):
        assert tokens.caller_of(bearer(wrong_token)) is None


def test_the_tokens_of_many_callers_fit_and_are_known(tmp_path: Path) -> None:
    """A file of 1 MiB was too large, and each call over gRPC looked at every token: 36 µs for a thousand."""
    lines = [f"caller-{number}:{number:064x}" for number in range(20_000)]
    tokens = Tokens(str(write(tmp_path / "tokens", "\n".join(lines))))
    for number in (0, 10_000, 19_999):
        assert tokens.caller_of(bearer(f"{number:064x}")) == f"caller-{number}".encode()
    assert tokens.caller_of(bearer(f"{20_000:064x}")) is None


def test_a_token_has_its_callers_name(tmp_path: Path) -> None:
    tokens = Tokens(str(write(tmp_path / "tokens", f"check out : {FIRST}\ncheck out:{SECOND}\na:b:{'c' * 16}\n")))
    assert tokens.caller_of(bearer(FIRST)) == tokens.caller_of(bearer(SECOND)) == b"check out"
    assert tokens.caller_of(bearer("c" * 16)) == b"a:b"


def test_a_token_without_a_name_gets_one_that_stays_and_tells_nothing(tmp_path: Path) -> None:
    names = [
        Tokens(str(write(tmp_path / "tokens", text))).caller_of(bearer(FIRST))
        for text in (FIRST, f"{SECOND}\n\n:{FIRST}\n")
    ]
    assert names[0] == names[1]
    assert names[0] is not None
    assert re.fullmatch(rb"token-[0-9a-f]{8}", names[0])
    assert names[0][6:].decode() not in hashlib.sha256(FIRST.encode()).hexdigest()
    assert Tokens(str(tmp_path / "tokens")).caller_of(bearer(SECOND)) != names[0]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "has no token"),
        ("n" * 129 + f":{FIRST}\n", "line 1: wanted a caller's name of at most 128"),
        (f"a\x01b:{FIRST}\n", "line 1: wanted a caller's name"),
        ("# only a comment\n", "has no token"),
        (f"{FIRST}\nshort:tooshort\n", "line 2: wanted a token of 16 or more"),
        ("a token with spaces in it\n", "line 1"),
        ("gateway:\n", "line 1"),
        ("schlüssel-0123456789\n", "not ASCII"),
        ("a" * 17_000_000, "larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_repeating_it(tmp_path: Path, text: str, wrong: str) -> None:
    path = write(tmp_path / "tokens", text)
    with pytest.raises(Misconfigured, match=wrong) as refused:
        Tokens(str(path))
    assert str(path) in str(refused.value)
    assert "tooshort" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o604])
def test_a_file_that_is_open_to_everyone_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(Misconfigured, match="must not be open to everyone"):
        Tokens(str(write(tmp_path / "tokens", FIRST, mode)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"cannot read .*nowhere: No such file"):
        Tokens(str(tmp_path / "nowhere"))


def test_tokens_are_in_no_repr(file: Path) -> None:
    tokens = Tokens(str(file))
    assert FIRST not in repr(tokens)
    assert FIRST not in repr(vars(tokens))


def test_a_replaced_file_is_taken_up(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(str(file))
    tokens.refresh()
    assert tokens.version == 0
    write(file, "another-token-0123456789\n")
    tokens.refresh()
    assert tokens.version == 1
    assert tokens.caller_of(bearer("another-token-0123456789")) is not None
    assert tokens.caller_of(bearer(FIRST)) is None
    assert "another-token" not in caplog.text


def test_a_bad_new_file_keeps_the_old_tokens_and_is_one_line(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(str(file))
    for spoil in (lambda: write(file, "bad"), lambda: file.chmod(0o644), file.unlink):
        caplog.clear()
        spoil()
        for _ in range(3):
            tokens.refresh()
        assert len(caplog.records) == 1
        assert tokens.caller_of(bearer(FIRST)) is not None
        assert FIRST not in caplog.text
    write(file, FIRST)
    tokens.refresh()
    assert tokens.caller_of(bearer(FIRST)) is not None
    assert tokens.caller_of(bearer(SECOND)) is None


def test_a_file_that_could_not_be_opened_once_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A token that was withdrawn meanwhile stayed valid for ever."""
    tokens = Tokens(str(file))
    assert tokens.refresh()
    write(file, SECOND)
    with no_descriptors():
        assert [tokens.refresh() for _ in range(3)] == [False] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"[auth] tokens_file: cannot read {file}: Too many open files; the previous tokens stay valid"
    ]
    assert tokens.caller_of(bearer(FIRST)) is not None
    assert tokens.refresh()
    assert tokens.caller_of(bearer(FIRST)) is None
    assert tokens.caller_of(bearer(SECOND)) is not None


def test_a_bad_file_is_not_read_again_until_it_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(str(file))
    write(file, "bad")
    assert not tokens.refresh()
    with monkeypatch.context() as unread:
        unread.setattr(Path, "open", None)
        assert not tokens.refresh()
    write(file, SECOND)
    assert tokens.refresh()


def test_payments_need_a_token_and_probes_do_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(tokens=Tokens(str(file))) as served, served.connected() as client:
        for headers in ("", "Authorization: Bearer wrong-token-0123456789\r\n", f"Authorization: {FIRST}\r\n"):
            reply = client.ask(post_json(payment(), headers=headers))
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.error["code"] == "unauthenticated"
        assert served.scorer.seen == []
        batch = post_json({"requests": [payment()]}, path="/v1/score:batch")
        assert client.ask(batch).status == 401
        for path in ("/livez", "/readyz", "/metrics"):
            assert client.ask(get(path)).status == 200
        assert client.ask(post_json(payment(), headers=f"Authorization: Bearer {FIRST}\r\n")).status == 200
        assert served.counted("score", 401) == 3
    assert "0123456789" not in caplog.text


def test_the_scorer_learns_who_asks_from_every_request_of_a_connection(file: Path) -> None:
    with serving(tokens=Tokens(str(file))) as served, served.connected() as client:
        for token in (FIRST, SECOND, FIRST):
            # The second request of a token comes with a head that is cached.
            for _ in range(2):
                assert client.ask(post_json(payment(), headers=f"Authorization: Bearer {token}\r\n")).status == 200
        batch = post_json(
            {"requests": [payment(), payment("p-2")]},
            path="/v1/score:batch",
            headers=f"Authorization: Bearer {FIRST}\r\n",
        )
        assert client.ask(batch).status == 200
    names = [name[:6] for name in served.scorer.callers]
    assert names == [b"gatewa"] * 2 + [b"token-"] * 2 + [b"gatewa"] * 4


def test_metrics_can_need_a_token_too(file: Path) -> None:
    tokens = Tokens(str(file))
    with serving(tokens=tokens, metrics_need_token=True) as served, served.connected() as client:
        assert client.ask(get("/metrics")).status == 401
        assert client.ask(get("/metrics", headers=f"Authorization: Bearer {SECOND}\r\n")).status == 200


def test_a_token_that_is_withdrawn_is_refused_on_connections_that_used_it(file: Path) -> None:
    """The head with the old token is cached by then; a cached head must not be allowed for ever."""
    tokens = Tokens(str(file))
    asked = post_json(payment(), headers=f"Authorization: Bearer {FIRST}\r\n")
    with serving(tokens=tokens) as served, served.connected() as client:
        assert [client.ask(asked).status for _ in range(3)] == [200] * 3
        assert len(served.server.heads._known) == 1
        write(file, SECOND)
        served.loop.call_soon_threadsafe(tokens.refresh)
        served.run_in_loop()
        assert [client.ask(asked).status for _ in range(2)] == [401] * 2


def test_nobody_without_a_token_can_fill_the_memory_of_heads(file: Path) -> None:
    with serving(tokens=Tokens(str(file))) as served, served.connected() as client:
        for number in range(10):
            assert client.ask(post_json(payment(), headers=f"X-Number: {number}\r\n")).status == 401
        assert len(served.server.heads._known) == 0


def asked_as(token: str, payment_id: str) -> bytes:
    return post_json(payment(payment_id), headers=f"Authorization: Bearer {token}\r\n")


def test_every_request_beside_a_noisy_caller_is_answered_in_order(file: Path) -> None:
    admission = replace(UNHURRIED, caller_payments_per_second=50)
    with serving(tokens=Tokens(str(file)), admission=admission) as served, contextlib.ExitStack() as stack:
        quiet, *noisy = (stack.enter_context(served.connected()) for _ in range(4))
        for client in noisy:
            client.send(b"".join(asked_as(SECOND, f"p-{number}") for number in range(300)))
            assert quiet.ask(asked_as(FIRST, "q")).status == 200
        for client in noisy:
            replies = [client.reply() for _ in range(300)]
            assert {reply.status for reply in replies} <= {200, 429}
            ids = [reply.json.get("payment_id", f"p-{number}") for number, reply in enumerate(replies)]
            assert ids == [f"p-{number}" for number in range(300)]
        # Both callers on one connection, as a gateway has them: the quiet one is answered there, too.
        shared = noisy[0]
        shared.send(asked_as(FIRST, "mine") + asked_as(SECOND, "p") * 300 + asked_as(FIRST, "mine-2"))
        assert [shared.reply() for _ in range(302)][-1].json["payment_id"] == "mine-2"


def test_a_caller_with_many_connections_keeps_no_other_caller_out(file: Path) -> None:
    settings = replace(PATIENT, connections_max=4)
    with serving(settings, tokens=Tokens(str(file))) as served, contextlib.ExitStack() as stack:
        noisy = [stack.enter_context(served.connected()) for _ in range(4)]
        for number, client in enumerate(noisy):
            assert client.ask(asked_as(SECOND, f"p-{number}")).status == 200
        quiet = stack.enter_context(served.connected())
        assert quiet.ask(asked_as(FIRST, "q")).status == 200
        # The fourth was one too many of his. Three quarters stay his, and more are not taken from others.
        assert noisy[3].is_closed_by_server()
        assert [client.ask(asked_as(SECOND, "again")).status for client in noisy[:3]] == [200] * 3
        with served.connected() as late:
            assert late.reply().status == 503
        assert quiet.ask(asked_as(FIRST, "q-2")).status == 200
        noisy[0].raw.close()
        wait_until(lambda: len(list(served.server.connections)) == 3, "one of his is closed")
        back = stack.enter_context(served.connected())
        assert back.ask(asked_as(SECOND, "back")).status == 200
