"""Targets for the console: requests of browsers and programs, and the answers of an OpenID Connect provider."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import urlencode

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

_PART_END = b"\0"


def console_request() -> Target:
    """A request: a byte for who sends it and one for the page, then query, form or body, cookies and a header."""
    from starlette.testclient import TestClient

    from paywarden.ops.console.cases import Cases
    from paywarden.ops.console.inbox.alert import AlertPage
    from paywarden.ops.console.inbox.alert_reader import AlertReader
    from paywarden.ops.console.inbox.alert_store import AlertStore
    from paywarden.ops.console.inbox.inbox import Inbox
    from paywarden.ops.console.limits import RateLimit
    from tests.services.product.console import BY_A_BROWSER, TOKEN, console_under_test
    from tests.unit.ops.console.test_decisions import World
    from tests.unit.ops.console.test_inbox import World as InboxWorld
    from tests.unit.ops.console.test_inbox import _Echo
    from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record

    folder = Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))
    console = console_under_test(folder)
    topics, store = TopicsInMemory(), AlertStore(console.database, large_case_minor=1000)
    reader = AlertReader(store, lambda: topics, lambda: topics, console.clock)
    inbox = Inbox(store, reader, AlertPage(store, lambda: "https://c.example"))
    world = InboxWorld(console, topics, store, reader, inbox)
    reader._make_writer = lambda: _Echo(world)
    topics.put(alert_record(0), alert_record(1))
    world.read()
    (folder / "index").mkdir()
    decided = World(folder / "index")
    sections = [
        inbox.section(),
        Cases(store, reader, folder / "files").section(),
        *decided.sections,
        console.login.section(),
    ]
    pages = [(method, page.path) for section in sections for page in section.pages for method in page.methods]
    pages = [("GET", "/login"), ("POST", "/login"), ("GET", "/oidc/callback"), *pages]
    app = console.shell.application(sections, console.login.routes)
    people: dict[str, TestClient] = {}

    def browser(person: str) -> TestClient:
        # A session that an input has ended is begun again.
        client = people.get(person)
        if client is None or client.get("/sessions").status_code != 200:
            client = TestClient(app, base_url=console.shell.url, follow_redirects=False, headers=BY_A_BROWSER)
            console.log_in(client, person)
            people[person] = client
        return client

    def unlimited(*_: object) -> float:
        return 0.0

    def target(data: bytes) -> None:
        with patch.object(RateLimit, "take", unlimited):
            ask(data)

    def ask(data: bytes) -> None:
        who, which, rest = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
        query, body, cookie, header, kind, *_ = [*rest.split(_PART_END), b"", b"", b"", b"", b""]
        method, path = pages[which[0] % len(pages)]
        # The last part of a path may be anything, too.
        path = path.replace("{alert_id}", "alert-00001").replace("{case_id}", "1").replace("{decision_id}", "d-review")
        path = path.replace("{", "").replace("}", "")
        client = browser(("demo-analyst", "demo-lead")[who[0] & 1])
        headers = {b"content-type": kind or b"application/x-www-form-urlencoded", b"sec-fetch-site": b"same-origin"}
        if who[0] & 2:
            headers |= {b"authorization": f"Bearer {TOKEN}".encode(), b"content-type": kind or b"application/json"}
            path = f"/api/v1{path}"
        if cookie:
            headers[b"cookie"] = cookie
        if header:
            name, _, value = header.partition(b":")
            if name and all(33 <= byte <= 126 for byte in name):
                headers[name] = value
        raw = b"?" + query if query else b""
        with suppress(_NotSent):
            status = _status(app, method, path, raw, headers, body, client)
            assert status < 500, (status, method, path)

    return target


class _NotSent(Exception):
    """A server refuses such a request before the console sees it."""


def _status(app: Any, method: str, path: str, query: bytes, headers: dict[bytes, bytes], body: bytes, who: Any) -> int:
    """Ask the application as a server would, so that bytes stay as they are. Returns the status."""
    own = [(b"host", b"127.0.0.1:8090"), (b"content-length", str(len(body)).encode())]
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in who.cookies.jar)
    given = {name.lower(): value for name, value in headers.items()}
    if b"cookie" not in given:
        own.append((b"cookie", cookies.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query[1:],
        "root_path": "",
        "headers": [
            *own,
            *((name, value) for name, value in given.items() if name not in (b"host", b"content-length")),
        ],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8090),
    }
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    return statuses[0]


def _console_request() -> Iterator[bytes]:
    for page in (3, 5, 9, 17):
        yield bytes([0, page]) + b"\0note=n&title=t&alert=alert-00001&decision_id=d-review&verdict=fraud"
        yield bytes([2, page]) + b'\0{"note": "n", "title": "t", "alert": "alert-00001", "card_id": "c"}'
    yield b"\0\3state=open&q=%ff&sort=worst&page=2\0\0\0origin:http://other"
    yield b"\1\4search=AAAA&score_min=0.5&action=review&after=AAAA\0\0paywarden=x; a=\xff; b\0x: y"
    yield b'\2\6\0{"a": [1, true, null, {"b": 2}]}\0\0idempotency-key:0123456789abcdef0123'
    form = b"--x\r\ncontent-disposition: form-data; name=f; filename=a\r\n\r\nb\r\n--x--"
    yield b"\0\5\0" + form + b"\0\0\0multipart/form-data; boundary=x"


def oidc_answer() -> Target:
    """The answers of a provider, parted by zeros: about itself, its keys, its token; and the claims of a good token.

    A part that is empty is as it should be.
    """
    import httpx2
    from joserfc import jwt
    from joserfc.errors import JoseError

    from paywarden.ops.console.oidc import COOKIE, OidcProvider, ProviderUnavailable
    from paywarden.ops.console.page_rows import PageRefused
    from tests.unit.ops.console.test_oidc import ISSUER, OidcServer

    server = OidcServer()

    async def login(about: bytes, keys: bytes, token: bytes, claims: bytes) -> None:
        try:
            server.claims = told if isinstance(told := json.loads(claims or b"{}"), dict) else {}
        except (ValueError, RecursionError):
            server.claims = {}
        app = _Other(server.app, {"/.well-known/openid-configuration": about, "/keys": keys, "/token": token})
        provider = OidcProvider(ISSUER, "console", "s" * 32, transport=httpx2.ASGITransport(app=app))
        with suppress(ProviderUnavailable, PageRefused):
            address, state = await provider.begin(_request({}), "https://console/oidc/callback", "/")
            if address.startswith(ISSUER):
                back = server.authorize(address)
                with suppress(JoseError, TypeError, ValueError):
                    # Tokens that the provider itself cannot sign.
                    jwt.encode({"alg": "ES256", "kid": "k1"}, server.claims, server.key)
                person, _ = await provider.end(_request(back, f"{COOKIE}={state}"))
                assert person.roles

    def target(data: bytes) -> None:
        about, keys, token, claims, *_ = [*data.split(_PART_END), b"", b"", b"", b""]
        asyncio.run(login(about, keys, token, claims))

    return target


def _request(query: Mapping[str, str], cookie: str = "") -> Any:
    """Returns a browser's request to the console."""
    from starlette.requests import Request

    headers = [(b"cookie", cookie.encode())]
    return Request({"type": "http", "method": "GET", "query_string": urlencode(query).encode(), "headers": headers})


