"""Make the application of all pages. Each request goes through these steps; the first that fails answers and says why.

1. The host name is one of ours, which keeps other sites' names from pointing here.
2. The cookie is that of a session, otherwise the browser goes to the login; below /api/v1 a token takes its place.
3. The person has a role that the page wants.
4. The body is not too long, and no other site sent the form: browsers name the site in Origin or Sec-Fetch-Site.
5. Each field is one that the page declared, and its value is right. Personal ones stand in no address.
6. A form or a request with a key that was sent before gets the answer that it had (idempotency.py).
7. The audit log has room for the line of the act.
8. The page's handler runs in a thread. Its answer is HTML for a browser, and JSON for a program.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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

from paywarden.ops.console.audit_log import Audit
from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.ops.console.fields import checked, checked_path, json_pairs, pairs_of
from paywarden.ops.console.idempotency import (
    KEY_HEADER,
    ONCE_FIELD,
    REPLAYED_HEADER,
    Idempotency,
    Sending,
    digest_of,
    key_of,
)
from paywarden.ops.console.limits import LoginLimit, RateLimit, network_of
from paywarden.ops.console.page_rows import (
    Answer,
    Done,
    Field,
    Missing,
    Page,
    PageRefused,
    Section,
    Sent,
    Upload,
    Visit,
)
from paywarden.ops.console.people import People, Person
from paywarden.ops.console.rendering import (
    LOCALE,
    NO_CURRENCIES,
    Currencies,
    Link,
    PageFrame,
    SearchPage,
    as_json,
    locale_of,
    rendered,
    templates,
)
from paywarden.ops.console.saved_searches import SavedSearches
from paywarden.ops.console.searches import SEARCH_FIELD, Searches
from paywarden.ops.console.sessions import Session, Sessions
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import InvalidEvent, PaywardenError, TemporaryFailure

_log = logging.getLogger(__name__)

API = "/api/v1"
LOCAL = "local"
"""The source of sessions of people that the console itself knows."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
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
_FORM, _MULTIPART, _JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
_NOT_IN_ADDRESSES = (
    "it is not taken from an address, because addresses stay in histories and logs. Search with the form of the page, "
    "or by POST."
)
_SEARCH = Field(SEARCH_FIELD, "The name of the search, as the console gave it")
_SEARCH_ENDED = "This search has ended: it belongs to another session, or the console has restarted. Search again."
_REFUSALS = {401: "Please log in", 403: "Not allowed", 404: "Not found", 405: "Not allowed"}
_REFUSALS |= {408: "Too slow", 413: "Too long", 429: "Too often"}
_BUG = "Something went wrong that should not. The operators find the cause in the console's log."

Endpoint = Callable[[Request], Awaitable[Response]]


