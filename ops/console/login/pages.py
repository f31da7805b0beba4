"""Log in and out: by name and password, as a demo person, or at the OpenID Connect provider."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from paywarden.ops.console.fields import checked, pairs_of
from paywarden.ops.console.limits import network_of
from paywarden.ops.console.pages import Field, PageRefused
from paywarden.ops.console.people.people import PASSWORD_CHARS_MAX, Person
from paywarden.ops.console.rendering.templates import rendered
from paywarden.ops.console.shell import CSRF_FIELD, LOCAL, Shell, address_of, form_pairs, local_path
from paywarden.schemas.errors import PaywardenError

_COOKIE = "paywarden-login"
_WRONG = "The name or the password is wrong."
# A try of a password takes 0.1 s. One that a busy machine made slow says nothing about the next one.
_TRY_S_MAX = 0.5
_BODY_BYTES_MAX = 4096
# A name and a password, from somebody whom nobody knows yet.
_BODY_S = 10.0
_NEXT = Field("next", "The page to go to", chars_max=2000)
_FIELDS = (
    Field("name", "The name"),
    Field("password", "The password", chars_max=PASSWORD_CHARS_MAX),
    Field(CSRF_FIELD, "The form's token"),
    _NEXT,
)


class Provider(Protocol):
    """An OpenID Connect provider."""

    @property
    def cookie(self) -> str:
        """The name of the cookie that ties the answer of the provider to the browser that asked."""

    async def begin(self, redirect_uri: str, after: str, now_ms: int) -> tuple[str, str]:
        """Returns the address to send the browser to, and the cookie's value. Raises TemporaryFailure."""

    async def end(self, query: Mapping[str, str], cookie: str, redirect_uri: str, now_ms: int) -> tuple[Person, str]:
        """Returns who came back, and the page to go to. Raises PageRefused, TemporaryFailure."""


@dataclass(frozen=True)
class LoginView:
    """The login: the possible ways, and the error of the last try."""

    csrf: str
    next: str
    has_passwords: bool
    has_provider: bool
    demo_people: tuple[Person, ...]
    name: str = ""
    error: str = ""


