"""TLS for the fronts: certificate, key and optional client certificates, loaded again when the files change.

1. `refresh` makes new SSL contexts when the files have changed. A context that files are loaded into again would go on
   trusting authorities that are gone from `client_ca`, and taking up sessions of callers that they have vouched for.
2. Each new connection takes the newest context. Open connections keep theirs: their callers are trusted until the end.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_state, open_regular

_log = logging.getLogger(__name__)

HTTP_1_1 = "http/1.1"
HTTP_2 = "h2"


@dataclass(frozen=True)
class TlsSettings:
    """PEM files. Without `certificate` there is no TLS. With `client_ca` callers must show one, too (mTLS)."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    # From the connection to the end of the handshake.
    handshake_timeout_ms: int = 5_000
    # On each port of a worker. Beyond that, a new handshake ends the oldest one.
    handshakes_max: int = 256


def check_settings(settings: TlsSettings) -> None:
    """Raise Misconfigured when settings that ask for TLS are incomplete. Reads no file."""
    if not settings.certificate or not settings.key:
        raise Misconfigured(f"[tls] {'key' if settings.certificate else 'certificate'}: wanted a file")
    for name in ("handshake_timeout_ms", "handshakes_max"):
        if getattr(settings, name) < 1:
            raise Misconfigured(f"[tls] {name}: wanted at least 1, got {getattr(settings, name)}")


class Tls:
    """The SSL contexts of a worker's fronts."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises Misconfigured naming the file that cannot be used."""
        check_settings(settings)
        self.settings = settings
        # Those of now, by the protocols that they offer.
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        # Why the files as they are now are not in use, and whether they could not even be read.
        self._problem, self._is_unread = "", False
        self._state = [file_state(path) for path in self._files]
        _load(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    @property
    def _files(self) -> Sequence[str]:
        settings = self.settings
        return [path for path in (settings.certificate, settings.key, settings.client_ca) if path]

    def context(self, *protocols: str) -> ssl.SSLContext:
        """Returns the server context for the next connection. It offers these protocols (`HTTP_1_1`, `HTTP_2`) by ALPN.

        The first call for some protocols raises Misconfigured naming the file that cannot be used.
        """
        context = self._contexts.get(protocols)
        if context is None:
            context = self._contexts[protocols] = self._made(protocols)
        return context

    def _made(self, protocols: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(list(protocols))
        if self.settings.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
        _load(self.settings, context)
        return context

    def refresh(self) -> bool:
        """Load files that have changed. If they cannot be used, log one line and keep the old ones.

        Files that could not be read, for want of a file descriptor say, are read again at each call. Returns whether
        the certificate in use is that of the files.
        """
        state = [file_state(path) for path in self._files]
        is_new = state != self._state
        if not (is_new or self._is_unread):
            return not self._problem
        # Noted even if the content cannot be used, so that the log has one line per change.
        self._state = state
        try:
            _load(self.settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._contexts = {protocols: self._made(protocols) for protocols in self._contexts}
        except Misconfigured as error:
            cause = error.__cause__
            self._is_unread = isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError)
            if is_new or str(error) != self._problem:
                _log.error("%s; the previous certificate stays in use", error)
            self._problem = str(error)
            return False
        self._problem, self._is_unread = "", False
        _log.info("the certificate in %s has changed", self.settings.certificate)
        return True


def _load(settings: TlsSettings, context: ssl.SSLContext) -> None:
    for name, path in (("certificate", settings.certificate), ("key", settings.key), ("client_ca", settings.client_ca)):
        _require_readable(name, path)
    try:
        # Without this, OpenSSL would ask on the terminal for the password of an encrypted key.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except (ssl.SSLError, OSError) as error:
        raise Misconfigured(
            f"[tls] certificate: {settings.certificate} and {settings.key} are no certificate with its key: "
            f"{_reason(error)}"
        ) from error
    if settings.client_ca:
        try:
            context.load_verify_locations(settings.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(
                f"[tls] client_ca: {settings.client_ca} has no certificate: {_reason(error)}"
            ) from error


def _require_readable(name: str, path: str) -> None:
    if not path:
        return
    try:
        open_regular(path).close()
    except OSError as error:
        raise Misconfigured(f"[tls] {name}: cannot read {path}: {error.strerror}") from error


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
