"""The headers of a request."""

from __future__ import annotations

import re

from .routing import ROUTE_HEADER

DEADLINE_HEADER = "x-deadline-ms"
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def headers_of(
    deadline_ms: int, *, token: str | None = None, route: str | None = None, traceparent: str | None = None
) -> list[tuple[str, str]]:
    """Returns names, in small letters, and values. A `traceparent` of any other form than version 00's is left out."""
    headers = [("content-type", "application/json"), (DEADLINE_HEADER, str(deadline_ms))]
    if token is not None:
        headers.append(("authorization", f"Bearer {token}"))
    if route is not None:
        headers.append((ROUTE_HEADER, route))
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        headers.append(("traceparent", traceparent))
    return headers
