"""Attacks on the sockets of a real `serve`, from outside: floods, other callers' tokens, files that break."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import shutil
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.state.outbox import OutboxReader
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.certificates import Authority
from tests.services.product.processes import is_ready, wait_until
from tests.services.product.scoring_server import PATIENT, Server
from tests.worlds.endpoint.http_world import Client, post

FLOOD = 10_000
CONNECTIONS_MAX = HttpSettings().connections_max
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
TOKENS = ("shop-0123456789abcdef", "bank-0123456789abcdef", "mall-0123456789abcdef")
# A caller alone, for a little more than a second: then the compiled loop reads its connections.
ALONE_S = 1.2
ROUNDS = 4
_ids = itertools.count()


def body() -> tuple[str, bytes]:
    """Returns the id of a new payment, and its request."""
    payment_id = f"p-{next(_ids):06}"
    now_ms = time.time_ns() // 1_000_000
    request = ScoreRequest(
        payment_id=payment_id, event_time_ms=now_ms, card_id="c", merchant_id="m", amount_minor=1, currency="EUR"
    )
    return payment_id, request.SerializeToString()


def sent(payload: bytes, headers: str = "") -> bytes:
    return post(payload, content_type="application/x-protobuf", headers=headers)


@contextlib.contextmanager
def connected(server: Server, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    address = urllib.parse.urlsplit(server.target)
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S))
        yield Client(raw if context is None else stack.enter_context(context.wrap_socket(raw)))


def test_ten_thousand_connections_keep_no_caller_out_and_leave_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    flood = FLOOD if limits[1] == resource.RLIM_INFINITY else min(FLOOD, limits[1] - 500)
    cut = sent(body()[1])[:-5]
    kinds = (("http", b""), ("http", cut[:60]), ("http", cut), ("grpc", b""), ("grpc", HTTP2 + bytes(5)))
    try:
        with Server(tmp_path, more=PATIENT) as server, contextlib.ExitStack() as opened:
            server.start("--workers", "1")
            grpc = urllib.parse.urlsplit(server.parent.first_line())
            (worker,) = server.listening()
            ports = {"http": urllib.parse.urlsplit(server.target).port, "grpc": grpc.port}
            kept = opened.enter_context(connected(server))
            assert kept.ask(sent(body()[1])).status == 200
            files, memory = worker.num_fds(), worker.memory_info().rss
            for number in range(flood):
                port, words = kinds[number % len(kinds)]
                attacker = opened.enter_context(socket.socket())
                attacker.bind((f"127.0.0.{2 + number % 200}", 0))
                attacker.connect(("127.0.0.1", ports[port]))
                with contextlib.suppress(ConnectionError):
                    attacker.sendall(words)
                if number % 500 == 0:
                    with connected(server) as newcomer:
                        assert [one.ask(sent(body()[1])).status for one in (kept, newcomer)] == [200, 200]
                    assert worker.num_fds() < files + 2 * CONNECTIONS_MAX + 100
            assert worker.memory_info().rss < memory + (100 << 20)
            opened.close()
            wait_until(lambda: worker.num_fds() <= files, "all descriptors are free again")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class Tokens:
    """A file of tokens. `owners`: the caller of each token that is valid."""

    def __init__(self, path: Path) -> None:
        self.path, self.owners = path, dict(zip(TOKENS, ("shop", "bank", "mall"), strict=True))
        self.write(self.owners)

    def write(self, owners: Mapping[str, str]) -> None:
        self.owners = dict(owners)
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{owner}:{token}\n" for token, owner in owners.items()), encoding="ascii")
        new.chmod(0o600)
        new.replace(self.path)


def request_of(token: str, other: str, form: str) -> tuple[str, bytes]:
    """Returns the id of a payment, and its request with a token in some form; `other` is a decoy."""
    payment_id, payload = body()
    line = f"Authorization: Bearer {token}\r\n"
    if form == "chunked":
        head = f"POST /v1/score HTTP/1.1\r\nHost: h\r\n{line}Content-Type: application/x-protobuf\r\n"
        chunk = f"{len(payload):x}\r\n".encode() + payload + b"\r\n0\r\n"
        trailer = f"Authorization: Bearer {other}\r\n\r\n".encode()
        return payment_id, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + trailer
    headers = {
        "usual": line,
        "small": f"authorization: bearer {token}\r\n",
        "capital": f"AUTHORIZATION: BEARER   {token}  \r\n",
        "decoy": f"X-Authorization: Bearer {other}\r\n{line}Authorization2: Bearer {other}\r\n",
        "deadline": f"{line}X-Deadline-Ms: 50000\r\n",
        "trace": f"{line}traceparent: 00-{1 + next(_ids):032x}-00f067aa0ba902b7-01\r\n",
        "two": f"{line}Authorization: Bearer {other}\r\n",
        "none": "",
    }[form]
    return payment_id, sent(payload, headers)


FORMS = ("usual", "small", "capital", "decoy", "deadline", "trace", "chunked", "two", "none")


def test_a_payment_is_the_callers_whose_token_it_has_while_tokens_change(tmp_path: Path) -> None:
    rng, tokens, wanted = random.Random(8), Tokens(tmp_path / "tokens"), dict[str, str | None]()
    with (
        Server(tmp_path, more=f'{PATIENT}[auth]\ntokens_file = "{tokens.path}"\n', answered_max=100_000) as server,
        contextlib.ExitStack() as opened,
    ):
        # Without a mirror the compiled loop takes nothing.
        mirror = MirrorWriter(server.mirror)
        mirror.apply({}, {0: 1}, time.time_ns() // 1_000_000)
        mirror.close()
        server.start("--workers", "1")
        server.listening()
        wait_until(lambda: is_ready(server.target), "the worker is ready")
        clients = [opened.enter_context(connected(server)) for _ in range(4)]

        def ask(client: Client, *tries: tuple[str, str, str]) -> None:
            requests = [request_of(*one) for one in tries]
            client.send(b"".join(data for _, data in requests))
            for (payment_id, _), (token, _, form) in zip(requests, tries, strict=True):
                owner = None if form in ("two", "none") else tokens.owners.get(token)
                reply = client.reply()
                assert reply.status == (401 if owner is None else 200), (form, token)
                assert owner is None or payment_id.encode() in reply.body, form
                wanted[payment_id] = owner

        def have_changed(times: int) -> Callable[[], bool]:
            return lambda: server.log().count("have changed") == times

        for _ in range(ROUNDS):
            # The server knows the heads of all callers when another one is alone.
            for client, token in itertools.product(clients, TOKENS):
                ask(client, (token, token, "usual"))
            alone = rng.choice([token for token in TOKENS if token in tokens.owners])
            end = time.monotonic() + ALONE_S
            while time.monotonic() < end:
                ask(rng.choice(clients), (alone, alone, "usual"))
            for client, token in itertools.product(clients, TOKENS):
                ask(client, (token, alone, "usual"))
            for _ in range(60):
                many = [(rng.choice(TOKENS), rng.choice(TOKENS), rng.choice(FORMS)) for _ in range(rng.choice((1, 5)))]
                ask(rng.choice(clients), *many)
            owners = {token: rng.choice(("shop", "bank", "mall", "a" * 100)) for token in rng.sample(TOKENS, 2)}
            # The worker, the process for metrics and the parent log one line each.
            are_new = have_changed(server.log().count("have changed") + 3)
            tokens.write(owners)
            wait_until(are_new, "the tokens are new")
        reader = OutboxReader(server.outbox, "worker-0")
        entries = [OutboxEntry.FromString(payload) for _, payload in reader.read(0, 1_000_000)]
    callers = {payment_id: owner for payment_id, owner in wanted.items() if owner is not None}
    assert len(entries) == len(callers)
    assert {entry.request.payment_id: entry.caller for entry in entries} == callers


def test_a_worker_that_starts_again_has_the_last_usable_tokens_and_certificate(tmp_path: Path) -> None:
    tokens, authority = Tokens(tmp_path / "tokens"), Authority(tmp_path)
    certificate, key = authority.sign("server")
    trust = ssl.create_default_context(cafile=authority.path)
    trust.check_hostname = False
    files = f'[auth]\ntokens_file = "{tokens.path}"\n[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    with Server(tmp_path, more=PATIENT + files) as server:
        server.start("--workers", "1")

        def ask(token: str) -> tuple[int, bytes | None]:
            with connected(server, trust) as client:
                assert isinstance(client.raw, ssl.SSLSocket)
                shown = client.raw.getpeercert(binary_form=True)
                return client.ask(sent(body()[1], f"Authorization: Bearer {token}\r\n")).status, shown

        (worker,) = server.listening()
        status, first = ask(TOKENS[0])
        assert status == 200
        # One token is withdrawn, and the certificate renewed. Then both files break, and the worker is killed.
        tokens.write({TOKENS[1]: "bank"})
        for new, old in zip(authority.sign("renewed"), (certificate, key), strict=True):
            shutil.copy(new, old)
        wait_until(lambda: server.log().count(" has changed") == 3 == server.log().count("have changed"), "all know it")
        assert ask(TOKENS[0])[0] == 401
        status, renewed = ask(TOKENS[1])
        assert (status, renewed != first) == (200, True)
        tokens.path.write_text("no token\n")
        os.truncate(key, 10)
        worker.kill()
        wait_until(lambda: server.listening() != [worker], "another worker listens")
        assert ask(TOKENS[0])[0] == 401
        assert ask(TOKENS[1]) == (200, renewed)
