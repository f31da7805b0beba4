"""The settings of a client."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .answers import Decision
from .attempts import DEADLINE_MS_MAX
from .errors import WrongSettings
from .stand_in import StandInPolicy

URLS_MAX = 16
ROUTE_KEY_BYTES_MIN = 16
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")
_PATH = re.compile(r"[A-Za-z0-9._~/%-]*")


@dataclass(frozen=True)
class Hooks:
    """Functions that the client calls in its own threads; they must be quick. An error of theirs is dropped.

    `on_call(operation, outcome, seconds, attempts)`: for metrics. `operation` is "score", "shadow" or "reconcile";
    `outcome` is "answered", "refused", or the cause of a stand-in.
    `on_reconciled(stand_in, decision, end)`: the end of a stand-in. `decision` is the service's, or None; `end` is
    "answered", "refused", "expired", "full" or "closed".
    `on_shadow(own, decision, cause)`: the caller's own decision beside the service's, or beside None and the cause.
    """

    on_call: Callable[[str, str, float, int], None] | None = None
    on_reconciled: Callable[[Decision, Decision | None, str], None] | None = None
    on_shadow: Callable[[object, Decision | None, str], None] | None = None


@dataclass(frozen=True)
class ClientSettings:
    """See the table of ops/clients/SPECIFICATION.md. Raises WrongSettings, with the name of the setting."""

    urls: str | Sequence[str]
    deadline_ms: float = 40.0
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    route_key: bytes | None = field(default=None, repr=False)
    policy: StandInPolicy = field(default_factory=StandInPolicy)
    connections_max: int = 64
    idle_ms: float = 800.0
    connect_timeout_ms: float = 200.0
    resolve_s: float = 5.0
    queue_max: int = 1000
    shadow_max: int = 100
    cards_max: int = 100_000
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        urls = (self.urls,) if isinstance(self.urls, str) else tuple(self.urls)
        if not 1 <= len(urls) <= URLS_MAX or len(set(urls)) < len(urls):
            raise WrongSettings("urls", f"wanted 1 to {URLS_MAX} different ones")
        object.__setattr__(self, "urls", tuple(url.rstrip("/") for url in urls))
        for url in self.targets:
            Target.of(url)
        self._require("deadline_ms", 1, DEADLINE_MS_MAX)
        for name in ("idle_ms", "connect_timeout_ms", "resolve_s", "connections_max", "cards_max", "shadow_max"):
            self._require(name, 1e-3, 1e9)
        self._require("queue_max", 0, 1e9)
        if isinstance(self.token, str):
            require_token(self.token)
        if self.route_key is not None and len(self.route_key) < ROUTE_KEY_BYTES_MIN:
            raise WrongSettings("route_key", f"wanted at least {ROUTE_KEY_BYTES_MIN} bytes")
        if (self.certificate is None) != (self.key is None):
            raise WrongSettings("key", "wanted with a certificate, and only with one")

    def _require(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise WrongSettings(name, f"wanted {least:g} to {most:g}, got {value!r}")

    @property
    def targets(self) -> tuple[str, ...]:
        """The URLs, without a slash at their ends."""
        assert isinstance(self.urls, tuple)
        return self.urls

    def tls(self) -> ssl.SSLContext | None:
        """Returns the context of https; None without such a URL. Raises WrongSettings (a file)."""
        if not any(url.startswith("https:") for url in self.targets):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError):
            raise WrongSettings("ca", "wanted a readable file of certificates") from None
        context.set_alpn_protocols(["http/1.1"])
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError):
                raise WrongSettings("certificate", "wanted readable files of a certificate and its key") from None
        return context


@dataclass(frozen=True)
class Target:
    """A URL, taken apart."""

    host: str
    port: int
    path: str
    authority: str
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Target:
        """Returns the parts of a URL without a slash at its end. Raises WrongSettings."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if (
            not host
            or parts.scheme not in ("http", "https")
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
            or not parts.netloc.isascii()
            or not _PATH.fullmatch(parts.path)
        ):
            raise WrongSettings("urls", "wanted http://host:port or https://host:port, and perhaps a path")
        is_tls = parts.scheme == "https"
        return cls(host, port or (443 if is_tls else 80), f"{parts.path}/v1/score", parts.netloc, is_tls)


def require_token(token: str) -> str:
    """Returns the token. Raises WrongSettings, without the token in its text."""
    if not _TOKEN.fullmatch(token):
        raise WrongSettings("token", "wanted 1 to 8192 printable characters of ASCII without spaces")
    return token
