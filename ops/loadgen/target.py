"""The target of a load and its options: URL, TLS, token, and how many requests on how many connections."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.schemas.errors import Misconfigured

_HTTP_PATH = "/v1/score"
_GRPC_PATH = "/paywarden.scoring.v1.Scoring/Score"
_SCHEMES = ("http", "https", "grpc", "grpcs")


@dataclass(frozen=True)
class LoadOptions:
    """Options of a load. The defaults imitate many independent callers who each wait for an answer."""

    # Format of HTTP bodies. gRPC always takes protobuf.
    content_type: str = "application/x-protobuf"
    # Connections before the first request is due. HTTP opens more when they are needed.
    connections: int = 1
    connections_max: int = 256
    # Calls on a connection at a time over gRPC, where all connections are opened before the first request.
    streams: int = 64
    timeout_ms: int = 5_000
    # In an open loop a request that has found no connection for this long is given up, and the newest waiting request
    # goes first, as among independent callers with deadlines. 0: all wait, in their order, for `timeout_ms`.
    give_up_ms: int = 0
    # Sent as `Authorization: Bearer …`.
    token: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # For https:// and grpcs://: the authorities of the server's certificate (empty: the system's), and our certificate.
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    def check(self) -> None:
        """Raise Misconfigured naming an option that makes no sense."""
        for name in ("connections", "connections_max", "streams", "timeout_ms"):
            if getattr(self, name) < 1:
                raise Misconfigured(f"load: {name} must be at least 1, is {getattr(self, name)}")


@dataclass(frozen=True)
class Target:
    """A parsed target."""

    is_grpc: bool
    is_tls: bool
    host: str
    port: int
    authority: str
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        """Parse a URL. Raises Misconfigured."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Misconfigured(f"load: not a URL: {url}") from None
        scheme = parts.scheme
        if scheme not in _SCHEMES or parts.username is not None or not parts.hostname:
            raise Misconfigured(f"load: wanted http(s)://HOST[:PORT][/PATH] or grpc(s)://HOST:PORT, got {url}")
        is_grpc, is_tls = scheme.startswith("grpc"), scheme in ("https", "grpcs")
        path = _GRPC_PATH if is_grpc else _HTTP_PATH
        if parts.path not in ("", "/"):
            path = parts.path + (f"?{parts.query}" if parts.query else "")
        if port is None:
            port = 443 if is_tls else 80
        return cls(is_grpc, is_tls, parts.hostname, port, parts.netloc, path)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def tls_context(self, options: LoadOptions) -> ssl.SSLContext | None:
        """Returns the TLS context of connections, None for plain ones. Raises Misconfigured."""
        if not self.is_tls:
            return None
        for name in (options.ca_file, options.certificate_file, options.key_file):
            if name and not Path(name).is_file():
                raise Misconfigured(f"load: there is no file {name}")
        try:
            context = ssl.create_default_context(cafile=options.ca_file or None)
            if options.certificate_file:
                context.load_cert_chain(options.certificate_file, options.key_file or None)
        except ssl.SSLError as error:
            raise Misconfigured(f"load: cannot use the TLS files: {error.reason}") from error
        context.set_alpn_protocols(["h2" if self.is_grpc else "http/1.1"])
        return context
