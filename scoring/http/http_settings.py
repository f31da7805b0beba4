"""The HTTP front's addresses and limits. Times are in milliseconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

_MAY_BE_ZERO = ("port", "drain_delay_ms")


@dataclass(frozen=True)
class HttpSettings:
    """The HTTP front's addresses and limits."""

    host: str = "127.0.0.1"
    # 0 takes a free port.
    port: int = 8080
    backlog: int = internal(4096)
    # Per worker. When it is reached, the oldest connection that has sent no payment gives way to a new one.
    connections_max: int = 4096
    # Per worker: bytes of bodies that are incomplete, and of requests that wait behind others of their connection. It
    # bounds memory for any number of connections.
    arriving_bytes_max: int = internal(64 * 1024 * 1024)
    # Enough for a batch of 256 requests, each a few times larger than usual.
    body_bytes_max: int = internal(512 * 1024)
    head_bytes_max: int = internal(16 * 1024)
    header_count_max: int = internal(64)
    # Unanswered requests of one connection; further ones wait.
    pipelined_max: int = internal(32)
    # Longer than a gateway keeps an idle connection (60 s is usual), so that the gateway closes first.
    idle_timeout_ms: int = 75_000
    # From a request's first byte to its last.
    request_timeout_ms: int = internal(5_000)
    # How long a caller may leave answers unread.
    write_timeout_ms: int = internal(5_000)
    linger_ms: int = internal(1_000)
    # From "not ready" on /readyz to the end of accepting: [serve] drain_delay_ms.
    drain_delay_ms: int = internal(0)
    # The longest time for the requests in flight at a stop.
    stop_timeout_ms: int = internal(10_000)

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting. A limit of 0 would refuse every caller without a word why."""
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and value < smallest:
                raise Misconfigured(f"[http] {field.name}: wanted at least {smallest}, got {value}")
