"""Where the HTTP front listens, and every limit it has."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.schemas.errors import Misconfigured

_MAY_BE_ZERO = ("port", "drain_delay_ms")


@dataclass(frozen=True)
class HttpSettings:
    """Where to listen, and every limit of the HTTP front."""

    host: str = "127.0.0.1"
    # 0 takes a free port.
    port: int = 8080
    # Listened on beside the port, for callers on this host; empty for none. Never with TLS.
    unix_socket: str = ""
    backlog: int = 1024
    # Per worker. Each may hold a body, so this times `body_bytes_max` bounds the memory.
    connections_max: int = 1024
    # 256 requests of a batch, each a few times larger than usual.
    body_bytes_max: int = 512 * 1024
    head_bytes_max: int = 16 * 1024
    header_count_max: int = 64
    # Requests of one connection that may be unanswered at a time; what it sends beyond them waits.
    pipelined_max: int = 32
    # Longer than a gateway keeps a connection unused (60 s is usual), so that it is the gateway that closes.
    idle_timeout_ms: int = 75_000
    # From a request's first byte to its last.
    request_timeout_ms: int = 5_000
    # How long a caller may leave answers unread.
    write_timeout_ms: int = 5_000
    linger_ms: int = 1_000
    # Between "not ready" on /readyz and the end of accepting, so that a gateway can take the worker out first.
    drain_delay_ms: int = 0
    # What is in flight at a stop may take this long.
    stop_timeout_ms: int = 10_000

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting: a limit of nothing would let nobody in, and not say so."""
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and value < smallest:
                raise Misconfigured(f"[http] {field.name}: wanted at least {smallest}, got {value}")
