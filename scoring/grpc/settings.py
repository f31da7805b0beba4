"""Where the gRPC front listens, and every limit it has."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.schemas.errors import Misconfigured

LIBRARIES = ("ngh2", "h2")


@dataclass(frozen=True)
class GrpcSettings:
    """What speaks HTTP/2, and every limit of the gRPC front, per connection unless it says more."""

    enabled: bool = True
    host: str = "127.0.0.1"
    # 0 takes a free one.
    port: int = 8081
    # Also listened on where it is set, without TLS.
    unix_socket: str = ""
    # "ngh2" (libnghttp2) or "h2" (hyper-h2, some twenty times slower).
    library: str = "ngh2"
    backlog: int = 1024
    # Per worker.
    connections_max: int = 1024
    # Calls not yet answered. Clients queue what is more; one read then brings at most a few chunks.
    streams_max: int = 128
    # A payment of longest ids is 1.5 kB; the rest is for fields of newer clients.
    message_bytes_max: int = 16 * 1024
    # 256 payments, each a few times larger than usual.
    batch_bytes_max: int = 512 * 1024
    # Names of services and symbols.
    service_message_bytes_max: int = 4 * 1024
    # Per worker: requests of which a part has come. Bounds memory whatever the connections and streams.
    arriving_bytes_max: int = 64 * 1024 * 1024
    # As HTTP/2 counts, 32 bytes a field more than their text. Told to clients, who keep to it or end the connection.
    header_bytes_max: int = 16 * 1024
    header_count_max: int = 64
    # A block of headers within `header_bytes_max` fits into one frame; some clients cut it smaller.
    continuation_frames_max: int = 8
    # Flow control: as large as a batch, so that a large one does not wait for a round trip.
    stream_window_bytes: int = 512 * 1024
    connection_window_bytes: int = 1024 * 1024
    # Answers that wait for the caller's window; more calls are refused meanwhile. A dozen of the largest batches, as
    # clients open 64 KiB at first.
    unread_bytes_max: int = 1024 * 1024
    watches_max: int = 8
    # PING, SETTINGS, WINDOW_UPDATE, empty DATA: Go's client sends up to one PING and two updates an answer.
    idle_frames_burst: int = 1000
    idle_frames_per_second: int = 100
    idle_frames_per_answer: int = 4
    # Calls that are reset before they are answered: a burst of all streams, several times over, is a client that
    # gives up for good reasons; more is CVE-2023-44487. An answered call allows one more.
    resets_burst: int = 1000
    resets_per_second: int = 100
    # Without a call. Longer than clients and proxies keep connections unused.
    idle_timeout_ms: int = 300_000
    # From a call's headers to its last byte; also from connecting to the first SETTINGS.
    request_timeout_ms: int = 5_000
    # How long a caller may leave answers unread.
    write_timeout_ms: int = 5_000
    # Silence, with calls open (a Watch), after which the caller is asked whether he is there; and his time to say so.
    keepalive_ms: int = 60_000
    keepalive_timeout_ms: int = 10_000
    # After our last byte, for the caller to read it and close.
    linger_ms: int = 1_000
    # Between NOT_SERVING and GOAWAY, so that a load balancer can take the worker out first.
    drain_delay_ms: int = 0
    # What is in flight at a stop may take this long.
    stop_timeout_ms: int = 10_000

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        if self.library not in LIBRARIES:
            raise Misconfigured(f"[grpc] library: wanted {' or '.join(LIBRARIES)}, got {self.library!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("port", "drain_delay_ms", "continuation_frames_max") else 1
            if type(value) is int and value < least:
                raise Misconfigured(f"[grpc] {field.name}: wanted at least {least}, got {value}")
