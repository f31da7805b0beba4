"""Log in and out: by name and password, as a demo person, or at the OpenID Connect provider. Shows one's sessions."""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from paywarden.ops.console.fields import checked, pairs_of
from paywarden.ops.console.limits import network_of
from paywarden.ops.console.oidc import COOKIE, COOKIE_S, OidcProvider
from paywarden.ops.console.page_rows import Done, Field, Page, PageRefused, Section, Shown, Visit
from paywarden.ops.console.people import PASSWORD_CHARS_MAX, Person
from paywarden.ops.console.rendering import rendered
from paywarden.ops.console.shell import LOCAL, Shell, address_of, form_pairs, local_path

_WRONG = "The name or the password is wrong."
# A try of a password takes some hundredths of a second. One that a busy machine made slow says nothing about the next.
_TRY_S_MAX = 0.5
_BODY_BYTES_MAX = 4096
# A name and a password, from somebody whom nobody knows yet.
_BODY_S = 10.0
_NEXT = Field("next", "The page to go to", chars_max=2000)
_FIELDS = (Field("name", "The name"), Field("password", "The password", chars_max=PASSWORD_CHARS_MAX), _NEXT)
_END_FIELDS = (
    Field("which", "All sessions but this one, or all", is_required=True, choices=("others", "all")),
    Field("password", "The password, for people who have one here", chars_max=PASSWORD_CHARS_MAX),
)