@dataclass
class Login:
    """The pages of login and logout. `secret` signs the form's token; a restart makes open login forms stale."""

    shell: Shell
    provider: Provider | None = None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    # How long the last try of a password took.
    _try_s: float = 0.0

    @property
    def routes(self) -> list[Route]:
        """The routes. They need no session."""
        routes = [
            Route("/login", self._form, methods=["GET"]),
            Route("/login", self._try, methods=["POST"]),
            Route("/logout", self._out, methods=["POST"]),
        ]
        if self.provider is not None:
            routes += [Route("/oidc/start", self._start), Route("/oidc/callback", self._callback)]
        return routes

    async def _form(self, request: Request) -> Response:
        try:
            values = checked((_NEXT,), pairs_of(request.scope["query_string"]))
        except PageRefused as error:
            return await run_in_threadpool(self.shell.refused, error.status, error.message)
        return await run_in_threadpool(self._page, request, local_path(values.get("next", ("/",))[-1]))

    async def _try(self, request: Request) -> Response:
        try:
            self.shell.require_own_form(request)
            values = checked(_FIELDS, await form_pairs(request, _BODY_BYTES_MAX, _BODY_S))
        except PageRefused as error:
            return await run_in_threadpool(self.shell.refused, error.status, error.message)
        given = {name: texts[-1] for name, texts in values.items()}
        after = local_path(given.get("next", "/"))
        try:
            return await run_in_threadpool(self._tried, request, given, after)
        except PaywardenError as error:
            return await run_in_threadpool(self.shell.refused, 503, str(error))

    def _tried(self, request: Request, given: dict[str, str], after: str) -> Response:
        name = given.get("name", "")
        token = given.get(CSRF_FIELD, "").encode()
        if not hmac.compare_digest(token, self._token(request.cookies.get(_COOKIE, "")).encode()):
            return self._page(request, after, error="The form had expired. Please try again.", status=403)
        address, limit, is_known = address_of(request), self.shell.logins, name in self.shell.people.people
        network = network_of(address)
        # A try counts as failed until it is right: otherwise many at once would all be tried before one counts.
        if wait_s := limit.take(name, network, time.monotonic(), is_known=is_known):
            message = f"Too many failed logins. Try again in {max(1, round(wait_s / 60))} min."
            return self._page(request, after, error=message, status=429)
        if not is_known and limit.has_many_strangers(network, time.monotonic()):
            # They cost no more CPU, and no line of the audit log. The answer says as little as for a name that exists.
            time.sleep(self._try_s)
            return self._page(request, after, name=name, error=_WRONG, status=403)
        began = time.monotonic()
        person = self._known(name, given.get("password", ""))
        self._try_s = min(_TRY_S_MAX, time.monotonic() - began)
        if person is None:
            # Some people type their password where the name belongs.
            known = name if is_known else f"unknown {self.shell.audit.blinded(name)}"
            what = {"name": known, "address": address}
            self.shell.audit.record("nobody", "login_failed", "console", what, self.shell.clock())
            return self._page(request, after, name=name, error=_WRONG, status=403)
        limit.note_login(name, network)
        return self.logged_in(request, person, LOCAL, after)

    def _known(self, name: str, password: str) -> Person | None:
        people = self.shell.people
        return people.people.get(name) if people.is_demo else people.with_password(name, password)

    def logged_in(self, request: Request, person: Person, source: str, after: str) -> Response:
        """Returns the way on, with the cookie of a new session; the browser's old session ends."""
        shell = self.shell
        old = shell.session_of(request)
        if old is not None:
            shell.sessions.end(old)
        secret, _ = shell.sessions.begin(person, source, shell.clock())
        what = {"by": source, "address": address_of(request)}
        shell.audit.record(person.name, "logged_in", "console", what, shell.clock())
        response = RedirectResponse(local_path(after), 303)
        response.set_cookie(shell.cookie, secret, path="/", secure=shell.is_https, httponly=True, samesite="lax")
        response.delete_cookie(_COOKIE, path="/login", secure=shell.is_https, httponly=True, samesite="lax")
        return response

    async def _out(self, request: Request) -> Response:
        session = await run_in_threadpool(self.shell.session_of, request)
        if session is None:
            return RedirectResponse("/login", 303)
        try:
            self.shell.require_own_form(request)
            pairs = dict(await form_pairs(request, _BODY_BYTES_MAX))
        except PageRefused as error:
            return await run_in_threadpool(self.shell.refused, error.status, error.message, session)
        if not session.is_of_form(pairs.get(CSRF_FIELD, "")):
            return await run_in_threadpool(self.shell.refused, 403, "The form has expired.", session)
        await run_in_threadpool(self.shell.sessions.end, session)
        await run_in_threadpool(
            self.shell.audit.record, session.person.name, "logged_out", "console", {}, self.shell.clock()
        )
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self.shell.cookie, path="/", secure=self.shell.is_https, httponly=True, samesite="lax")
        return response

    async def _start(self, request: Request) -> Response:
        assert self.provider is not None
        after = local_path(dict(pairs_of(request.scope["query_string"])).get("next", "/"))
        try:
            address, cookie = await self.provider.begin(self._redirect_uri, after, self.shell.clock())
        except PaywardenError as error:
            return await run_in_threadpool(self.shell.refused, 503, str(error))
        response = RedirectResponse(address, 303)
        response.set_cookie(
            self.provider.cookie,
            cookie,
            path="/oidc",
            max_age=600,
            secure=self.shell.is_https,
            httponly=True,
            samesite="lax",
        )
        return response

    async def _callback(self, request: Request) -> Response:
        assert self.provider is not None
        try:
            query = dict(pairs_of(request.scope["query_string"]))
            cookie = request.cookies.get(self.provider.cookie, "")
            person, after = await self.provider.end(query, cookie, self._redirect_uri, self.shell.clock())
        except PageRefused as error:
            address = address_of(request)
            # Anybody can ask for this address, as often as they like.
            if not self.shell.failed_logins.take(f"oidc {network_of(address)}", time.monotonic()):
                what = {"by": "oidc", "address": address}
                await run_in_threadpool(
                    self.shell.audit.record, "nobody", "login_failed", "console", what, self.shell.clock()
                )
            return await run_in_threadpool(self.shell.refused, error.status, error.message)
        except PaywardenError as error:
            return await run_in_threadpool(self.shell.refused, 503, str(error))
        response = await run_in_threadpool(self.logged_in, request, person, "oidc", after)
        response.delete_cookie(
            self.provider.cookie, path="/oidc", secure=self.shell.is_https, httponly=True, samesite="lax"
        )
        return response

    @property
    def _redirect_uri(self) -> str:
        return f"{self.shell.url}/oidc/callback"

    def _page(self, request: Request, after: str, *, name: str = "", error: str = "", status: int = 200) -> Response:
        people = self.shell.people
        secret = request.cookies.get(_COOKIE, "")
        is_new = len(secret) < 32
        if is_new:
            secret = secrets.token_urlsafe(32)
        demo = tuple(people.people.values()) if people.is_demo else ()
        view = LoginView(
            self._token(secret), after, bool(people.hashes), self.provider is not None, demo, name=name, error=error
        )
        response = Response(
            rendered("login.html", self.shell.frame("Log in", None), view), status, media_type="text/html"
        )
        if is_new:
            response.set_cookie(
                _COOKIE, secret, path="/login", secure=self.shell.is_https, httponly=True, samesite="lax"
            )
        return response

    def _token(self, cookie: str) -> str:
        return hmac.new(self.secret, cookie.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
