"""Log in at an OpenID Connect provider: the authorization code flow with PKCE, by authlib.

1. `begin` makes state, nonce and code verifier, remembers them here, and returns the provider's address and the state,
   which the browser keeps in a cookie.
2. The provider sends the browser back with the state and a code. `end` takes the state once, and only from the browser
   that has the cookie.
3. authlib exchanges code and verifier for an ID token, and checks its signature, issuer, audience, nonce and time.
4. The token names the person, and its roles claim lists the person's roles. Roles that the console does not know are
   ignored; a person without any is refused.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
from authlib.integrations.starlette_client import OAuth
from starlette.requests import Request

from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.ops.console.page_rows import PageRefused
from paywarden.ops.console.people import Person, Role, is_person_name, role_of
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import read_regular

COOKIE: Final = "paywarden-oidc"
COOKIE_S: Final = 600
_NAME: Final = "provider"
_PENDING_MAX: Final = 10_000
_TIMEOUT_S: Final = 10.0
_LEEWAY_S: Final = 60
# Asymmetric ones alone: with HS256 everybody who knows the client's secret could sign.
_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_REFUSED: Final = "The login was not completed. Please try again."


class ProviderUnavailable(TemporaryFailure):
    """The OpenID Connect provider does not answer, or not as it should."""


class _Pending:
    """The logins that have begun, as authlib keeps them: each for ten minutes, the newest 10,000."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def set(self, key: str, value: str, _: int) -> None:
        self._kept[key] = time.monotonic() + COOKIE_S, value
        while len(self._kept) > _PENDING_MAX:
            self._kept.popitem(last=False)

    async def get(self, key: str) -> str | None:
        """Take a login: an answer of the provider counts once."""
        end_s, value = self._kept.pop(key, (0.0, ""))
        return value if time.monotonic() < end_s else None

    async def delete(self, key: str) -> None:
        self._kept.pop(key, None)


class OidcProvider:
    """The provider. `transport` stands in for the network in tests."""

    def __init__(
        self,
        issuer: str,
        client_id: str,
        secret: str,
        roles_claim: str = "roles",
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.issuer, self._client_id, self._roles_claim = issuer, client_id, roles_claim
        self._client = OAuth(cache=_Pending()).register(
            _NAME,
            client_id=client_id,
            client_secret=secret,
            server_metadata_url=f"{issuer}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "timeout": _TIMEOUT_S,
                "transport": transport,
            },
        )
        self._after: OrderedDict[str, str] = OrderedDict()

    @classmethod
    def of(cls, settings: ConsoleSettings) -> OidcProvider | None:
        """Return the provider of the settings; None without one. Raises Misconfigured."""
        if not settings.oidc_issuer:
            return None
        try:
            secret = read_regular(settings.oidc_secret_file).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"[console] oidc_secret_file: cannot read {settings.oidc_secret_file}") from error
        return cls(settings.oidc_issuer.rstrip("/"), settings.oidc_client_id, secret, settings.oidc_roles_claim)

    async def begin(self, request: Request, redirect_uri: str, after: str) -> tuple[str, str]:
        """Return the address to send the browser to, and the cookie's value. Raises ProviderUnavailable."""
        await self._require_metadata()
        state = secrets.token_urlsafe(48)
        request.scope["session"] = {}
        redirect = await self._client.authorize_redirect(request, redirect_uri, state=state)
        self._after[state] = after
        while len(self._after) > _PENDING_MAX:
            self._after.popitem(last=False)
        return redirect.headers["location"], state

    async def end(self, request: Request) -> tuple[Person, str]:
        """Return who came back, and the page to go to. Raises PageRefused, ProviderUnavailable."""
        query, state = request.query_params, request.cookies.get(COOKIE, "")
        after = self._after.pop(query.get("state", ""), None)
        is_ours = after is not None and secrets.compare_digest(state.encode(), query["state"].encode())
        if not is_ours or "code" not in query or query.get("iss", self.issuer).rstrip("/") != self.issuer:
            raise PageRefused(403, _REFUSED)
        await self._require_metadata()
        request.scope["session"] = {f"_state_{_NAME}_{state}": {"exp": time.time() + COOKIE_S}}
        try:
            token = await self._client.authorize_access_token(
                request,
                leeway=_LEEWAY_S,
                claims_options={
                    "iss": {"essential": True, "value": self._client.server_metadata["issuer"]},
                    "nonce": {"essential": True},
                },
            )
            claims = dict(token["userinfo"])
        except httpx2.HTTPError as error:
            raise ProviderUnavailable("the OpenID Connect provider does not answer") from error
        except Exception as error:
            # authlib raises errors of many kinds for an answer or a token that is none.
            raise PageRefused(403, _REFUSED) from error
        if claims.get("azp", self._client_id) != self._client_id:
            raise PageRefused(403, _REFUSED)
        return self._person(claims), after or "/"

    def _person(self, claims: dict[str, Any]) -> Person:
        name = claims.get("preferred_username") or claims["sub"]
        if not is_person_name(name):
            raise PageRefused(403, "The provider's name for you has other than letters, digits and . _ @ -.")
        listed = claims.get(self._roles_claim, [])
        roles: frozenset[Role] = frozenset(
            role for role in map(role_of, listed if isinstance(listed, list) else [listed]) if role is not None
        )
        if not roles:
            raise PageRefused(403, "You have no role in this console. Ask the operator of this console for one.")
        return Person(name, roles)

    async def _require_metadata(self) -> None:
        """Raise ProviderUnavailable unless the provider describes itself as the issuer that is set."""
        try:
            about = await self._client.load_server_metadata()
        except (httpx2.HTTPError, ValueError, TypeError, RecursionError) as error:
            raise ProviderUnavailable("the OpenID Connect provider does not answer") from error
        if str(about.get("issuer")).rstrip("/") == self.issuer and all(_is_address(about.get(n)) for n in _ENDPOINTS):
            about["id_token_signing_alg_values_supported"] = list(_ALGORITHMS)
            return
        # It is asked again at the next login.
        about.clear()
        raise ProviderUnavailable("the OpenID Connect provider does not describe itself as the issuer that is set")


def _is_address(text: object) -> bool:
    try:
        # A browser parses the address, and so does this process: both must find a host.
        return isinstance(text, str) and bool(urlsplit(text).netloc) and bool(httpx2.URL(text).host)
    except (ValueError, httpx2.InvalidURL):
        return False
