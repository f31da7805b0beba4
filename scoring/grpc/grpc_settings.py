"""The gRPC front's addresses and limits. Times are in milliseconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class GrpcSettings:
    """The gRPC front's addresses and limits: per connection unless they say per worker."""

    enabled: bool = True
    host: str = "127.0.0.1"
    # 0 takes a free port.
    port: int = 8081
    backlog: int = internal(4096)
    # Per worker.
    connections_max: int = 4096
    # Unanswered calls. Clients queue further ones, so that one read brings at most a few chunks.
    streams_max: int = internal(128)
    # A payment with the longest ids has 1.5 kB; the rest is room for fields of newer clients.
    message_bytes_max: int = internal(16 * 1024)
    # Enough for 256 payments, each a few times larger than usual.
    batch_bytes_max: int = internal(512 * 1024)
    # Messages of health and reflection hold only names of services and symbols.
    service_message_bytes_max: int = internal(4 * 1024)
    # Per worker: bytes of incomplete requests. It bounds memory for any number of connections and streams.
    arriving_bytes_max: int = internal(64 * 1024 * 1024)
    # As HTTP/2 counts: 32 bytes per field beside its text. SETTINGS announces the limit to clients.
    header_bytes_max: int = internal(16 * 1024)
    header_count_max: int = internal(64)
    # A block of headers within `header_bytes_max` fits into one frame, but some clients split it.
    continuation_frames_max: int = internal(8)
    # Flow control: as large as a batch, so that a large one does not wait for a round trip.
    stream_window_bytes: int = internal(512 * 1024)
    connection_window_bytes: int = internal(1024 * 1024)
    # Answers that wait for the caller's window. Beyond this the front refuses further calls. It holds the answers to a
    # dozen of the largest batches, since clients open 64 KiB at first.
    unread_bytes_max: int = internal(1024 * 1024)
    watches_max: int = internal(8)
    # Frames that ask for nothing: PING, SETTINGS, WINDOW_UPDATE, empty DATA. Go's client sends up to one PING and two
    # updates per answer.
    idle_frames_burst: int = internal(1000)
    idle_frames_per_second: int = internal(100)
    idle_frames_per_answer: int = internal(4)
    # Calls that are reset before they are answered. A client with good reasons may reset all its streams a few times;
    # more is the attack CVE-2023-44487. An answered call allows one more reset.
    resets_burst: int = internal(1000)
    resets_per_second: int = internal(100)
    # Time without a call. Longer than clients and proxies keep idle connections.
    idle_timeout_ms: int = 300_000
    # From a call's headers to its last byte, and from connecting to the first SETTINGS.
    request_timeout_ms: int = internal(5_000)
    # How long a caller may leave answers unread.
    write_timeout_ms: int = internal(5_000)
    # With calls open (a Watch): the silence after which the front sends a PING, and the time to answer it.
    keepalive_ms: int = internal(60_000)
    keepalive_timeout_ms: int = internal(10_000)
    # From our last byte until the caller must have closed.
    linger_ms: int = internal(1_000)
    # From NOT_SERVING to GOAWAY: [serve] drain_delay_ms.
    drain_delay_ms: int = internal(0)
    # The longest time for the calls in flight at a stop.
    stop_timeout_ms: int = internal(10_000)

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("port", "drain_delay_ms", "continuation_frames_max") else 1
            if type(value) is int and value < least:
                raise Misconfigured(f"[grpc] {field.name}: wanted at least {least}, got {value}")
