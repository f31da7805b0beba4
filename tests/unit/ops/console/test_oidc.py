"""Login at an OpenID Connect provider, which runs in this process and signs its tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from paywarden.ops.console.oidc import OidcProvider
from tests.services.product.console import ConsoleUnderTest, console_under_test
from tests.unit.ops.console.test_shell import SECTION

ISSUER = "https://login.example"


@dataclass
class OidcServer:
    """A provider: discovery, keys, tokens. `claims` overrides what the next token says; None removes."""

    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "k1"}))
    signs_with: ECKey | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    # What it says about itself other than it should.
    about: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._about),
                Route("/keys", self._keys),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    def authorize(self, address: str) -> dict[str, str]:
        """Returns the parameters of the provider's redirect, once the person has agreed."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert asked["code_challenge_method"] == "S256"
        self.codes["the-code"] = asked
        return {"code": "the-code", "state": asked["state"], "iss": ISSUER}

    async def _about(self, _: Request) -> Response:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        addresses = {name: f"{ISSUER}/{path}" for name, path in paths.items()}
        return JSONResponse({"issuer": ISSUER, **addresses, **self.about})

    async def _keys(self, _: Request) -> Response:
        return JSONResponse(KeySet([self.key]).as_dict(private=False))

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = self.codes.pop(form["code"], None)
        if asked is None or _challenge(form["code_verifier"]) != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": "console", "sub": "7", "exp": now + 300, "iat": now, "nonce": asked["nonce"],
            "preferred_username": "anna", "roles": ["lead", "gardener"], **self.claims,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        signed = jwt.encode({"alg": "ES256", "kid": "k1"}, claims, self.signs_with or self.key)
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "id_token": signed})


def _challenge(verifier: str) -> str:
    import base64
    import hashlib

    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def server() -> OidcServer:
    return OidcServer()


@pytest.fixture
def console(server: OidcServer, tmp_path: Path) -> Iterator[ConsoleUnderTest]:
    provider = OidcProvider(ISSUER, "console", "s" * 32, transport=httpx2.ASGITransport(app=server.app))
    made = console_under_test(tmp_path, provider)
    yield made
    made.database.close()


def log_in(browser: TestClient, server: OidcServer, **changed: str) -> Any:
    """Go to the provider and come back; returns the console's answer."""
    begun = browser.get("/oidc/start?next=/things")
    assert begun.status_code == 303
    back = {**server.authorize(begun.headers["location"]), **changed}
    return browser.get(f"/oidc/callback?{urlencode(back)}")


def test_who_the_provider_knows_is_logged_in_with_known_roles(console: ConsoleUnderTest, server: OidcServer) -> None:
    browser = console.browser([SECTION])
    answer = log_in(browser, server)
    assert (answer.status_code, answer.headers["location"]) == (303, "/things")
    session = console.shell.sessions.of_cookie(browser.cookies[console.shell.cookie], console.clock())
    assert session is not None
    assert (session.person.name, sorted(session.person.roles), session.source) == ("anna", ["lead"], "oidc")


@pytest.mark.parametrize(
    "address", ["https://lo[gin.example/a", "https://[::1", "nowhere", "", "https://\x7f/a", "http://a:b/"]
)
@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
def test_a_provider_that_names_no_address_is_told_as_one_that_does_not_answer(
    console: ConsoleUnderTest, server: OidcServer, name: str, address: str
) -> None:
    server.about = {name: address}
    browser = console.browser([SECTION])
    assert browser.get("/oidc/start?next=/things").status_code == 503
    # It is asked again at the next login.
    server.about = {}
    assert log_in(browser, server).status_code == 303


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"azp": "another"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"roles": ["gardener"]},
        {"roles": None},
        {"preferred_username": "a b"},
    ],
)
def test_a_token_that_says_something_else_logs_nobody_in(
    console: ConsoleUnderTest, server: OidcServer, claims: dict[str, Any]
) -> None:
    server.claims = claims
    browser = console.browser([SECTION])
    assert log_in(browser, server).status_code == 403
    assert browser.get("/things").status_code == 303
    assert console.audit.newest(1)[0].act == "login_failed"


def test_an_answer_counts_once_and_in_the_browser_that_asked(console: ConsoleUnderTest, server: OidcServer) -> None:
    browser, other = console.browser([SECTION]), console.browser([SECTION])
    begun = browser.get("/oidc/start")
    back = urlencode(server.authorize(begun.headers["location"]))
    assert other.get(f"/oidc/callback?{back}").status_code == 403
    assert browser.get(f"/oidc/callback?{back}").status_code == 403
    assert log_in(browser, server, iss="https://evil.example").status_code == 403
    assert log_in(browser, server, state="made-up").status_code == 403
    assert log_in(browser, server, code="made-up").status_code == 403
    assert log_in(browser, server).status_code == 303


def test_a_provider_that_is_away_is_said(tmp_path: Path) -> None:
    away = httpx2.MockTransport(lambda _: httpx2.Response(500))
    console = console_under_test(tmp_path, OidcProvider(ISSUER, "console", "s", transport=away))
    answer = console.browser([SECTION]).get("/oidc/start")
    assert (answer.status_code, "provider does not answer" in answer.text) == (503, True)
    console.database.close()