class _Other:
    """An application that answers some paths with other bytes."""

    def __init__(self, app: Any, others: dict[str, bytes]) -> None:
        self._app, self._others = app, others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = self._others.get(scope["path"])
        if not body:
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _oidc_answer() -> Iterator[bytes]:
    from tests.unit.ops.console.test_oidc import ISSUER, OidcServer

    server = OidcServer()
    about = {"issuer": ISSUER, "authorization_endpoint": f"{ISSUER}/authorize", "token_endpoint": f"{ISSUER}/token"}
    about |= {"jwks_uri": f"{ISSUER}/keys"}
    yield b""
    yield json.dumps(about).encode()
    yield b"\0" + json.dumps({"keys": [server.key.as_dict(private=False)]}).encode()
    yield b"\0" + b'{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "k1"}]}'
    yield b"\0\0" + b'{"access_token": "a", "token_type": "Bearer", "id_token": "eyJhbGciOiJFUzI1NiJ9.e30.AA"}'
    yield b"\0\0" + b'{"id_token": 7}'
    yield (
        b"\0\0\0" + b'{"roles": "lead", "aud": ["console"], "exp": 99999999999, "preferred_username": ["x"], "sub": 5}'
    )
    yield b"\0\0\0" + b'{"roles": [["lead"], {"a": 1}], "exp": "soon", "iat": null, "azp": 7, "nonce": []}'


TARGETS: dict[str, Callable[[], Target]] = {make.__name__: make for make in (console_request, oidc_answer)}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"console_request": _console_request, "oidc_answer": _oidc_answer}
