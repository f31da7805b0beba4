"""Parses a request's head into route, format, deadline or refusal, and caches heads by their bytes.

    head's bytes ─ cached? ──────────────────────────────────► RequestHead
         └─ no ─► parser ─► HeadFields ─ `Heads.decide` ──────► RequestHead ─ `Heads.learn`

1. A caller sends the same head again and again, except for the length of the body and the deadline. The cache maps the
   bytes from the first one to the empty line to their meaning, so a repeated head costs one look-up.
2. The cache takes only heads of requests that would be scored, so a caller without a token cannot fill it. It is
   bounded in heads and bytes. When it is full it is cleared, and the heads in use are back after one request each.
3. The deadline differs between requests, and so does `traceparent`. A head with them in one of the usual spellings is
   cached without their values. A head with another spelling of the deadline is cached whole; with another of
   `traceparent`, which no later request would have again, it is not cached.
4. When the tokens change, the cache is cleared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httptools

from paywarden.scoring.http import refusals as refused
from paywarden.scoring.http.content_types import format_of
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.http.refusals import DEADLINE_MS_MAX, UNIMPLEMENTED, HttpRefusal
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.validation import REQUEST_BYTES_MAX

RouteAnswer = tuple[int, str, bytes]

# Enough for a few hundred callers, each with a few dozen lengths of body.
_KNOWN_MAX = 8192
_KNOWN_BYTES_MAX = 4 * 1024 * 1024
_HEAD_END = b"\r\n\r\n"
# The usual spellings of a deadline. Its value may be taken out of the key.
_DEADLINE_LINE = re.compile(rb"\r\n(?:x-deadline-ms|X-Deadline-Ms): ([1-9][0-9]{0,5})\r\n")
_DEADLINE_VALUE = re.compile(rb"[0-9]{1,6}")
_TRACE_LINE = re.compile(rb"\r\ntraceparent: ([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\r\n")
# A head that holds this may be cached without its deadline, so the reader must ask `Heads.find`.
DEADLINE_MARK = b"eadline-"
# The same of its trace. A head without one need not be looked through: as it is, it is in the cache.
TRACE_MARK = b"\ntraceparent:"


@dataclass(frozen=True)
class Route:
    """The meaning of a request target. `answer` is set for routes that answer at once; the others are scored."""

    name: str
    methods: tuple[bytes, ...]
    is_batch: bool = False
    answer: Callable[[], RouteAnswer] | None = None
    needs_token: bool = True

    @property
    def wrong_method(self) -> HttpRefusal:
        """The refusal for a request with another method."""
        allow = b", ".join(self.methods)
        return HttpRefusal(405, UNIMPLEMENTED, f"use {allow.decode()}", headers=b"Allow: " + allow + b"\r\n")


# The headers that the front looks at. For the others only their size counts.
KEPT_HEADERS = frozenset(
    b"host expect connection content-type content-length content-encoding transfer-encoding authorization "
    b"x-deadline-ms traceparent".split()
)


@dataclass
class HeadFields:
    """The fields of a parsed head."""

    method: bytes = b""
    target: bytes = b""
    version: str = "1.1"
    keeps_alive: bool = True
    # `KEPT_HEADERS` only, by lower-case name. The values of a repeated header are joined with a comma.
    headers: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class RequestHead:
    """A parsed head. `form` is JSON for a request without a body. `caller` is the name of its token's caller."""

    route: Route | None
    form: Format = JSON
    refusal: HttpRefusal | None = None
    content_length: int = 0
    deadline_s: float = 0.0
    closes: bool = False
    is_head: bool = False
    says_keep_alive: bool = False
    caller: bytes = b""
    trace: bytes = b""
    """The value of `traceparent` in the request that was parsed. A cached head stands for others, too."""
    is_usual: bool = False
    """Whether a request with these very bytes as its head needs no second look. Set when the head is learned."""

    def __post_init__(self) -> None:
        self.closes = self.closes or (self.refusal is not None and self.refusal.closes)

    def refused(self, refusal: HttpRefusal) -> RequestHead:
        """Returns the same head with a refusal."""
        return RequestHead(self.route, refusal=refusal, closes=self.closes, is_head=self.is_head)