@dataclass
class Login:
    """The pages of login and logout, and the section of a person's own sessions."""

    shell: Shell
    provider: OidcProvider | None = None
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

    def section(self) -> Section:
        """Return the section without an entry in the navigation: the person's name leads to it."""
        pages = (
            Page("/sessions", self.show_sessions, "Where you are logged in"),
            Page("/sessions/end", self.end_sessions, "End your other sessions, or all", "POST", fields=_END_FIELDS),
        )
        return Section("sessions", "", "/sessions", pages)

    async def _form(self, request: Request) -> Response:
        values = checked((_NEXT,), pairs_of(request.scope["query_string"]))
        return self._page(local_path(values.get("next", ("/",))[-1]))

    async def _try(self, request: Request) -> Response:
        self.shell.require_own_form(request)
        values = checked(_FIELDS, await form_pairs(request, _BODY_BYTES_MAX, _BODY_S))
        name, password, after = (values.get(each, ("",))[-1] for each in ("name", "password", "next"))
        return await run_in_threadpool(self._tried, request, name, password, local_path(after))

    def _tried(self, request: Request, name: str, password: str, after: str) -> Response:
        shell, address = self.shell, address_of(request)
        limit, network, is_known = shell.logins, network_of(address), name in shell.people.people
        # A try counts as failed until it is right: otherwise many at once would all be tried before one counts.
        if wait_s := limit.take(name, network, time.monotonic(), is_known=is_known):
            return self._page(after, error=_too_many(wait_s), status=429)
        if not is_known and limit.has_many_strangers(network, time.monotonic()):
            # They cost no more CPU, and no line of the audit log. The answer says as little as for a name that exists.
            time.sleep(self._try_s)
            return self._page(after, name=name, error=_WRONG, status=403)
        began = time.monotonic()
        people = shell.people
        person = people.people.get(name) if people.is_demo else people.with_password(name, password)
        self._try_s = min(_TRY_S_MAX, time.monotonic() - began)
        if person is None:
            # Some people type their password where the name belongs.
            known = name if is_known else f"unknown {shell.audit.blinded(name)}"
            shell.audit.record("nobody", "login_failed", "console", {"name": known, "address": address}, shell.clock())
            return self._page(after, name=name, error=_WRONG, status=403)
        limit.note_login(name, network, time.monotonic())
        return self._logged_in(request, person, LOCAL, after)

    def _logged_in(self, request: Request, person: Person, source: str, after: str) -> Response:
        """Return the way on, with the cookie of a new session; the browser's old session ends."""
        shell = self.shell
        if (old := shell.session_of(request)) is not None:
            shell.sessions.end(old)
        secret = shell.sessions.begin(person, source, shell.clock())
        what = {"by": source, "address": address_of(request)}
        shell.audit.record(person.name, "logged_in", "console", what, shell.clock())
        response = RedirectResponse(local_path(after), 303)
        response.set_cookie(shell.cookie, secret, path="/", secure=shell.is_https, httponly=True, samesite="lax")
        return response

    async def _out(self, request: Request) -> Response:
        shell = self.shell
        session = await run_in_threadpool(shell.session_of, request)
        response = RedirectResponse("/login", 303)
        if session is not None:
            shell.require_own_form(request)
            await run_in_threadpool(shell.sessions.end, session)
            name = session.person.name
            await run_in_threadpool(shell.audit.record, name, "logged_out", "console", {}, shell.clock())
            response.delete_cookie(shell.cookie, path="/", secure=shell.is_https, httponly=True, samesite="lax")
        return response

    async def _start(self, request: Request) -> Response:
        assert self.provider is not None
        after = local_path(dict(pairs_of(request.scope["query_string"])).get("next", "/"))
        location, state = await self.provider.begin(request, f"{self.shell.url}/oidc/callback", after)
        response = RedirectResponse(location, 303)
        response.set_cookie(
            COOKIE, state, max_age=COOKIE_S, path="/oidc", secure=self.shell.is_https, httponly=True, samesite="lax"
        )
        return response

    async def _callback(self, request: Request) -> Response:
        assert self.provider is not None
        try:
            person, after = await self.provider.end(request)
        except PageRefused:
            # Anybody can ask for this address, as often as they like.
            await run_in_threadpool(self.shell.note_stranger, "login_failed", "oidc", address_of(request), by="oidc")
            raise
        response = await run_in_threadpool(self._logged_in, request, person, "oidc", after)
        response.delete_cookie(COOKIE, path="/oidc", secure=self.shell.is_https, httponly=True, samesite="lax")
        return response

    def _page(self, after: str, *, name: str = "", error: str = "", status: int = 200) -> Response:
        people = self.shell.people
        view = {
            "next": after,
            "has_passwords": bool(people.hashes),
            "has_provider": self.provider is not None,
            "demo_people": tuple(people.people.values()) if people.is_demo else (),
            "name": name,
            "error": error,
        }
        return Response(rendered("login.html", self.shell.frame("Log in", None), view), status, media_type="text/html")

    def show_sessions(self, visit: Visit) -> Shown:
        """Show the person's sessions that have not ended, the newest first."""
        settings, name = self.shell.settings, visit.person.name
        view = {
            "sessions": [
                {
                    "begun_ms": one.begun_ms,
                    "seen_ms": one.seen_ms,
                    "source": one.source,
                    "is_this": one.digest == visit.session,
                }
                for one in self.shell.sessions.of_person(name, visit.now_ms)
            ],
            "has_password": name in self.shell.people.hashes,
            "idle_minutes": settings.session_idle_minutes,
            "hours": settings.session_hours,
        }
        return Shown("sessions.html", view, "Your sessions")

    def end_sessions(self, visit: Visit) -> Done:
        """End the person's other sessions, or all of them."""
        if not visit.session:
            raise PageRefused(409, "A token has no session.")
        if not self._knows_again(visit):
            visit.did("login_failed", "console", by="sessions")
            raise PageRefused(403, "The password is wrong, and nothing was done.")
        kept = visit.session if visit.text("which") == "others" else ""
        ended = self.shell.sessions.end_all(visit.person.name, but=kept)
        visit.did("ended_sessions", f"person:{visit.person.name}", count=str(ended))
        return Done("/sessions", f"Ended {ended} {'session' if ended == 1 else 'sessions'}.", {"ended": ended})

    def _knows_again(self, visit: Visit) -> bool:
        """Return whether a person has typed their password again; True for people without one. Raises PageRefused."""
        name, people, limit = visit.person.name, self.shell.people, self.shell.failed_logins
        if name not in people.hashes:
            return True
        if wait_s := limit.take(f"again {name}", time.monotonic()):
            raise PageRefused(429, _too_many(wait_s))
        if people.with_password(name, visit.text("password")) is None:
            return False
        limit.take(f"again {name}", time.monotonic(), -1)
        return True


def _too_many(wait_s: float) -> str:
    return f"Too many failed logins. Try again in {max(1, round(wait_s / 60))} min."