class RoleMissing(PageRefused):
    """The person has no role that the page wants."""

    def __init__(self, person: Person, page: Page) -> None:
        super().__init__(403, f"This needs the role {' or '.join(sorted(page.roles)).replace('_', ' ')}.")
        self.person = person


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
    # When the newest decision came; 0 if that is not known.
    newest_ms: Callable[[], int] = lambda: 0
    _messages: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _searches: Searches = field(default_factory=Searches)

    def __post_init__(self) -> None:
        # Wrong passwords, and anything else that somebody without a login fails in.
        self.logins = LoginLimit(self.settings.failed_logins_max, _FAILED_LOGINS_S)
        self.failed_logins = RateLimit(self.settings.failed_logins_max, _FAILED_LOGINS_S)
        self._idempotency = Idempotency(self.sessions.database)
        self.saved_searches = SavedSearches(self.sessions.database)
        # Without descriptors a console can still show pages.
        templates()

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the console through TLS."""
        return self.url.startswith("https:")

    @property
    def cookie(self) -> str:
        """The name of the session's cookie. With TLS, browsers accept `__Host-` from this host alone."""
        return "__Host-paywarden" if self.is_https else "paywarden"

    def take_people(self, people: People) -> None:
        """Go on with the people of a file that has changed."""
        self.people = people

    def names(self) -> frozenset[str]:
        """Return the names of the people of the console's file, and of those who are logged in."""
        return frozenset(self.people.people) | self.sessions.names()

    def session_of(self, request: Request) -> Session | None:
        """Return the session of a request; None without one, and for a person who has left or has other roles."""
        secret = request.cookies.get(self.cookie, "")
        if not secret:
            return None
        session = self.sessions.of_cookie(secret, self.clock(), is_person=not _is_by_script(request))
        if session is None or session.source != LOCAL:
            return session
        if self.people.people.get(session.person.name) != session.person:
            self.sessions.end(session)
            return None
        return session

    def token_owner(self, request: Request) -> Person:
        """Return who calls the API. Raises PageRefused."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        person = self.people.with_token(token.strip()) if kind.lower() == "bearer" else None
        if person is None:
            if "authorization" in request.headers:
                self.note_stranger("token_refused", "token", address_of(request))
            raise PageRefused(401, "Wanted a token of this console: Authorization: Bearer pwc_…")
        return person

    def note_stranger(self, act: str, kind: str, address: str, **what: str) -> None:
        """Note in the audit log that somebody failed to log in, not more often than they may.

        The request is refused in any case, whether that can be written or not.
        """
        if not self.failed_logins.take(f"{kind} {network_of(address)}", time.monotonic()):
            with suppress(PaywardenError):
                self.audit.record("nobody", act, "console", {**what, "address": address}, self.clock())

    def missing(self) -> tuple[Missing, ...]:
        """Return the services that the console cannot reach now."""
        return tuple(missing for section in self.sections for missing in section.missing())

    def frame(
        self,
        title: str,
        session: Session | None,
        here: str = "",
        *,
        is_by_script: bool = False,
        search: tuple[str, str] | None = None,
    ) -> PageFrame:
        """Return the frame of a page. `is_by_script`: nobody reads its message, which waits for the next page.

        `search`: path and query of a page whose searches can be kept.
        """
        if session is None:
            return PageFrame(title, now_ms=self.clock(), is_demo=self.people.is_demo)
        saved = self.saved_searches.of(session.person.name)
        first = {one.path: one.address for one in saved if one.opens_first}
        page = None
        if search is not None:
            page = SearchPage(*search, tuple(one for one in saved if one.path == search[0]))
        return PageFrame(
            title,
            tuple(
                Link(
                    section.title,
                    first.get(section.path, section.path),
                    section.name == here,
                    section.badge(session.person),
                )
                for section in self.sections
                if section.title and session.person.may(section.roles)
            ),
            session.person,
            self.missing(),
            "" if is_by_script else self._messages.pop(session.digest, ""),
            self.clock(),
            self.people.is_demo,
            self.currencies,
            self.newest_ms(),
            page,
        )

    def refused(
        self, status: int, message: str, session: Session | None = None, section: Section | None = None
    ) -> Response:
        """Return the page of a refusal, with the way back to the section that it was in."""
        title = _REFUSALS.get(status, "It did not work" if status >= 500 else "Not possible")
        back = ("/", "the first page")
        if section is not None and section.title and session is not None and session.person.may(section.roles):
            back = (section.path, section.title)
        try:
            frame = self.frame(title, session, "" if section is None else section.name)
        except Exception as error:  # noqa: BLE001 - the top: the frame of every page may have the bug
            if not isinstance(error, PaywardenError):
                _log.exception("the frame of a page could not be made")
            # The page that says that the database is gone must not need it.
            frame = PageFrame(title, now_ms=self.clock())
        content = rendered("refused.html", frame, {"message": message, "back": back})
        headers = {"retry-after": "10"} if status in (429, 503) else None
        return Response(content, status, media_type="text/html", headers=headers)

    def application(self, sections: Sequence[Section], more: Sequence[Route] = ()) -> ASGIApp:
        """Return the application of these sections. `more`: routes that need no session, such as the login's."""
        kept = self.saved_searches.section(
            frozenset(page.path for one in sections for page in one.pages if page.path == one.path and page.fields)
        )
        self.sections = sections = (*sections, kept)
        routes = [*more, Route("/", self._home), Route("/livez", _livez), Route("/readyz", self._readyz)]
        routes.append(Route("/static/{name}", _static_files()))
        for section in sections:
            for page in section.pages:
                for base in ("", API):
                    endpoint = self._endpoint(section, page, is_api=bool(base))
                    routes.append(Route(base + page.path, endpoint, methods=list(page.methods)))
        expected = {HTTPException: self._lost, PageRefused: self._failed, PaywardenError: self._failed}
        app = Starlette(routes=routes, exception_handlers={**expected, Exception: self._failed})
        return _Guard(app, self)

    def _endpoint(self, section: Section, page: Page, *, is_api: bool) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            session: Session | None = None
            try:
                if is_api:
                    person = await run_in_threadpool(self.token_owner, request)
                else:
                    session = await run_in_threadpool(self.session_of, request)
                    if session is None:
                        return self._to_login(request, page)
                    person = session.person
                    LOCALE.set(locale_of(request.headers.get("accept-language", "")))
                if not person.may(page.roles):
                    raise RoleMissing(person, page)
                visit, sending = await self._visit(request, page, person, session)
                if session is not None and request.method == "POST" and not page.is_act:
                    return RedirectResponse(visit.address(page.path, visit.texts(), page.personal), 303)
                return await run_in_threadpool(self._response, request, page, visit, sending, section, session)
            except (PageRefused, PaywardenError) as error:
                if isinstance(error, RoleMissing):
                    await run_in_threadpool(self._note_refusal, error.person, page)
                return await run_in_threadpool(self._refusal, error, session, section, is_api=is_api)

        return endpoint

    async def _visit(
        self, request: Request, page: Page, person: Person, session: Session | None
    ) -> tuple[Visit, Sending | None]:
        """Return a checked request, and its key if it must act once. Raises PageRefused."""
        is_api, uploads, key, scope = session is None, dict[str, Upload](), "", person.name
        if request.method == "GET":
            pairs = pairs_of(request.scope["query_string"])
            if hidden := [name for name, _ in pairs if name in page.personal]:
                raise PageRefused(400, f"{hidden[0]}: {_NOT_IN_ADDRESSES}")
        elif session is None:
            key = key_of(request.headers.getlist(KEY_HEADER)) if page.is_act else ""
            # Somebody whose roles have changed would see another answer.
            scope += " " + ",".join(sorted(person.roles))
            if _kind_of(request) == _JSON:
                pairs = json_pairs(_parsed(await limited_body(request, page.body_bytes_max)))
            else:
                pairs, uploads = await _form(request, page, (_MULTIPART,))
        else:
            self.require_own_form(request)
            pairs, uploads = await _form(request, page, (_FORM, _MULTIPART))
            tokens = [value for name, value in pairs if name == ONCE_FIELD]
            pairs = [pair for pair in pairs if pair[0] != ONCE_FIELD]
            # A form that was filled in again, on a page that a browser had kept, is another sending.
            key = digest_of(session.digest, request.url.path, *tokens, pairs=pairs, uploads=uploads) if tokens else ""
        path = checked_path({name: str(value) for name, value in request.path_params.items()})
        fields = (*page.fields, _SEARCH) if request.method == "GET" and page.personal else page.fields
        values = checked(fields, pairs)
        name = values.pop(SEARCH_FIELD, ("",))[-1]
        digest = "" if session is None else session.digest
        visit = Visit(person, self.clock(), self.audit, path, values, uploads, is_api, digest, self._searches)
        if name:
            found = self._searches.find(visit.owner, page.path, name)
            if found is None:
                raise PageRefused(400, _SEARCH_ENDED)
            values |= {name: (value,) for name, value in found.items()}
        if not key:
            return visit, None
        content = digest_of(request.url.path, pairs=pairs, uploads=uploads)
        return visit, Sending(digest_of("api", scope, key) if is_api else key, content)

    def _response(
        self,
        request: Request,
        page: Page,
        visit: Visit,
        sending: Sending | None,
        section: Section,
        session: Session | None,
    ) -> Response:
        if page.is_act:
            self.audit.require_room()
        answer, is_repeated = self._answer(page, visit, sending)
        if isinstance(answer, Sent):
            return _download(answer)
        if session is None:
            content = {"view": as_json(answer.view), "missing": as_json(self.missing())}
            if not isinstance(answer, Done):
                return JSONResponse(content, answer.status)
            headers = {REPLAYED_HEADER: "true"} if is_repeated else None
            return JSONResponse({"message": answer.message, **content}, headers=headers)
        if isinstance(answer, Done):
            again = "The form was sent twice, and counts once. " if is_repeated else ""
            self._messages[session.digest] = again + answer.message
            while len(self._messages) > _MESSAGES_MAX:
                self._messages.popitem(last=False)
            return RedirectResponse(local_path(answer.location), 303)
        if not answer.template:
            return JSONResponse(as_json(answer.view), answer.status)
        is_list = page.path == section.path and bool(page.fields)
        search = (page.path, request.url.query) if is_list else None
        frame = self.frame(answer.title, session, section.name, is_by_script=_is_by_script(request), search=search)
        return Response(rendered(answer.template, frame, answer.view), answer.status, media_type="text/html")

    def _answer(self, page: Page, visit: Visit, sending: Sending | None) -> tuple[Answer, bool]:
        if sending is None or not page.is_act:
            return page.handler(visit), False
        return self._idempotency.answer(sending, lambda: page.handler(visit), visit.now_ms)

    def _note_refusal(self, person: Person, page: Page) -> None:
        """Note in the audit log that somebody wanted a page that their roles do not give them."""
        # The page is refused in any case, whether that can be written or not.
        with suppress(PaywardenError):
            self.audit.record(person.name, "refused", f"page:{page.method} {page.path}", {}, self.clock())

    def _refusal(
        self, error: Exception, session: Session | None = None, section: Section | None = None, *, is_api: bool
    ) -> Response:
        status, message = status_of(error)
        if not is_api:
            return self.refused(status, message, session, section)
        headers = {"www-authenticate": "Bearer"} if status == 401 else None
        return JSONResponse({"error": message}, status, headers=headers)

    def require_own_form(self, request: Request) -> None:
        """Raise PageRefused unless the browser says that a page of ours sent the form. Pages cannot set these headers.

        The cookie is SameSite=Lax besides, so browsers do not send it with another site's form at all.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        is_ours = site in ("same-origin", "none") if site else origin is not None
        host = request.headers.get("host", "")
        if not is_ours or (origin and origin not in (f"http://{host}", f"https://{host}")):
            raise PageRefused(403, "Another site sent this form. Open the page here, and do it again.")

    def _to_login(self, request: Request, page: Page) -> Response:
        if request.method != "GET":
            return self.refused(401, "Your session has ended, and nothing was done. Log in and do it again.")
        # A field that must not stand in this address must not stand in the next one either.
        pairs = [pair for pair in pairs_of(request.scope["query_string"]) if pair[0] not in page.personal]
        after = request.url.path + (f"?{urlencode(pairs)}" if pairs else "")
        return RedirectResponse(f"/login?next={quote(after, safe='')}", 303)

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

    async def _lost(self, request: Request, error: Exception) -> Response:
        """Answer for an address that no page has."""
        assert isinstance(error, HTTPException)
        words = {404: "There is no such page.", 405: "This address does not do that."}
        message = words.get(error.status_code, str(error.detail))
        return await run_in_threadpool(self._outside, request, PageRefused(error.status_code, message))

    async def _failed(self, request: Request, error: Exception) -> Response:
        """Answer for a bug, which Starlette logs itself, and for a database that is away from the login's pages."""
        is_said = isinstance(error, PageRefused | PaywardenError)
        return await run_in_threadpool(self._outside, request, error if is_said else PageRefused(500, _BUG))

    def _outside(self, request: Request, error: Exception) -> Response:
        """Return the refusal outside of any section: with the navigation for somebody who has logged in."""
        session = None
        with suppress(PaywardenError):
            session = self.session_of(request)
        return self._refusal(error, session, is_api=request.url.path.startswith(API))