class Heads:
    """Decides and caches the heads of one server. See the module."""

    def __init__(
        self,
        routes: Mapping[bytes, Route],
        settings: HttpSettings,
        *,
        deadline_ms: int,
        tokens: Tokens | None = None,
        known_max: int = _KNOWN_MAX,
        known_bytes_max: int = _KNOWN_BYTES_MAX,
    ) -> None:
        """`deadline_ms` is the server's deadline. With `known_max` 0 nothing is cached."""
        self._routes, self._settings, self._tokens = routes, settings, tokens
        self._deadline_ms = deadline_ms
        self._known: dict[bytes | tuple[bytes, bytes], RequestHead] = {}
        # By the size of a whole request: the last usual head, with its bytes, of a request of this size.
        self._usual: dict[int, tuple[bytes, RequestHead]] = {}
        self._known_bytes = 0
        self._known_max, self._known_bytes_max = known_max, known_bytes_max
        self._tokens_version = 0
        # The limits of the body, and the refusals of a larger one: of a single payment, and of anything else.
        sizes = (min(REQUEST_BYTES_MAX, settings.body_bytes_max), settings.body_bytes_max)
        self._bodies = [
            (size, HttpRefusal(413, "invalid_argument", f"body must be at most {size} bytes", closes=True))
            for size in sizes
        ]
        self.head_too_large = HttpRefusal(
            431,
            "invalid_argument",
            f"at most {settings.header_count_max} headers and {settings.head_bytes_max} bytes of head",
            closes=True,
        )

    def body_bytes_max(self, route: Route | None) -> int:
        """Returns the size of the largest body that a route takes."""
        return self._bodies[not _is_of_one_payment(route)][0]

    def too_large(self, route: Route | None) -> HttpRefusal:
        """Returns the refusal of a body that is larger than that."""
        return self._bodies[not _is_of_one_payment(route)][1]

    def known(self) -> Mapping[bytes | tuple[bytes, bytes], RequestHead]:
        """Returns the cached heads by their bytes. Call it for every read, as it clears the cache on new tokens."""
        if self._tokens is not None and self._tokens.version != self._tokens_version:
            self._tokens_version = self._tokens.version
            self._forget()
        return self._known

    def usual(self, data: bytes) -> RequestHead | None:
        """Returns the cached head of bytes that are exactly one request, else None.

        Requests of one caller that have the same size have the same head, whose end need not be searched then.
        """
        if self._tokens is not None and self._tokens.version != self._tokens_version:
            self.known()
        size = len(data)
        last = self._usual.get(size)
        if last is not None and data.startswith(last[0]):
            return last[1]
        end = data.find(_HEAD_END) + 4
        head_bytes = data[:end]
        head = self._known.get(head_bytes)
        if head is None or not head.is_usual or size != end + head.content_length:
            return None
        self._usual[size] = head_bytes, head
        return head

    def find(self, head_bytes: bytes) -> tuple[RequestHead | None, float, bytes]:
        """Returns the cached head of these bytes or None, the seconds until its deadline, and its `traceparent`.

        Slower than `known`.
        """
        key, deadline_ms, trace = self._key_of(head_bytes)
        head = self._known.get(key)
        if head is None:
            return None, 0.0, b""
        deadline_s = head.deadline_s if deadline_ms is None else min(deadline_ms, self._deadline_ms) / 1000
        return head, deadline_s, trace

    def learn(self, head_bytes: bytes, head: RequestHead) -> None:
        """Cache the parsed head of these bytes, if it leads to scoring. The head must hold the body's length."""
        if head.refusal is not None or head.route is None or head.route.answer is not None or self._known_max == 0:
            return
        key, _, trace = self._key_of(head_bytes)
        if head.trace != trace:
            return
        head.is_usual = key == head_bytes and not trace and head.content_length > 0
        if len(self._known) >= self._known_max or self._known_bytes + len(head_bytes) > self._known_bytes_max:
            self._forget()
        self._known[key] = head
        self._known_bytes += len(head_bytes)

    def _forget(self) -> None:
        self._known.clear()
        self._usual.clear()
        self._known_bytes = 0

    def _key_of(self, head_bytes: bytes) -> tuple[bytes | tuple[bytes, bytes], int | None, bytes]:
        """Returns the cache's key of a head, and its deadline and its trace if they were taken out of the key.

        The key is the bytes before and after the deadline, as two parts. Joined, a head with an empty deadline would be
        taken for one with a valid deadline. A trace may be joined: an empty one means the same as none.
        """
        trace = b""
        # One `find` for each, and patterns only at a hit: they would try every line.
        if (at := head_bytes.find(TRACE_MARK) - 1) >= 0 and (found := _TRACE_LINE.match(head_bytes, at)) is not None:
            trace = found[1]
            head_bytes = head_bytes[: found.start(1)] + head_bytes[found.end(1) :]
        if head_bytes.find(DEADLINE_MARK) < 0:
            return head_bytes, None, trace
        if (match := _DEADLINE_LINE.search(head_bytes)) is None or (value := int(match[1])) > DEADLINE_MS_MAX:
            return head_bytes, None, trace
        return (head_bytes[: match.start(1)], head_bytes[match.end(1) :]), value, trace

    def decide(self, fields: HeadFields) -> RequestHead:
        """Returns the route, format, deadline or refusal of a head's fields."""
        route = self._routes.get(fields.target) or self._find_route(fields.target)
        headers = fields.headers
        content_length = int(headers.get(b"content-length", b"0"))
        form = format_of(headers.get(b"content-type", b"")) if fields.method == b"POST" else JSON
        refusal = _protocol_refusal(fields)
        caller = b"" if self._tokens is None else self._tokens.caller_of(headers.get(b"authorization"))
        deadline_ms = self._deadline_of(headers.get(b"x-deadline-ms"))
        if refusal is None and content_length > self.body_bytes_max(route):
            refusal = self.too_large(route)
        if refusal is None:
            refusal = self._refusal(route, fields, form, deadline_ms, is_known=caller is not None)
        return RequestHead(
            route,
            form=form or JSON,
            refusal=refusal,
            content_length=content_length,
            deadline_s=(deadline_ms or self._deadline_ms) / 1000,
            closes=not fields.keeps_alive,
            is_head=fields.method == b"HEAD",
            says_keep_alive=fields.version == "1.0",
            caller=caller or b"",
            trace=headers.get(b"traceparent", b""),
        )

    def _find_route(self, target: bytes) -> Route | None:
        """Find the route of a target with a query, or in the absolute form that proxies may send."""
        try:
            return self._routes.get(httptools.parse_url(target).path or b"")
        except httptools.HttpParserInvalidURLError:
            return None

    def _deadline_of(self, value: bytes | None) -> int | None:
        """Returns the smaller of the caller's deadline and the server's, in ms; None when the caller's is malformed."""
        if value is None:
            return self._deadline_ms
        if _DEADLINE_VALUE.fullmatch(value) is None or not 1 <= int(value) <= DEADLINE_MS_MAX:
            return None
        return min(int(value), self._deadline_ms)

    def _refusal(
        self, route: Route | None, fields: HeadFields, form: Format | None, deadline_ms: int | None, *, is_known: bool
    ) -> HttpRefusal | None:
        """Returns the refusal of a request that keeps to the protocol, or None. `is_known`: the caller's token is."""
        headers = fields.headers
        if route is None:
            return refused.NOT_FOUND
        if fields.method not in route.methods:
            return route.wrong_method
        if route.needs_token and not is_known:
            return refused.NO_TOKEN
        if form is None or (fields.method == b"POST" and headers.get(b"content-encoding", b"identity") != b"identity"):
            return refused.CONTENT_TYPE
        if deadline_ms is None and route.answer is None:
            return refused.DEADLINE
        return None


def _is_of_one_payment(route: Route | None) -> bool:
    return route is not None and route.answer is None and not route.is_batch


def _protocol_refusal(fields: HeadFields) -> HttpRefusal | None:
    host = fields.headers.get(b"host")
    if fields.version not in ("1.1", "1.0"):
        return refused.WRONG_VERSION
    if (host is None and fields.version == "1.1") or (host is not None and b"," in host):
        return refused.NO_HOST
    if fields.method == b"CONNECT":
        return refused.NO_TUNNEL
    if fields.headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return refused.EXPECTATION
    return None
