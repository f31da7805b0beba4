"""The gateway's own refusals: the same status, code and words on both targets, in the form of the endpoint's errors."""

from __future__ import annotations

import json
from dataclasses import dataclass

from paywarden.ops.gateway.description import ROUTE_DIGITS, ROUTE_HEADER


@dataclass(frozen=True)
class GatewayRefusal:
    """`grpc_status` is the status that a gRPC caller gets."""

    status: int
    code: str
    grpc_status: int
    message: str
    field: str = ""
    retry_after: bool = False

    @property
    def body(self) -> str:
        """The body, JSON in the form of the endpoint's errors."""
        error = {"code": self.code, "field": self.field, "message": self.message}
        return json.dumps({"error": error}, separators=(",", ":"))


WRONG_ROUTE = GatewayRefusal(
    400,
    "invalid_argument",
    3,
    f"wanted {ROUTE_DIGITS} hexadecimal digits of a keyed hash of the card",
    field=ROUTE_HEADER,
)
MALFORMED = GatewayRefusal(400, "invalid_argument", 3, "no HTTP request that can be read")
WANTS_TLS = GatewayRefusal(400, "invalid_argument", 3, "this port wants TLS")
HEAD_TOO_LARGE = GatewayRefusal(431, "invalid_argument", 8, "the head is too large")
NO_CLIENT = GatewayRefusal(401, "unauthenticated", 16, "no known key, certificate or token of a client")

REFUSALS = (
    NO_CLIENT,
    GatewayRefusal(404, "not_found", 12, "no such route"),
    GatewayRefusal(408, "deadline_exceeded", 4, "the request took too long to arrive"),
    GatewayRefusal(413, "invalid_argument", 8, "the body is too large"),
    GatewayRefusal(429, "resource_exhausted", 8, "more calls than this client may send", retry_after=True),
    HEAD_TOO_LARGE,
    GatewayRefusal(503, "unavailable", 14, "no scoring host can be reached", retry_after=True),
    GatewayRefusal(504, "deadline_exceeded", 4, "no answer in time"),
)
"""The other refusals of the gateway itself, one for each status. A host's own answer passes as it is."""