class _Guard:
    """Around everything: refuses other host names and unreadable addresses, and gives each answer its headers."""

    def __init__(self, app: ASGIApp, shell: Shell) -> None:
        self._app, self._shell = app, shell
        headers = {**_HEADERS, **({"strict-transport-security": "max-age=31536000"} if shell.is_https else {})}
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
        app = self._app
        if scope["path"] not in ("/livez", "/readyz") and not self._is_ours(host):
            app = Response("This is not the name of this console.\n", 421)
        elif not scope["query_string"].isascii():
            # Browsers write such bytes as %XX. Nobody could read the address of this request.
            app = Response("The address holds bytes that are not ASCII.\n", 400)
        await app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        ours = urlsplit(self._shell.url)
        if host == ours.netloc:
            return True
        names = {"localhost", "127.0.0.1", "::1"}
        with suppress(ValueError):
            given = urlsplit(f"//{host}")
            return ours.hostname in names and given.hostname in names and given.port == ours.port
        return False


def status_of(error: Exception) -> tuple[int, str]:
    """Return status and message of a refusal."""
    if isinstance(error, PageRefused):
        return error.status, error.message
    if isinstance(error, TemporaryFailure):
        return 503, str(error)
    return (400, str(error)) if isinstance(error, InvalidEvent) else (409, str(error))


