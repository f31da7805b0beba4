"""The refusals of the HTTP front, and the HTTP status of every refusal.

An error is always JSON, also for a request in protobuf; `field` is empty when no field is wrong:

    {"error": {"code": "invalid_argument", "field": "amount_minor", "message": "is missing; wanted …"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from paywarden.scoring.engine.batching.batcher import (
    ALREADY_EXISTS,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNAVAILABLE,
)
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import PROTOBUF

UNIMPLEMENTED = "unimplemented"

DEADLINE_MS_MAX = 600_000


class HttpRefusal(NamedTuple):
    """A refusal by the front itself. `closes`: the connection cannot be used any further."""

    status: int
    code: str
    message: str
    closes: bool = False
    headers: bytes = b""
    field: str = ""


NOT_HTTP = HttpRefusal(400, INVALID_ARGUMENT, "not an HTTP/1.1 request", closes=True)
NO_HOST = HttpRefusal(400, INVALID_ARGUMENT, "exactly one Host header is needed", closes=True)
WRONG_VERSION = HttpRefusal(505, UNIMPLEMENTED, "HTTP/1.1 is spoken here", closes=True)
NO_TUNNEL = HttpRefusal(405, UNIMPLEMENTED, "no tunnels", closes=True, headers=b"Allow: GET, HEAD, POST\r\n")
EXPECTATION = HttpRefusal(417, INVALID_ARGUMENT, "the only expectation met is 100-continue", closes=True)
NOT_FOUND = HttpRefusal(404, "not_found", "no such route")
CONTENT_TYPE = HttpRefusal(
    415,
    INVALID_ARGUMENT,
    f"Content-Type must be {PROTOBUF.content_type} or {JSON.content_type}, not compressed",
)
NO_TOKEN = HttpRefusal(401, UNAUTHENTICATED, "a bearer token that is known here is needed")
DEADLINE = HttpRefusal(
    400, INVALID_ARGUMENT, f"must be whole milliseconds from 1 to {DEADLINE_MS_MAX}", field="x-deadline-ms"
)
TOO_SLOW = HttpRefusal(408, DEADLINE_EXCEEDED, "the request took too long to arrive", closes=True)
TOO_MANY = HttpRefusal(503, UNAVAILABLE, "too many connections", closes=True)
NO_ROOM = HttpRefusal(503, UNAVAILABLE, "too much is arriving at once: try again later", closes=True)
TOO_MANY_SCRAPES = HttpRefusal(429, RESOURCE_EXHAUSTED, "the metrics are asked for too often")

_STATUSES: Mapping[str, int] = {
    INVALID_ARGUMENT: 400,
    UNAUTHENTICATED: 401,
    ALREADY_EXISTS: 409,
    TOO_LARGE: 413,
    RESOURCE_EXHAUSTED: 429,
    INTERNAL: 500,
    UNAVAILABLE: 503,
    DEADLINE_EXCEEDED: 504,
}

# Headers of every answer with this status. After a second, any queue here is empty again. Every other answer with 429
# asks for two, so that refused callers do not come back together.
STATUS_HEADERS: Mapping[int, bytes] = {
    401: b"WWW-Authenticate: Bearer\r\n",
    429: b"Retry-After: 1\r\n",
    503: b"Retry-After: 1\r\n",
}
RETRY_LATER = b"Retry-After: 2\r\n"


def status_of(code: str) -> int:
    """Returns the HTTP status of a refusal's code."""
    return _STATUSES.get(code, 500)
