"""Log in at an OpenID Connect provider: the authorization code flow with PKCE.

1. `begin` makes state, nonce and code verifier, remembers them, and returns the provider's address and a cookie's
   value.
2. The provider sends the browser back with the state and a code. `end` takes the state once, from the browser that has
   the cookie alone.
3. The console exchanges code and verifier for an ID token, and checks its signature, issuer, audience, nonce and time.
4. The token names the person, and its roles claim lists the person's roles. Roles that the console does not know are
   ignored; a person without any is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from paywarden.ops.console.pages import PageRefused
from paywarden.ops.console.people.people import Person, Role, is_person_name, role_of
from paywarden.ops.console.settings import ConsoleSettings
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import read_regular

# Asymmetric ones alone: with HS256 everybody who knows the client's secret could sign.
_ALGORITHMS: Final = ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"]
_SCOPE: Final = "openid profile email"
_PENDING_MAX: Final = 10_000
_PENDING_MS: Final = 600_000
_TIMEOUT_S: Final = 10.0
_LEEWAY_S: Final = 60
_REFUSED: Final = "The login was not completed. Please try again."


class ProviderUnavailable(TemporaryFailure):
    """The OpenID Connect provider does not answer, or gives an invalid answer."""


@dataclass(frozen=True)
class _Pending:
    """A login that has begun."""

    cookie_digest: str
    nonce: str
    verifier: str
    after: str
    begun_ms: int


@dataclass
class OidcProvider:
    """The provider. Thread-safe. `transport` stands in for the network in tests."""

    issuer: str
    client_id: str
    secret: str = field(repr=False)
    roles_claim: str = "roles"
    transport: httpx2.AsyncBaseTransport | None = None
    cookie: str = "paywarden-oidc"
    _pending: OrderedDict[str, _Pending] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, settings: ConsoleSettings) -> OidcProvider | None:
        """Returns the provider of the settings; None without one. Raises Misconfigured."""
        if not settings.oidc_issuer:
            return None
        try:
            secret = read_regular(settings.oidc_secret_file).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"[console] oidc_secret_file: cannot read {settings.oidc_secret_file}") from error
        return cls(settings.oidc_issuer.rstrip("/"), settings.oidc_client_id, secret, settings.oidc_roles_claim)

    async def begin(self, redirect_uri: str, after: str, now_ms: int) -> tuple[str, str]:
        """See Provider."""
        about = await self._about()
        state, cookie, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(4))
        with self._lock:
            self._pending[state] = _Pending(_digest(cookie), nonce, verifier, after, now_ms)
            while len(self._pending) > _PENDING_MAX:
                self._pending.popitem(last=False)
        async with self._client(redirect_uri) as client:
            address, _ = client.create_authorization_url(
                about["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
            )
        return str(address), cookie

    async def end(self, query: Mapping[str, str], cookie: str, redirect_uri: str, now_ms: int) -> tuple[Person, str]:
        """See Provider."""
        with self._lock:
            pending = self._pending.pop(query.get("state", ""), None)
        if pending is None or now_ms - pending.begun_ms > _PENDING_MS:
            raise PageRefused(403, _REFUSED)
        if not hmac.compare_digest(pending.cookie_digest, _digest(cookie)):
            raise PageRefused(403, _REFUSED)
        if query.get("iss", self.issuer).rstrip("/") != self.issuer or "code" not in query:
            raise PageRefused(403, _REFUSED)
        about = await self._about()
        try:
            async with self._client(redirect_uri) as client:
                token = await client.fetch_token(
                    about["token_endpoint"], code=query["code"], code_verifier=pending.verifier
                )
        except httpx2.HTTPError as error:
            raise ProviderUnavailable("the OpenID Connect provider does not answer") from error
        except Exception as error:
            # authlib raises errors of many kinds for an answer that is none.
            raise PageRefused(403, _REFUSED) from error
        claims = await self._claims(token.get("id_token"), about, pending.nonce)
        return self._person(claims), pending.after

    async def _claims(self, id_token: object, about: Mapping[str, str], nonce: str) -> dict[str, Any]:
        if not isinstance(id_token, str):
            raise PageRefused(403, _REFUSED)
        keys = await self._get(about["jwks_uri"])
        try:
            decoded = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=_ALGORITHMS)  # type: ignore[arg-type]
            registry = jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_S,
                iss={"essential": True, "value": about["issuer"]},
                aud={"essential": True, "value": self.client_id},
                exp={"essential": True},
                iat={"essential": True},
                sub={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            registry.validate(decoded.claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise PageRefused(403, _REFUSED) from error
        claims: dict[str, Any] = decoded.claims
        if claims.get("azp", self.client_id) != self.client_id:
            raise PageRefused(403, _REFUSED)
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        name = claims.get("preferred_username") or claims["sub"]
        if not is_person_name(name):
            raise PageRefused(403, "The provider's name for you has other than letters, digits and . _ @ -.")
        listed = claims.get(self.roles_claim, [])
        roles: frozenset[Role] = frozenset(
            role for role in map(role_of, listed if isinstance(listed, list) else [listed]) if role is not None
        )
        if not roles:
            raise PageRefused(403, "You have no role in this console. Ask the operator of this console for one.")
        return Person(name, roles)

    async def _about(self) -> Mapping[str, str]:
        about = await self._get(f"{self.issuer}/.well-known/openid-configuration")
        wanted = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
        if not all(isinstance(about.get(name), str) for name in wanted) or about["issuer"].rstrip("/") != self.issuer:
            raise ProviderUnavailable("the OpenID Connect provider does not describe itself as the issuer that is set")
        if not all(_is_address(about[name]) for name in wanted[1:]):
            raise ProviderUnavailable("the OpenID Connect provider names something that is not an address")
        return about

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            async with httpx2.AsyncClient(transport=self.transport, timeout=_TIMEOUT_S) as client:
                answer = await client.get(url)
                answer.raise_for_status()
                content = answer.json()
        except (httpx2.HTTPError, ValueError, RecursionError) as error:
            raise ProviderUnavailable("the OpenID Connect provider does not answer") from error
        if not isinstance(content, dict):
            raise ProviderUnavailable("the OpenID Connect provider does not answer in JSON objects")
        return content

    def _client(self, redirect_uri: str) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            self.client_id,
            self.secret,
            scope=_SCOPE,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            transport=self.transport,
            timeout=_TIMEOUT_S,
        )


def _is_address(text: str) -> bool:
    try:
        # A browser parses the address, and so does this process: both must find a host.
        return bool(urlsplit(text).netloc) and bool(httpx2.URL(text).host)
    except (ValueError, httpx2.InvalidURL):
        return False


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