def address_of(request: Request) -> str:
    """Return the address that a request came from; empty if it is not known."""
    return "" if request.client is None else request.client.host


def local_path(location: str) -> str:
    """Return a path of this console; the first page for anything that leads elsewhere."""
    parts = urlsplit(location)
    is_local = location.startswith("/") and not location.startswith("//") and "\\" not in location
    return location if is_local and not parts.netloc and location.isprintable() else "/"


async def limited_body(request: Request, bytes_max: int, limit_s: float = _BODY_S) -> bytes:
    """Return the body of a request. Raises PageRefused if it is longer, or does not come within the limit."""
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
    """Return the fields of a form without files. Raises PageRefused."""
    if _kind_of(request) != _FORM:
        raise PageRefused(415, f"Wanted a form of the type {_FORM}.")
    return pairs_of(await limited_body(request, bytes_max, limit_s))


async def _form(
    request: Request, page: Page, kinds: tuple[str, ...]
) -> tuple[list[tuple[str, str]], dict[str, Upload]]:
    # A form without a field may come without a type.
    kind = _kind_of(request) or (_FORM if _FORM in kinds else "")
    files = {field.name: field for field in page.fields if field.kind == "file"}
    if kind not in kinds:
        raise PageRefused(415, f"Wanted the content type {_JSON if _FORM not in kinds else _FORM}.")
    if kind == _FORM:
        return pairs_of(await limited_body(request, page.body_bytes_max)), {}
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
        if not isinstance(value, UploadFile):
            pairs.append((name, value))
        elif name not in files:
            raise PageRefused(400, f"This page takes no file {name[:40]!r}.")
        elif value.filename:
            uploads[name] = Upload(value.filename, await value.read())
    await form.close()
    for file in files.values():
        if file.is_required and file.name not in uploads:
            raise PageRefused(400, f"{file.name} is missing: {file.meaning}.")
    return pairs, uploads


def _kind_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise PageRefused(400, "The body is not JSON.") from error


def _is_by_script(request: Request) -> bool:
    """Return whether a page of ours asks by itself, rather than a person. Browsers say so; pages cannot."""
    return request.headers.get("sec-fetch-dest", "document") == "empty"


def _download(sent: Sent) -> Response:
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(sent.file_name, safe='')}",
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
        content, media_type = files.get(request.path_params["name"], (b"", ""))
        if not media_type:
            raise HTTPException(404)
        return Response(content, media_type=media_type, headers={"cache-control": "max-age=3600"})

    return endpoint
