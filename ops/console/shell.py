"""Make the application of all pages.

For a browser, each request to a page goes through these steps; the first that fails answers with a page that says so.

1. The host name is one of ours, which keeps other sites' names from pointing here.
2. The cookie is that of a session; otherwise the browser goes to the login.
3. The person has a role that the page wants, and has not asked too often.
4. The body is not too long. A form brings the session's CSRF token, and no other site sent it.
5. Each field is one that the page declared, and its value is right. Personal ones stand in no address
   (sealed_searches.py).
6. A form that was sent before gets the answer that it had.
7. The audit log has room for the line of the act.
8. The page's handler runs in a thread, and its answer is rendered.

For a program, the same pages are below /api/v1: a token in place of the cookie, JSON in place of forms and HTML, and
the header Idempotency-Key in place of step 6 (keyed_acts.py). A cookie does not log in there, and a
token does not log in on the pages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paywarden.ops.console.audit import Audit
from paywarden.ops.console.connections import PROVE
from paywarden.ops.console.fields import checked, checked_path, json_pairs, pairs_of
from paywarden.ops.console.idempotency.keyed_acts import (
    KEY_HEADER,
    REPLAYED_HEADER,
    Body,
    Keyed,
    KeyedActs,
    key_of,
    keyed,
)
from paywarden.ops.console.idempotency.sent_forms import ONCE_FIELD, SentForms, digest_of
from paywarden.ops.console.limits import LoginLimit, RateLimit, network_of
from paywarden.ops.console.pages import Answer, Done, Missing, Page, PageRefused, Section, Sent, Upload, Visit
from paywarden.ops.console.people.people import People, Person
from paywarden.ops.console.people.sessions import Session, Sessions
from paywarden.ops.console.rendering.templates import (
    NO_CURRENCIES,
    Currencies,
    Link,
    PageFrame,
    as_json,
    rendered,
    templates,
)
from paywarden.ops.console.sealed_searches import SEALED_FIELD, Seal, SealBroken
from paywarden.ops.console.settings import ConsoleSettings
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import InvalidEvent, PaywardenError, TemporaryFailure

_log = logging.getLogger(__name__)

API = "/api/v1"
LOCAL = "local"
"""The source of sessions of people that the console itself knows."""

CSRF_FIELD = "csrf"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "cache-control": "no-store",
}
_STATIC = Path(__file__).with_name("static")
_STATIC_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_FAILED_LOGINS_S = 300.0
# At most this many messages wait to be fetched.
_MESSAGES_MAX = 10_000
# Five megabytes by a slow line; a body that comes byte by byte holds a connection no longer.
_BODY_S = 120.0
_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_NOT_IN_ADDRESSES = (
    "it is not taken from an address, because addresses stay in histories and logs. Search with the form of the page, "
    "or by POST."
)
_SEAL_BROKEN = "This search has ended: it belongs to another session, or is too old. Search again."
_REFUSALS = {
    401: "Please log in",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    408: "Too slow",
    413: "Too long",
    429: "Too often",
}


class RoleMissing(PageRefused):
    """The person has no role that the page wants."""

    def __init__(self, person: Person, message: str) -> None:
        super().__init__(403, message)
        self.person = person


Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass
class Shell:
    """The frame that all pages share. `people`: those of the console's own file; empty with OpenID Connect alone."""

    settings: ConsoleSettings
    people: People
    sessions: Sessions
    audit: Audit
    # The address in browsers, without a slash at its end; `serve` sets it if the port is known only after the start.
    url: str
    clock: Callable[[], int] = now_ms
    sections: tuple[Section, ...] = ()
    currencies: Currencies = NO_CURRENCIES
    # The acts that programs did with an Idempotency-Key; None for a console without topics.
    keyed_acts: KeyedActs | None = None
    # When the newest decision came; 0 if that is not known.
    newest_ms: Callable[[], int] = lambda: 0
    _said: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._requests = RateLimit(self.settings.requests_per_minute, 60.0)
        # Wrong passwords, and anything else that somebody without a login fails in.
        self.logins = LoginLimit(self.settings.failed_logins_max, _FAILED_LOGINS_S)
        self.failed_logins = RateLimit(self.settings.failed_logins_max, _FAILED_LOGINS_S)
        self._sent_forms = SentForms(self.sessions.database, self.sessions.whole_ms)
        templates()

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the console through TLS."""
        return self.url.startswith("https:")

    @property
    def cookie(self) -> str:
        """The name of the session's cookie. With TLS, browsers accept `__Host-` from this host alone."""
        return "__Host-paywarden" if self.is_https else "paywarden"

    def session_of(self, request: Request) -> Session | None:
        """Returns the session of a request; None without one, and for a person who has left or has other roles."""
        session = self.sessions.of_cookie(
            request.cookies.get(self.cookie, ""), self.clock(), is_person=not _is_by_script(request)
        )
        if (
            session is not None
            and session.source == LOCAL
            and self.people.people.get(session.person.name) != session.person
        ):
            self.sessions.end(session)
            return None
        if session is not None:
            _prove(request, session.person)
        return session

    def take_people(self, people: People) -> None:
        """Go on with the people of a file that has changed."""
        self.people = people

    def missing(self) -> tuple[Missing, ...]:
        """Returns the services that the console cannot reach now."""
        return tuple(missing for section in self.sections for missing in section.missing())

    def frame(self, title: str, session: Session | None, here: str = "", *, is_by_script: bool = False) -> PageFrame:
        """Returns the frame of a page. `is_by_script`: nobody reads its message, which waits for the next page."""
        if session is None:
            return PageFrame(title, now_ms=self.clock(), is_demo=self.people.is_demo)
        links = tuple(
            Link(section.title, section.path, section.name == here, section.badge(session.person))
            for section in self.sections
            if section.title and session.person.may(section.roles)
        )
        message = "" if is_by_script else self._said.pop(session.digest, "")
        return PageFrame(
            title,
            links,
            session.person,
            session.csrf,
            self.missing(),
            message,
            self.clock(),
            self.people.is_demo,
            self.currencies,
            self.newest_ms(),
        )

    def say(self, session: Session, message: str) -> None:
        """Keep a message for the next page of a session."""
        self._said[session.digest] = message
        while len(self._said) > _MESSAGES_MAX:
            self._said.popitem(last=False)

    def refused(
        self, status: int, message: str, session: Session | None = None, section: Section | None = None
    ) -> Response:
        """Returns the page of a refusal, with the way back to the section that it was in."""
        title = _REFUSALS.get(status, "It did not work" if status >= 500 else "Not possible")
        back = ("/", "the first page")
        if section is not None and section.title and session is not None and session.person.may(section.roles):
            back = (section.path, section.title)
        try:
            frame = self.frame(title, session, "" if section is None else section.name)
        except PaywardenError:
            # The page that says that the database is gone must not need it.
            frame = PageFrame(title, now_ms=self.clock())
        content = rendered("refused.html", frame, {"message": message, "back": back})
        headers = {"retry-after": "10"} if status in (429, 503) else None
        return Response(content, status, media_type="text/html", headers=headers)

    def application(self, sections: Sequence[Section], more: Sequence[Route] = ()) -> ASGIApp:
        """Returns the application of these sections. `more`: routes that need no session, such as the login's."""
        self.sections = tuple(sections)
        routes = [*more, Route("/", self._home), Route("/livez", _livez), Route("/readyz", self._readyz)]
        routes.append(Route("/static/{name}", _static_files()))
        routes += [
            Route(path, endpoint, methods=[page.method])
            for section in sections
            for declared in section.pages
            for page in declared.by_methods()
            for path, endpoint in (
                (page.path, self._browser_endpoint(section, page, declared)),
                (API + page.path, self._api_endpoint(page, declared)),
            )
        ]
        handlers = {
            HTTPException: self._http_error,
            PageRefused: self._refused_outside,
            PaywardenError: self._refused_outside,
            Exception: self._bug,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
        return _Guard(app, self)

    def _browser_endpoint(self, section: Section, page: Page, declared: Page) -> Endpoint:
        """Answers a page by one of its methods. `declared`: the page with all of its fields."""

        async def endpoint(request: Request) -> Response:
            session: Session | None = None
            try:
                session = await run_in_threadpool(self.session_of, request)
                if session is None:
                    return self._to_login(request, page, declared)
                self.admit(session.person, page)
                visit = await self._visit(request, page, declared, session)
                if page.is_search:
                    asked = {name: values[-1] for name, values in visit.values.items()}
                    return RedirectResponse(visit.seal.address(request.url.path, asked, page.personal), 303)
                await self._require_audit(page)
                answer = await run_in_threadpool(self._answer, page, visit)
                return await run_in_threadpool(
                    self._html, answer, session, section, is_by_script=_is_by_script(request)
                )
            except (PageRefused, PaywardenError) as error:
                await self._note_refusal(error, page)
                status, message = _said_of(error)
                return await run_in_threadpool(self.refused, status, message, session, section)

        return endpoint

    async def _require_audit(self, page: Page) -> None:
        """Raise AuditUnavailable if an act could not be noted once it is done."""
        if page.is_act:
            await run_in_threadpool(self.audit.require_room)

    def _answer(self, page: Page, visit: Visit) -> Answer:
        if not visit.sending:
            return page.handler(visit)
        return self._sent_forms.answer(visit.sending, lambda: page.handler(visit), visit.now_ms)

    def _api_endpoint(self, page: Page, declared: Page) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                person = await run_in_threadpool(self.token_owner, request)
                self.admit(person, page)
                visit, sent = await self._api_visit(request, page, declared, person)
                await self._require_audit(page)
                if sent is not None:
                    return await run_in_threadpool(self._keyed_answer, page, visit, sent)
                answer = await run_in_threadpool(page.handler, visit)
                return await run_in_threadpool(_json, answer, self.missing)
            except (PageRefused, PaywardenError) as error:
                await self._note_refusal(error, page)
                status, message = _said_of(error)
                headers = {"www-authenticate": "Bearer"} if status == 401 else None
                return JSONResponse({"error": message}, status, headers=headers)

        return endpoint

    def _keyed_answer(self, page: Page, visit: Visit, sent: Keyed) -> Response:
        """Returns the answer of an act that counts once. Raises PageRefused, PaywardenError."""
        if self.keyed_acts is None:
            raise PageRefused(501, "Idempotency-Key: this console keeps no keys.")
        body = self.keyed_acts.answer(sent, visit.person.name, lambda: _body(page.handler(visit)), visit.now_ms)
        if body.is_replayed:
            # The next page shows it again.
            visit.did("answered_again", f"page:{page.method} {page.path}")
        headers = {REPLAYED_HEADER: "true"} if body.is_replayed else None
        return JSONResponse({**body.content, "missing": as_json(self.missing())}, body.status, headers=headers)

    def token_owner(self, request: Request) -> Person:
        """Returns who calls the API. Raises PageRefused."""
        token = _token(request)
        person = None if token is None else self.people.with_token(token)
        if person is None:
            self._note_wrong_token(request)
            raise PageRefused(401, "Wanted a token of this console: Authorization: Bearer pwc_…")
        _prove(request, person)
        return person

    def _note_wrong_token(self, request: Request) -> None:
        """Notes in the audit log that somebody came with a wrong token, not more often than they may fail to log in."""
        address = address_of(request)
        if "authorization" not in request.headers:
            return
        if self.failed_logins.take(f"token {network_of(address)}", time.monotonic()):
            return
        # The call is refused in any case, whether that can be written or not.
        with suppress(PaywardenError):
            self.audit.record("nobody", "token_refused", "console", {"address": address}, self.clock())

    def admit(self, person: Person, page: Page) -> None:
        """Raise PageRefused if the person may not see a page, or asks too often."""
        if wait_s := self._requests.take(person.name, time.monotonic()):
            raise PageRefused(429, f"Too many requests: try again in {wait_s:.0f} s.")
        if not person.may(page.roles):
            wanted = " or ".join(sorted(role.replace("_", " ") for role in page.roles))
            raise RoleMissing(person, f"This needs the role {wanted}.")

    async def _note_refusal(self, error: Exception, page: Page) -> None:
        """Notes in the audit log that somebody wanted a page that their roles do not give them."""
        if isinstance(error, RoleMissing):
            # The page is refused in any case, whether that can be written or not.
            with suppress(PaywardenError):
                subject = f"page:{page.method} {page.path}"
                await run_in_threadpool(self.audit.record, error.person.name, "refused", subject, {}, self.clock())

    def require_own_form(self, request: Request) -> None:
        """Raise PageRefused if another site sent the form. Browsers say so in two headers that pages cannot set."""
        site, origin = request.headers.get("sec-fetch-site", "same-origin"), request.headers.get("origin", self.url)
        if site not in ("same-origin", "none") or urlsplit(origin).netloc != request.headers.get("host", ""):
            raise PageRefused(403, "Another site sent this form. Open the page here, and do it again.")

    async def _visit(self, request: Request, page: Page, declared: Page, session: Session) -> Visit:
        pairs = pairs_of(request.scope["query_string"])
        uploads: dict[str, Upload] = {}
        sending = ""
        if page.method == "POST":
            self.require_own_form(request)
            pairs, uploads = await _form(request, page)
            tokens = [value for name, value in pairs if name == CSRF_FIELD]
            if len(tokens) != 1 or not session.is_of_form(tokens[0]):
                raise PageRefused(403, "The form has expired. Open the page again, and do it again.")
            pairs = [pair for pair in pairs if pair[0] != CSRF_FIELD]
            if any(name == ONCE_FIELD for name, _ in pairs):
                sending = digest_of(session.digest, request.url.path, pairs, uploads)
                pairs = [pair for pair in pairs if pair[0] != ONCE_FIELD]
        seal = self._seal(request.cookies.get(self.cookie, ""))
        visit = self._checked_visit(request, page, declared, seal, session.person, pairs, uploads)
        return replace(visit, sending=sending, session=session.digest)

    async def _api_visit(
        self, request: Request, page: Page, declared: Page, person: Person
    ) -> tuple[Visit, Keyed | None]:
        """Returns the visit, and the key that came with an act."""
        pairs = pairs_of(request.scope["query_string"])
        uploads: dict[str, Upload] = {}
        key = ""
        if page.method == "POST":
            key = key_of(request.headers.getlist(KEY_HEADER))
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == _MULTIPART:
                pairs, uploads = await _form(request, page)
            elif kind == "application/json":
                try:
                    pairs = json_pairs(json.loads(await limited_body(request, page.body_bytes_max) or b"{}"))
                except (ValueError, RecursionError) as error:
                    raise PageRefused(400, "The body is not JSON.") from error
            else:
                raise PageRefused(415, "Wanted the content type application/json.")
        seal = self._seal(_token(request) or "")
        visit = replace(self._checked_visit(request, page, declared, seal, person, pairs, uploads), is_api=True)
        if not key or page.is_search:
            return visit, None
        # Somebody whose roles have changed would see another answer.
        roles = ",".join(sorted(person.roles))
        return visit, keyed(person.name, key, digest_of(f"{roles} {key}", request.url.path, pairs, uploads))

    def _checked_visit(
        self,
        request: Request,
        page: Page,
        declared: Page,
        seal: Seal,
        person: Person,
        pairs: list[tuple[str, str]],
        uploads: dict[str, Upload],
    ) -> Visit:
        path = checked_path({name: str(value) for name, value in request.path_params.items()})
        if page.method == "GET":
            for name, _ in pairs:
                if name in declared.personal:
                    raise PageRefused(400, f"{name}: {_NOT_IN_ADDRESSES}")
        values = checked(page.fields, pairs)
        if sealed := values.pop(SEALED_FIELD, ()):
            try:
                opened = seal.opened(request.url.path.removeprefix(API), sealed[-1])
            except SealBroken as error:
                raise PageRefused(400, _SEAL_BROKEN) from error
            values |= checked([one for one in declared.fields if one.is_personal], opened.items())
        return Visit(person, self.clock(), self.audit, path, values, uploads, seal=seal)

    def _seal(self, secret: str) -> Seal:
        return Seal(secret, self.clock(), self.sessions.whole_ms)

    def _html(self, answer: Answer, session: Session, section: Section, *, is_by_script: bool) -> Response:
        if isinstance(answer, Done):
            self.say(session, answer.message)
            return RedirectResponse(local_path(answer.location), 303)
        if isinstance(answer, Sent):
            return _download(answer)
        if not answer.template:
            return JSONResponse(as_json(answer.view), answer.status)
        frame = self.frame(answer.title, session, section.name, is_by_script=is_by_script)
        return Response(rendered(answer.template, frame, answer.view), answer.status, media_type="text/html")

    def _to_login(self, request: Request, page: Page, declared: Page) -> Response:
        if page.method != "GET":
            return self.refused(401, "Your session has ended, and nothing was done. Log in and do it again.")
        query = request.url.query
        if declared.personal:
            # A field that must not stand in this address must not stand in the next one either.
            pairs = pairs_of(request.scope["query_string"])
            query = urlencode([pair for pair in pairs if pair[0] not in declared.personal])
        return RedirectResponse(f"/login?next={quote(request.url.path + (f'?{query}' if query else ''), safe='')}", 303)

    async def _home(self, request: Request) -> Response:
        session = await run_in_threadpool(self.session_of, request)
        if session is None:
            return RedirectResponse("/login", 303)
        for section in self.sections:
            if section.title and session.person.may(section.roles):
                return RedirectResponse(section.path, 303)
        return self.refused(403, "None of your roles has a page here.", session)

    async def _readyz(self, _: Request) -> Response:
        missing = await run_in_threadpool(self.missing)
        is_ready = all(one.is_lasting for one in missing)
        return JSONResponse({"missing": as_json(missing)}, 200 if is_ready else 503)

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        status = error.status_code
        message = {404: "There is no such page.", 405: "This address does not do that."}.get(status, str(error.detail))
        if request.url.path.startswith(API):
            return JSONResponse({"error": message}, status)
        return await run_in_threadpool(self._refused_somewhere, request, status, message)

    async def _refused_outside(self, request: Request, error: Exception) -> Response:
        """Answers for routes outside of any section, such as the login's: a database that is away is no bug."""
        assert isinstance(error, PageRefused | PaywardenError)
        return await run_in_threadpool(self._refused_somewhere, request, *_said_of(error))

    def _refused_somewhere(self, request: Request, status: int, message: str) -> Response:
        """Returns the page of a refusal outside of any section: with the navigation for somebody who has logged in."""
        try:
            session = self.session_of(request)
        except PaywardenError:
            session = None
        return self.refused(status, message, session)

    async def _bug(self, request: Request, _: Exception) -> Response:
        # Starlette logs the traceback itself, behind this answer.
        message = "Something went wrong that should not. The operators find the cause in the console's log."
        if request.url.path.startswith(API):
            return JSONResponse({"error": message}, 500)
        try:
            return await run_in_threadpool(self._refused_somewhere, request, 500, message)
        except Exception:  # noqa: BLE001 - the top: the frame of every page has a bug, too
            _log.exception("the page of a bug could not be made")
            frame = PageFrame("It did not work", now_ms=self.clock())
            content = rendered("refused.html", frame, {"message": message, "back": ("/", "the first page")})
            return Response(content, 500, media_type="text/html")


class _Guard:
    """Around everything: refuses other host names and unreadable addresses, and gives each answer its headers."""

    def __init__(self, app: ASGIApp, shell: Shell) -> None:
        self._app, self._shell = app, shell
        headers = dict(_HEADERS)
        if shell.is_https:
            headers["strict-transport-security"] = "max-age=31536000"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in self._headers if pair[0] not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        path = scope["path"]
        if path not in ("/livez", "/readyz") and not self._is_ours(host):
            await Response("This is not the name of this console.\n", 421)(scope, receive, send_with_headers)
            return
        if not scope["query_string"].isascii():
            # Browsers write such bytes as %XX. Nobody could read the address of this request.
            await Response("The address holds bytes that are not ASCII.\n", 400)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        ours = urlsplit(self._shell.url)
        if host == ours.netloc:
            return True
        names = {"localhost", "127.0.0.1", "::1"}
        try:
            given = urlsplit(f"//{host}")
            port = given.port
        except ValueError:
            return False
        return ours.hostname in names and given.hostname in names and port == ours.port


def _prove(request: Request, person: Person) -> None:
    """Tell the connection of a request who has sent it, so that it gives way to no other."""
    prove = request.scope.get("state", {}).get(PROVE)
    if prove is not None:
        prove(person.name)


def address_of(request: Request) -> str:
    """Returns the address that a request came from; empty if it is not known."""
    return "" if request.client is None else request.client.host


def _token(request: Request) -> str | None:
    """Returns the token that a program sent; None without one."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _is_by_script(request: Request) -> bool:
    """Returns whether a page of ours asks by itself, rather than a person. Browsers say so; pages cannot."""
    return request.headers.get("sec-fetch-dest", "document") == "empty"


async def limited_body(request: Request, bytes_max: int, limit_s: float = _BODY_S) -> bytes:
    """Returns the body of a request. Raises PageRefused if it is longer, or does not come in time."""
    content = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            async for part in request.stream():
                content += part
                if len(content) > bytes_max:
                    raise PageRefused(413, f"That is too long: wanted at most {bytes_max // 1024} kB.")
    except ClientDisconnect as error:
        raise PageRefused(400, "The browser ended the connection.") from error
    except TimeoutError as error:
        raise PageRefused(408, f"The form did not come within {limit_s:.0f} s, and nothing was done.") from error
    return bytes(content)


async def form_pairs(request: Request, bytes_max: int, limit_s: float = _BODY_S) -> list[tuple[str, str]]:
    """Returns the fields of a form without files. Raises PageRefused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise PageRefused(415, f"Wanted a form of the type {_FORM}.")
    return pairs_of(await limited_body(request, bytes_max, limit_s))


def local_path(location: str) -> str:
    """Returns a path of this console; the first page for anything that leads elsewhere."""
    parts = urlsplit(location)
    is_local = location.startswith("/") and not location.startswith("//") and "\\" not in location
    return location if is_local and not parts.netloc and location.isprintable() else "/"


async def _form(request: Request, page: Page) -> tuple[list[tuple[str, str]], dict[str, Upload]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files = {field.name: field for field in page.fields if field.kind == "file"}
    if kind != _MULTIPART or not files:
        return await form_pairs(request, page.body_bytes_max), {}
    body = await limited_body(request, page.body_bytes_max)

    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=len(files), max_fields=50).parse()  # type: ignore[arg-type]
    except (MultiPartException, UnicodeDecodeError, KeyError) as error:
        raise PageRefused(400, "The form is not in the form that browsers send.") from error
    pairs: list[tuple[str, str]] = []
    uploads: dict[str, Upload] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in files:
                raise PageRefused(400, f"This page takes no file {name[:40]!r}.")
            if value.filename:
                uploads[name] = Upload(value.filename, await value.read())
        else:
            pairs.append((name, value))
    await form.close()
    for file in files.values():
        if file.is_required and file.name not in uploads:
            raise PageRefused(400, f"{file.name} is missing: {file.meaning}.")
    return pairs, uploads


def _said_of(error: PageRefused | PaywardenError) -> tuple[int, str]:
    """Returns status and message of a refusal."""
    if isinstance(error, PageRefused):
        return error.status, error.message
    if isinstance(error, TemporaryFailure):
        return 503, str(error)
    return (400, str(error)) if isinstance(error, InvalidEvent) else (409, str(error))


def _json(answer: Answer, missing: Callable[[], tuple[Missing, ...]]) -> Response:
    if isinstance(answer, Sent):
        return _download(answer)
    body = _body(answer)
    return JSONResponse({**body.content, "missing": as_json(missing())}, body.status)


def _body(answer: Answer) -> Body:
    """Returns status and JSON of an answer, without the list of missing services."""
    assert not isinstance(answer, Sent), "a page that acts sends no file"
    if isinstance(answer, Done):
        return Body(200, {"message": answer.message, "view": as_json(answer.view)})
    return Body(answer.status, {"view": as_json(answer.view)})


def _download(sent: Sent) -> Response:
    name = quote(sent.file_name, safe="")
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        # An uploaded file never runs as a page of ours.
        "content-security-policy": "default-src 'none'; sandbox",
    }
    return Response(sent.content, media_type=sent.media_type, headers=headers)


async def _livez(_: Request) -> Response:
    return Response("ok\n", media_type="text/plain")


def _static_files() -> Endpoint:
    files = {
        path.name: (path.read_bytes(), _STATIC_TYPES[path.suffix])
        for path in _STATIC.iterdir()
        if path.suffix in _STATIC_TYPES
    }

    async def endpoint(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        content, media_type = found
        return Response(content, media_type=media_type, headers={"cache-control": "max-age=3600"})

    return endpoint
